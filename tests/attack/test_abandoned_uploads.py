"""Uploads that are begun and never ended cost their owner, not the cache, the pushes or the disks of others."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import require_program
from tests.support.copied import Copies
from tests.support.disks import MIB
from tests.support.product import Proxy, User, digest_of, make_image, proxy_server, random_bytes
from tests.support.servers import docker_registry, running

MAX_SIZE = 64 * MIB
LAYER = 4 * MIB


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[Proxy]:
    """Start a proxy with a cache of 64 MiB before a registry; each test has users of its own."""
    require_program("docker-registry")
    root = tmp_path_factory.mktemp("abandoned")
    with running(docker_registry(root / "registry")) as registry:
        extra = {"workers": 2, "cache": {"max_size": str(MAX_SIZE), "min_free": "0"}}
        proxy = proxy_server(root / "proxy", [registry], extra, copies=copies)
        with running(proxy):
            yield proxy


def spooled(proxy: Proxy) -> list[Path]:
    """Return the files of unfinished uploads."""
    return [path for path in (proxy.cache / "spool").rglob("*.part") if path.is_file()]


def begin(user: User, repository: str, blob: bytes) -> str:
    """Send the bytes of an upload and leave it; return its Location."""
    with user.client(repository, "pull,push") as client:
        opened = client.post("/blobs/uploads/")
        location = str(httpx.URL(user.base_url).join(opened.headers["Location"]))
        answer = client.patch(location, content=blob)
        assert answer.status_code == 202, answer.text
        return str(httpx.URL(user.base_url).join(answer.headers["Location"]))


def commit(user: User, repository: str, location: str, blob: bytes) -> int:
    """Commit an upload; return the status."""
    with user.client(repository, "pull,push") as client:
        return client.put(httpx.URL(location).copy_merge_params({"digest": digest_of(blob)})).status_code


def age(part: Path, seconds: float) -> None:
    """Make an upload look as if it had not been written to for a while."""
    then = time.time() - seconds
    for path in part.parent.glob(f"{part.stem}.*"):
        os.utime(path, (then, then))


def test_unfinished_uploads_leave_the_cache_of_others(proxy: Proxy) -> None:
    """One user who begins 80 MiB of uploads takes at most a quarter of the cache; others keep their hits."""
    good, bad = proxy.add_user("good", pull_push=["team/**"]), proxy.add_user("bad", pull_push=["home/bad/**"])
    image = make_image(*(random_bytes(LAYER) for _ in range(5)), label="hot")
    good.push("team/app", "hot", image)
    good.pull("team/app", "hot")
    blobs = [random_bytes(20 * MIB) for _ in range(4)]
    locations = [begin(bad, "home/bad/x", blob) for blob in blobs]
    assert sum(path.stat().st_size for path in spooled(proxy)) <= MAX_SIZE // 4
    results = [good.get("team/app", f"blobs/{digest}").headers["X-Cache"] for digest in image.blobs]
    assert results == ["HIT"] * len(results)
    cold = make_image(random_bytes(LAYER), label="cold")
    good.push("team/app", "cold", cold)  # pushes are cached too: caching is not off
    assert {good.get("team/app", f"blobs/{digest}").headers["X-Cache"] for digest in cold.blobs} == {"HIT"}
    # An upload without room on our disk goes on without it.
    assert [commit(bad, "home/bad/x", *pair) for pair in zip(locations, blobs, strict=True)] == [201] * 4


def test_the_oldest_that_was_abandoned_makes_room(proxy: Proxy) -> None:
    """Where a subject's share is used up, its oldest abandoned upload gives way to its newest."""
    user = proxy.add_user("old", pull_push=["home/old/**"])
    blobs = [random_bytes(LAYER) for _ in range(5)]
    locations = []
    for number, blob in enumerate(blobs):
        before = set(spooled(proxy))
        locations.append(begin(user, "home/old/x", blob))
        (part,) = set(spooled(proxy)) - before
        age(part, 4600 - 1000 * number)
    statuses = [commit(user, "home/old/x", *pair) for pair in zip(locations, blobs, strict=True)]
    assert statuses == [404, 201, 201, 201, 201]


def test_thousands_of_sessions_are_bounded(proxy: Proxy) -> None:
    """A subject has at most a thousand unfinished uploads; further ones have no file here, and still succeed."""
    user = proxy.add_user("many", pull_push=["home/many/**"])
    with user.client("home/many/x", "pull,push") as client:
        location = str(httpx.URL(user.base_url).join(client.post("/blobs/uploads/").headers["Location"]))
        answer = client.patch(location, content=b"x")
    (part,) = [path for path in spooled(proxy) if path.stat().st_size == 1]
    owner = part.name.partition("-")[0]
    for number in range(1000):
        part.with_name(f"{owner}-{number}.part").touch()
    location = begin(user, "home/many/x", b"one more")
    assert len([*part.parent.glob("*.part")]) == 1001
    assert commit(user, "home/many/x", location, b"one more") == 201
    location = str(httpx.URL(user.base_url).join(answer.headers["Location"]))
    assert commit(user, "home/many/x", location, b"x") == 201  # an upload begun before goes on
