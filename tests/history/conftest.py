"""A store for tests of the history."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from registry_proxy.ports.store import Store
from registry_proxy.store.changes import StoreWatch
from registry_proxy.store.open import open_store


@pytest_asyncio.fixture
async def opened(tmp_path: Path) -> AsyncIterator[tuple[Store, StoreWatch]]:
    """A store, and the source of its changes."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, changes):
        yield store, changes
