"""The changes that void tokens: a higher generation of their subject, or the id of one on a list."""

import time

from registry_proxy.access.tokens import LEEWAY_SECONDS
from registry_proxy.ports.store import Change, Record, Store, Table

TOKEN_LIFETIME_MAX_SECONDS = 86_400
"""The longest that the configuration allows."""


def following_generation(record: Record | None) -> int:
    """Return the generation after that of a record of a subject."""
    return 1 if record is None else int(record.value["generation"]) + 1


async def next_generation(store: Store, subject: str) -> Change:
    """Return the change that voids all tokens of a subject."""
    record = await store.get(Table.SUBJECTS, subject)
    value = {"generation": following_generation(record)}
    return Change(Table.SUBJECTS, subject, value, 0 if record is None else record.revision)


async def revocation(store: Store, token_id: str) -> list[Change]:
    """Return the changes that void the tokens with an id, and forget ids of which all tokens have expired."""
    now = time.time()
    records = await store.list(Table.REVOKED_TOKENS)
    forgotten = [Change(Table.REVOKED_TOKENS, r.key, None) for r in records if r.value["expires_at"] <= now]
    until = {"expires_at": now + TOKEN_LIFETIME_MAX_SECONDS + LEEWAY_SECONDS}
    return [Change(Table.REVOKED_TOKENS, token_id, until), *forgotten]
