"""The known images below others: no pusher makes the service forget those of somebody else."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry_proxy.ports.store import Store, Table
from registry_proxy.rules import bases
from registry_proxy.rules.bases import KnownImages
from registry_proxy.store.open import open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store without records."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (opened, _):
        yield opened


async def test_copies_push_out_no_name_of_another_namespace(store: Store) -> None:
    """A base that somebody pushes again under very many tags keeps the name that rules allow."""
    known = KnownImages(store)
    await known.remember("chain", "base/system:1")
    for number in range(50):
        await known.remember("chain", f"eve/app:{number}")
    names = (await known.find(["chain"]))["chain"]
    assert len(names) == 20
    assert {"base/system:1", "eve/app:49"} <= set(names)


async def test_many_images_push_out_none_of_another_namespace(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are as many as may be, the oldest of the namespace with most give way."""
    monkeypatch.setattr(bases, "_KNOWN_MAX", 20)
    monkeypatch.setattr(bases, "_REMOVED_AT_ONCE", 5)
    known = KnownImages(store)
    await known.remember("chain", "base/system:1")
    for number in range(50):
        await known.remember(f"other {number}", f"eve/app:{number}")
    assert await known.find(["chain"]) == {"chain": ["base/system:1"]}
    assert await store.count(Table.BASES) <= 20
