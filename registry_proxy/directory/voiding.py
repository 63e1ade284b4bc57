"""The changes that revoke tokens: a higher generation of their subject, or the id of one on a list."""

import time

from registry_proxy.access.tokens import LEEWAY_SECONDS
from registry_proxy.ports.store import Change, Store, Table

TOKEN_LIFETIME_MAX_SECONDS = 86_400
"""The longest that the configuration allows."""


async def next_generation(store: Store, subject: str) -> Change:
    """Return the change that revokes all tokens of a subject."""
    record = await store.get(Table.SUBJECTS, subject)
    generation, revision = (0, 0) if record is None else (int(record.value["generation"]), record.revision)
    return Change(Table.SUBJECTS, subject, {"generation": generation + 1}, revision)


async def revocation(store: Store, token_id: str) -> list[Change]:
    """Return the changes that revoke the tokens with an id, and forget ids of which all tokens have expired."""
    now = time.time()
    records = await store.list(Table.REVOKED_TOKENS)
    forgotten = [Change(Table.REVOKED_TOKENS, r.key, None) for r in records if r.value["expires_at"] <= now]
    until = {"expires_at": now + TOKEN_LIFETIME_MAX_SECONDS + LEEWAY_SECONDS}
    return [Change(Table.REVOKED_TOKENS, token_id, until), *forgotten]
