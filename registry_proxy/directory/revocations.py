"""Revocations: of all tokens of a subject, or of one token."""

import re

from registry_proxy.access.faults import InvalidError
from registry_proxy.access.subject import SubjectKind, parse_subject
from registry_proxy.directory.removed import Removed
from registry_proxy.directory.revise import Records, Revised
from registry_proxy.directory.secrets import Secrets
from registry_proxy.directory.voiding import revocation
from registry_proxy.ports.store import Store, Table

_TOKEN_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Revocations(Records[int]):
    """See ``Directory``; the records are the generations of subjects."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, Table.SUBJECTS, "subject", lambda record: int(record.value["generation"]))
        self._secrets = Secrets(store)

    async def revoke(self, subject: str, *, also_secrets: bool = False) -> tuple[int, Removed]:
        """Void the bearer and refresh tokens of a subject; return its new generation, and the secrets deleted.

        Args:
            subject: a user, a robot, a subject of ID tokens, or ``anonymous``.
            also_secrets: delete its personal tokens and robot secrets too. Its password stays.

        Raises:
            InvalidError: it is no subject that has tokens.
        """
        try:
            parsed = parse_subject(subject)
        except ValueError as error:
            raise InvalidError([("subject", str(error))]) from error
        if parsed.kind is SubjectKind.GROUP:
            raise InvalidError([("subject", "a group has no tokens: revoke those of its members")])

        async def make(current: int | None) -> Revised[tuple[int, Removed]]:
            generation = (current or 0) + 1
            removed = Removed(secrets=await self._secrets.list(subject) if also_secrets else ())
            return Revised({"generation": generation}, (generation, removed), removed.changes())

        revoked, _ = await self._revise(subject, make)
        return revoked

    async def revoke_token(self, token_id: str) -> None:
        """Void one token, by its ``jti``; those long expired are forgotten with it.

        Raises:
            InvalidError: no token of ours has such an id.
        """
        if _TOKEN_ID.fullmatch(token_id) is None:
            raise InvalidError([("token_id", "expected the jti of a token")])
        await self._store.commit(await revocation(self._store, token_id))
