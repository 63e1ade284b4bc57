"""Recently pushed blobs, known to every node."""

from pathlib import Path

from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.store import Table
from registry_proxy.protocol.reference import Repository, digest_of
from registry_proxy.replication.pushed import LIFETIME_SECONDS, PushedBlobs
from registry_proxy.store.open import open_store

APP, OTHER = RoutedRepository("main", Repository("team/app")), RoutedRepository("main", Repository("team/app2"))
ONE, TWO = digest_of(b"1"), digest_of(b"2")


async def test_a_push_is_known_to_every_node_for_a_day(tmp_path: Path) -> None:
    """It belongs to one repository and ends with a delete; expired entries are removed with the next push."""
    now = [1000.0]
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        here, elsewhere = PushedBlobs(store, lambda: now[0]), PushedBlobs(store, lambda: now[0])
        await here.note(APP, ONE)
        assert await elsewhere.has(APP, ONE)
        assert not await elsewhere.has(OTHER, ONE)
        assert not await elsewhere.has(APP, TWO)
        now[0] += LIFETIME_SECONDS + 1
        assert not await elsewhere.has(APP, ONE)
        await elsewhere.note(APP, TWO)
        assert [record.key for record in await store.list(Table.PUSHED_BLOBS)] == [f"{APP}|{TWO}"]
        await here.note(APP, TWO)
        await here.forget(APP, TWO)
        await here.forget(APP, TWO)
        assert not await elsewhere.has(APP, TWO)
