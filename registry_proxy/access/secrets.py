"""Secrets that are made, not chosen: those of robots, personal access tokens, refresh tokens.

Each holds 256 random bits, so a plain hash of it is as good as a slow one, and guesses need no limit. Its text names
the record it belongs to: checking one costs one look-up for every caller.

Logins make refresh tokens, people make all others. So refresh tokens have a table of their own, which is in no snapshot
of the policy: a login makes no worker load anything. Their ids begin with a hash of the subject: those of one subject
are found without the others.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from registry_proxy.ports.store import Record, Table
from registry_proxy.protocol.scope import Action

_TEXT = re.compile(r"rp_(robot|personal|refresh)_([0-9a-f]{16}|[0-9a-f]{32})_[A-Za-z0-9_-]{43}")
_SUBJECT_LENGTH = 16
_REFRESH_ID_LENGTH = 2 * _SUBJECT_LENGTH


class SecretKind(StrEnum):
    """The use of a secret; stands in its text, so that a scanner of leaked secrets can tell."""

    ROBOT = "robot"
    PERSONAL = "personal"
    REFRESH = "refresh"


class SecretState(StrEnum):
    """Whether a login with a secret is accepted, and why not; ``DISABLED`` is its holder, not the secret."""

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret as it is stored, which cannot be turned back into its text.

    ``actions`` None leaves its holder all its rights. ``generation`` is that of the subject when a refresh token was
    made: a later one revokes it. Times are Unix seconds.
    """

    id: str
    subject: str
    kind: SecretKind
    hash: str = field(repr=False)
    label: str = ""
    created_at: float = 0.0
    expires_at: float | None = None
    actions: frozenset[Action] | None = None
    generation: int = 0
    revision: int = 0

    def is_valid(self, now: float) -> bool:
        """Tell whether it has not expired."""
        return self.expires_at is None or now < self.expires_at

    def state(self, generation: int | None, now: float) -> SecretState:
        """Return whether a login with it is accepted.

        Args:
            generation: the subject's own now; None where the subject is gone or disabled.
            now: Unix seconds.
        """
        if not self.is_valid(now):
            return SecretState.EXPIRED
        if generation is None:
            return SecretState.DISABLED
        is_revoked = self.kind is SecretKind.REFRESH and self.generation != generation
        return SecretState.REVOKED if is_revoked else SecretState.VALID

    def matches(self, text: str) -> bool:
        """Tell whether this is the secret with that text."""
        return hmac.compare_digest(self.hash, _hash(text))

    def stored(self) -> dict[str, Any]:
        """Return what is stored under the id."""
        content = {name: getattr(self, name) for name in _CONTENT}
        return {**content, "kind": self.kind.value, "actions": None if self.actions is None else sorted(self.actions)}


_CONTENT = tuple(field.name for field in fields(Secret) if field.name not in {"id", "revision"})


def make_secret_text(kind: SecretKind, subject: str) -> tuple[str, str, str]:
    """Return the id, the text and the hash of a new secret."""
    secret_id = secrets.token_hex(8)
    if kind is SecretKind.REFRESH:
        secret_id = refresh_id_prefix(subject) + secret_id
    text = f"rp_{kind}_{secret_id}_{secrets.token_urlsafe(32)}"
    return secret_id, text, _hash(text)


def secret_id_of(text: str) -> str | None:
    """Return the id that a text names; None when it is no secret that was made here."""
    match = _TEXT.fullmatch(text)
    return None if match is None else match[2]


def refresh_id_prefix(subject: str) -> str:
    """Return the beginning of the ids of a subject's refresh tokens; other subjects may have it by chance."""
    return hashlib.sha256(subject.encode()).hexdigest()[:_SUBJECT_LENGTH]


def is_refresh_id(secret_id: str) -> bool:
    """Tell whether an id is of a refresh token, other than those of earlier versions, which look like other secrets."""
    return len(secret_id) == _REFRESH_ID_LENGTH


def table_of(secret_id: str) -> Table:
    """Return the table that holds a secret."""
    return Table.REFRESH_TOKENS if is_refresh_id(secret_id) else Table.SECRETS


def secret_of(record: Record) -> Secret:
    """Return the secret of a record."""
    content = {name: value for name, value in record.value.items() if name in _CONTENT}
    actions = content["actions"]
    content |= {
        "kind": SecretKind(content["kind"]),
        "actions": None if actions is None else frozenset(map(Action, actions)),
    }
    return Secret(id=record.key, revision=record.revision, **content)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
