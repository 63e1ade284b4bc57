"""The known images on record: found by their chains, named, and bounded."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry_proxy.ports.store import Store, Table
from registry_proxy.rules import bases
from registry_proxy.rules.bases import KnownImages
from registry_proxy.store.open import open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        yield store


async def test_an_image_is_known_by_its_names(store: Store) -> None:
    """The newest name comes first; a repetition within a day writes nothing."""
    known = KnownImages(store, lambda: 1000.0)
    for name in ("a:1", "b:1", "a:1", "a:1"):
        await known.remember("chain", name)
    assert await known.find(["chain", "other"]) == {"chain": ["a:1", "b:1"]}
    (record,) = await store.list(Table.BASES)
    await known.remember("chain", "a:1")
    assert (await store.list(Table.BASES))[0].revision == record.revision
    assert await known.find([]) == {}


async def test_the_oldest_images_give_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of images the oldest are forgotten, beyond that of names the oldest names."""
    monkeypatch.setattr(bases, "_KNOWN_MAX", 3)
    monkeypatch.setattr(bases, "_REMOVED_AT_ONCE", 2)
    monkeypatch.setattr(bases, "_NAMES_MAX", 2)
    times = iter(range(10, 100))
    known = KnownImages(store, lambda: float(next(times)))
    for chain in "dcba":
        await known.remember(chain, "x:1")
    assert [record.key for record in await store.list(Table.BASES)] == ["a", "b"]
    for name in ("y:1", "z:1"):
        await known.remember("a", name)
    assert await known.find(["a"]) == {"a": ["z:1", "y:1"]}
