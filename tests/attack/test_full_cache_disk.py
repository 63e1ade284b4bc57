"""A full cache disk costs speed, never a push that all replicas can take (docs/availability.md)."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import require_program
from tests.support.copied import Copies
from tests.support.disks import MIB, Disk, mounted_disk
from tests.support.product import Proxy, User, digest_of, make_image, notice_down, proxy_server, random_bytes
from tests.support.servers import Server, docker_registry, running, wait_until

REPOSITORY = "team/app"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """Mount a file system of 32 MiB, which the tests fill."""
    with mounted_disk(tmp_path_factory.mktemp("full"), 32) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Start two registries."""
    require_program("docker-registry")
    root = tmp_path_factory.mktemp("registries")
    with running(docker_registry(root / "first")) as first, running(docker_registry(root / "second")) as second:
        yield [first, second]


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, copies: Copies, disk: Disk, registries: list[Server]
) -> Iterator[Proxy]:
    """Start a proxy of two workers whose cache lies on the disk."""
    extra = {"workers": 2, "cache": {"path": str(disk.path / "cache"), "max_size": "1GiB", "min_free": "1MiB"}}
    proxy = proxy_server(tmp_path_factory.mktemp("proxy"), registries, extra, copies=copies)
    with running(proxy):
        yield proxy


@pytest.fixture
def ann(proxy: Proxy, disk: Disk) -> Iterator[User]:
    """Return a user, with a disk that is empty except for the cache, before and after the test."""
    yield proxy.add_user("ann", pull_push=["team/**"])
    (disk.path / "ballast").unlink(missing_ok=True)


def holders(registries: list[Server], digest: str) -> list[int]:
    """Return the status of each registry's answer for a blob."""
    return [httpx.head(f"{each.url}/v2/{REPOSITORY}/blobs/{digest}").status_code for each in registries]


def pieces(blob: bytes) -> Iterator[bytes]:
    """Give a body in pieces of 100 kB."""
    for start in range(0, len(blob), 100_000):
        yield blob[start : start + 100_000]


@pytest.mark.parametrize("size_bytes", [0, 1000, 5 * MIB])
def test_a_push_goes_through_beside_a_full_disk(
    ann: User, disk: Disk, registries: list[Server], size_bytes: int
) -> None:
    """With no byte free an image is accepted, stored at both registries, and can be pulled."""
    disk.fill()
    image = make_image(random_bytes(size_bytes), label=str(size_bytes))
    ann.push(REPOSITORY, "full", image)
    for digest in image.blobs:
        assert holders(registries, digest) == [200, 200]
    assert ann.pull(REPOSITORY, "full").digest == image.digest


def test_a_disk_that_fills_in_mid_upload_fails_no_push(ann: User, disk: Disk, registries: list[Server]) -> None:
    """The bytes on the disk and those that no longer fit become one blob, in one request and in several."""
    blob = random_bytes(48 * MIB)  # more than the whole disk
    assert ann.push_blob(REPOSITORY, pieces(blob), digest_of(blob)).status_code == 201
    assert holders(registries, digest_of(blob)) == [200, 200]
    blob = random_bytes(6 * MIB)
    with ann.client(REPOSITORY, "pull,push") as client:
        answer = client.post("/blobs/uploads/")
        for start in range(0, len(blob), 2 * MIB):
            location = str(httpx.URL(ann.base_url).join(answer.headers["Location"]))
            answer = client.patch(location, content=blob[start : start + 2 * MIB])
            assert answer.status_code == 202, answer.text
            if start == 2 * MIB:
                disk.fill()
        location = str(httpx.URL(ann.base_url).join(answer.headers["Location"]))
        assert client.put(httpx.URL(location).copy_merge_params({"digest": digest_of(blob)})).status_code == 201
    assert holders(registries, digest_of(blob)) == [200, 200]


def test_a_wrong_digest_is_refused_beside_a_full_disk(ann: User, disk: Disk, registries: list[Server]) -> None:
    """Without a copy of its own the proxy still compares: 400, and neither registry holds anything."""
    disk.fill()
    wrong = digest_of(b"something else")
    assert ann.push_blob(REPOSITORY, random_bytes(3 * MIB), wrong).status_code == 400
    assert holders(registries, wrong) == [404, 404]


def test_a_push_that_a_replica_misses_needs_the_disk(
    ann: User, proxy: Proxy, disk: Disk, registries: list[Server]
) -> None:
    """With one registry down and no room for the copy that counts as the second: 503; with room again 201."""
    _, second = registries
    blob = random_bytes(3 * MIB)
    second.stop()
    try:
        notice_down(ann, REPOSITORY)
        shutil.rmtree(disk.path / "cache" / "blobs" / "sha256", ignore_errors=True)
        disk.fill()
        refused = ann.push_blob(REPOSITORY, blob)
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (503, "UNAVAILABLE")
        (disk.path / "ballast").unlink()
        assert ann.push_blob(REPOSITORY, blob).status_code == 201
    finally:
        second.start()
    wait_until(lambda: holders(registries, digest_of(blob)) == [200, 200], "it is repaired")


def test_nothing_is_left_on_the_disk(proxy: Proxy, disk: Disk) -> None:
    """After all of these pushes no part of an upload stays on the disk."""
    cache = Path(disk.path / "cache")
    left = [*(cache / "spool").rglob("*.part"), *(cache / "fills").iterdir()]
    assert left == []
    assert not proxy.has_ended
