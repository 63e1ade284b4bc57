"""Refresh tokens: looked up in the store one by one, and kept in a copy for the time of an outage."""

import asyncio
import logging

from registry_proxy.access.secrets import Secret, secret_of
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.store import Store, StoreChanges, Table

COPY_SECONDS = 60.0
"""Time between two copies, where anything has changed."""

_PARTS = [f"{number:02x}" for number in range(256)]  # by the first digits of their ids
_PAUSE_SECONDS = 0.02

_log = logging.getLogger(__name__)


class RefreshTokens:
    """Finds refresh tokens.

    Args:
        store: holds them.
        changes: knows when some were made or removed.
    """

    def __init__(self, store: Store, changes: StoreChanges) -> None:
        self._store = store
        self._changes = changes
        self._copies: dict[str, dict[str, Secret]] = {}

    async def find(self, secret_id: str) -> Secret | None:
        """Return a refresh token; None where there is none.

        Raises:
            StoreUnavailableError: the store is away, and the copy has no such token.
        """
        try:
            record = await self._store.get(Table.REFRESH_TOKENS, secret_id)
        except StoreUnavailableError:
            copy = self._copies.get(secret_id[:2], {}).get(secret_id)
            if copy is None:
                raise
            return copy
        return None if record is None else secret_of(record)

    async def keep_copied(self) -> None:
        """Copy them for an outage, part by part, so that no request waits for it."""
        copied = None
        while True:
            version = self._changes.version(Table.REFRESH_TOKENS)
            if version != copied:
                try:
                    await self._copy()
                    copied = version
                except StoreUnavailableError as error:
                    _log.debug("refresh tokens are not copied now: %s", error)
            await asyncio.sleep(COPY_SECONDS)

    async def _copy(self) -> None:
        if await self._store.count(Table.REFRESH_TOKENS) == 0:  # as where no client asks for them
            self._copies.clear()
            return
        for part in _PARTS:
            records = await self._store.list(Table.REFRESH_TOKENS, part)
            self._copies[part] = {record.key: secret_of(record) for record in records}
            await asyncio.sleep(_PAUSE_SECONDS)
