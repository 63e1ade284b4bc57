"""Secrets of users and robots: personal tokens, secrets of robots, refresh tokens."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from registry_proxy.access.faults import InvalidError, actions_faults, time_faults
from registry_proxy.access.secrets import (
    Secret,
    SecretKind,
    is_refresh_id,
    make_secret_text,
    refresh_id_prefix,
    secret_of,
    table_of,
)
from registry_proxy.access.subject import SubjectKind, parse_subject
from registry_proxy.directory.revise import NotFoundError
from registry_proxy.directory.voiding import revocation
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.protocol.scope import Action

_SECRETS_MAX = 100
_LABEL_MAX_LENGTH = 200
_SECRET_ACTIONS = frozenset({Action.PULL.value, Action.PUSH.value, Action.DELETE.value})  # as scopes name them


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretInput:
    """The content of a POST of a secret; ``actions`` None leaves its holder all its rights, times in Unix seconds."""

    label: str = ""
    expires_at: float | None = None
    actions: Sequence[str] | None = None


class Secrets:
    """See ``Directory``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, subject: str) -> Sequence[Secret]:
        """Return the secrets of a user or robot, oldest first; also those that have expired."""
        records = await self._store.list(Table.SECRETS)
        found = [secret_of(record) for record in records if record.value["subject"] == subject]
        found += await self._refresh_tokens(subject)
        return sorted(found, key=lambda each: each.created_at)

    async def _refresh_tokens(self, subject: str) -> Sequence[Secret]:
        """Return the refresh tokens of a subject, oldest first; not those of earlier versions."""
        records = await self._store.list(Table.REFRESH_TOKENS, refresh_id_prefix(subject))
        found = [each for each in map(secret_of, records) if each.subject == subject]
        return sorted(found, key=lambda each: each.created_at)

    async def add(
        self, subject: str, kind: SecretKind, given: SecretInput, *, generation: int | None = None
    ) -> tuple[Secret, str]:
        """Make a secret of a user or robot that is there; return it and its text, which is never to be had again.

        Args:
            subject: whose it is.
            kind: its use.
            given: its content.
            generation: of the login that it is made for; None for that of the subject now.

        Raises:
            InvalidError: with every fault of the input, or there are too many.
            NotFoundError: there is no such subject.
        """
        faults = time_faults(given.expires_at)
        if not faults and given.expires_at is not None and given.expires_at <= time.time():
            faults.append(("expires_at", "expected a time to come: it would never have been good"))
        if len(given.label) > _LABEL_MAX_LENGTH or not given.label.isprintable():
            faults.append(("label", f"expected at most {_LABEL_MAX_LENGTH} printable characters"))
        if given.actions is not None:
            faults += actions_faults(given.actions, _SECRET_ACTIONS)
        if faults:
            raise InvalidError(faults)
        await self._check_holder(subject)
        if generation is None:
            record = await self._store.get(Table.SUBJECTS, subject)
            generation = 0 if record is None else int(record.value["generation"])
        secret_id, text, hashed = make_secret_text(kind, subject)
        secret = Secret(
            id=secret_id,
            subject=subject,
            kind=kind,
            hash=hashed,
            label=given.label,
            created_at=time.time(),
            expires_at=given.expires_at,
            actions=None if given.actions is None else frozenset(Action(action) for action in given.actions),
            generation=generation,
        )
        is_refresh = kind is SecretKind.REFRESH
        present = await (self._refresh_tokens(subject) if is_refresh else self.list(subject))
        present = [each for each in present if each.kind is kind]
        dead = [each for each in present if not each.is_valid(secret.created_at)]
        alive = [each for each in present if each not in dead]
        if len(alive) >= _SECRETS_MAX:
            if not is_refresh:
                raise InvalidError([("", f"{subject} has {_SECRETS_MAX} secrets: remove some first")])
            dead += alive[: len(alive) - _SECRETS_MAX + 1]  # nobody logs out: the oldest was most likely forgotten
        changes = [Change(table_of(secret_id), secret_id, secret.stored(), expect=0), *deletions(dead)]
        revision = await self._store.commit(changes)
        return replace(secret, revision=revision), text

    async def delete(self, subject: str, secret_id: str) -> None:
        """Delete a secret, which revokes the tokens that were issued for it. Raises NotFoundError."""
        record = await self._store.get(table_of(secret_id), secret_id)
        if record is None or secret_of(record).subject != subject:
            raise NotFoundError(f"{subject} has no secret {secret_id}")
        changes = [Change(table_of(secret_id), secret_id, None)]
        if is_refresh_id(secret_id):  # in no snapshot of the policy, so its absence tells nobody
            changes += await revocation(self._store, secret_id)
        await self._store.commit(changes)

    async def remove_expired_refresh_tokens(self) -> None:
        """Delete the refresh tokens that nobody can use any more, of all users."""
        now = time.time()
        tokens = [
            secret_of(record)
            for table in (Table.SECRETS, Table.REFRESH_TOKENS)
            for record in await self._store.list(table)
        ]
        expired = [each for each in tokens if each.kind is SecretKind.REFRESH and not each.is_valid(now)]
        await self._store.commit(deletions(expired))

    async def _check_holder(self, subject: str) -> None:
        parsed = parse_subject(subject)
        if parsed.kind is SubjectKind.OIDC:
            raise InvalidError([("", f"{subject} has no secrets: it logs in with its ID token")])
        kind = "robot" if parsed.kind is SubjectKind.ROBOT else "user"
        if await self._store.get(Table(f"{kind}s"), parsed.name) is None:
            raise NotFoundError(f"there is no {kind} {parsed.name}")


def deletions(secrets: Iterable[Secret]) -> list[Change]:
    """Return the changes that delete secrets."""
    return [Change(table_of(secret.id), secret.id, None) for secret in secrets]
