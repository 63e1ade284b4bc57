"""A node's directory in memory: its own, empty at the start, and removed at the end."""

import os
from pathlib import Path

import pytest

from registry_proxy.cache.layout import CachePaths, prepare_cache, read_node_id
from registry_proxy.config.model import Settings
from registry_proxy.node import memory
from registry_proxy.node.memory import NodeMemory, claim_memory


@pytest.fixture(autouse=True)
def _shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the machine's directory by another one."""
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(memory, "_SHARED_MEMORY", str(tmp_path / "shm"))


@pytest.fixture
def cache(tmp_path: Path) -> str:
    """Make a cache; return its path."""
    path = str(tmp_path / "cache")
    prepare_cache(path)
    return path


def claimed(cache: str) -> NodeMemory:
    """Return the memory of the node with that cache."""
    made = claim_memory(cache, 1)
    assert made is not None
    return made


def test_a_node_finds_what_it_left_and_removes_it(cache: str) -> None:
    """After a kill the same directory is used again, empty; an orderly end removes it."""
    first = claimed(cache)
    Path(first.metrics).mkdir()
    os.close(first._lock)  # as after a kill of its process
    again = claimed(cache)
    assert again.path == first.path
    assert os.listdir(again.path) == []
    again.close()
    assert not Path(again.path).exists()


def test_nobody_takes_what_another_node_has(cache: str) -> None:
    """Two nodes that see one memory and one cache never share it."""
    first = claimed(cache)
    assert claim_memory(cache, 1) is None
    first.close()


@pytest.mark.parametrize("kind", ["open to others", "a link", "too small"])
def test_memory_that_cannot_be_used_is_not(cache: str, kind: str, tmp_path: Path) -> None:
    """A directory that others may write to, a link, and one with too little room are not used."""
    first = claimed(cache)
    path = Path(first.path)
    first.close()
    if kind == "open to others":
        path.mkdir()
        path.chmod(0o777)
    elif kind == "a link":
        path.symlink_to(tmp_path)
    assert claim_memory(cache, 1 << 40 if kind == "too small" else 1) is None
    assert (tmp_path / "cache").is_dir()


def test_a_cache_that_stands_in_is_that_of_the_same_node(cache: str) -> None:
    """The stand-in is small, empty and ready, has the node's id, and the audit log stays where it is."""
    made = claimed(cache)
    made.remember_node(cache)
    upstreams = {"main": {"replicas": [{"url": "http://127.0.0.1:1"}]}}
    routes = [{"prefix": "", "upstream": "main"}]
    settings = Settings.model_validate({"cache": {"path": cache}, "upstreams": upstreams, "routes": routes})
    other = made.stand_in(settings, 2)
    assert other.cache.path == made.cache(2)
    assert other.cache.max_size_bytes <= 256 * 1024 * 1024
    assert other.audit_path == settings.audit_path
    assert read_node_id(CachePaths(other.cache.path)) == read_node_id(CachePaths(cache))
    made.close()
