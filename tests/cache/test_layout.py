"""The cache directory at the start of the service."""

import os
from pathlib import Path

import pytest

from registry_proxy.cache.layout import CacheMoveError, CachePaths, CacheSchemaError, prepare_cache, read_node_id
from registry_proxy.spool.spool import DiskSpool
from tests.cache.conftest import MakeCache
from tests.cache.test_disk import blob_file, put


async def test_leftovers_go_and_content_stays(make_cache: MakeCache, cache_path: Path) -> None:
    """A start removes unfinished work, keeps content and pins; an unreadable page makes it count the files."""
    cache = make_cache()
    _, one = await put(cache, 1000, 1)
    _, two = await put(cache, 2000, 2)
    DiskSpool(cache).pin(one)
    await cache.close()
    for name in (
        "fills/sha256-aa.part",
        "fills/sha256-aa.size",
        "uploads/s.part",
        "spool/00/o-s.part",
        "spool/00/o-s.note",
        "spool/00/o-t.note",
        "temp/1-2",
    ):
        (cache_path / name).parent.mkdir(exist_ok=True)
        (cache_path / name).write_bytes(b"x")
    blob_file(cache_path, two).unlink()
    (cache_path / "page").write_bytes(b"\xff" * 4096)
    prepare_cache(cache_path)
    assert [os.listdir(cache_path / name) for name in ("fills", "temp")] == [[], []]
    assert not (cache_path / "uploads").exists()
    assert sorted(os.listdir(cache_path / "spool" / "00")) == ["o-s.gone", "o-t.note"]
    again = make_cache()
    assert again.space.must_recount
    await again.recount()
    assert not again.space.must_recount
    stats = again.stats()
    assert (stats["committed_bytes"], stats["entries"], stats["pinned_bytes"]) == (1000, 1, 1000)


def test_preparing_twice_is_fine(cache_path: Path) -> None:
    """A second start finds everything unchanged."""
    prepare_cache(cache_path)
    assert (cache_path / "schema").read_text() == "2\n"


@pytest.mark.parametrize("schema", ["3\n", "photos\n", ""])
def test_a_newer_or_strange_directory_is_refused_untouched(cache_path: Path, schema: str) -> None:
    """A directory of a newer release is not swept, and the message says what to do."""
    (cache_path / "schema").write_text(schema)
    (cache_path / "fills" / "x.part").write_bytes(b"x")
    with pytest.raises(CacheSchemaError, match=str(cache_path)):
        prepare_cache(cache_path)
    assert os.listdir(cache_path / "fills") == ["x.part"]


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"not an id", b"\x00" * 36])
def test_a_damaged_node_id_comes_back_from_its_copy(cache_path: Path, damage: bytes) -> None:
    """One of the two files is enough for the node to keep its id; without either the start names both."""
    paths = CachePaths(str(cache_path))
    node_id, first, copy = read_node_id(paths), Path(paths.node_ids[0]), Path(paths.node_ids[1])
    for path in (first, copy):
        path.chmod(0o600)
        path.write_bytes(damage)
        prepare_cache(cache_path)
        assert first.read_text() == copy.read_text() == node_id
    first.write_bytes(damage)
    copy.write_bytes(damage)
    with pytest.raises(CacheMoveError) as caught:
        prepare_cache(cache_path)
    assert str(first) in str(caught.value)
    assert str(copy) in str(caught.value)
