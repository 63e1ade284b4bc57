"""A directory over an empty store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry_proxy.directory.directory import Directory
from registry_proxy.ports.store import Store, Table
from registry_proxy.store.open import open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        yield store


@pytest.fixture
async def directory(store: Store) -> AsyncIterator[Directory]:
    """A directory over the store."""
    directory = Directory(store)
    yield directory
    await directory.aclose()


async def generation(store: Store, subject: str) -> int:
    """Return the generation of a subject."""
    record = await store.get(Table.SUBJECTS, subject)
    return 0 if record is None else record.value["generation"]
