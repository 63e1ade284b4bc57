"""The cache directory may be deleted: data that must outlive it lies beside it, and other losses are reported.

Reports: "we deleted the cache as the manual says, and 90 days of audit log were gone; `audit verify` said as written".
"""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from registry_proxy.cache.layout import CacheMoveError, CachePaths, prepare_cache, read_node_id
from tests.conftest import StartProxy
from tests.support.product import Image, Proxy, User, make_image, random_bytes
from tests.support.servers import Server, wait_until

NOWHERE = Server([], 1, Path())


def names(directory: Path) -> list[str]:
    """Return the paths of the files below a directory."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def restarted_without(proxy: Proxy, *directories: Path) -> None:
    """Stop a node, delete some of its directories, start it again."""
    proxy.stop()
    for directory in directories:
        shutil.rmtree(directory)
    proxy.start()


def test_the_audit_log_outlives_the_cache(start_proxy: StartProxy) -> None:
    """With the cache deleted, the log is whole, the node has the same id, and earlier events are found."""
    proxy = start_proxy([NOWHERE])
    proxy.add_user("ann")
    node_id = read_node_id(CachePaths(str(proxy.cache)))
    restarted_without(proxy, proxy.cache)
    assert read_node_id(CachePaths(str(proxy.cache))) == node_id
    assert "/admin/v1/users/ann" in proxy.command("audit", "search", "--action", "users.put").stdout
    verified = proxy.command("audit", "verify")
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize("also_cache", [False, True], ids=["the log", "the log and the cache"])
def test_a_log_that_is_gone_is_named(start_proxy: StartProxy, also_cache: bool) -> None:  # noqa: FBT001 - a parameter
    """`audit verify` names every signed head without a file, and ends with 1, also when the node's id is gone."""
    proxy = start_proxy([NOWHERE], {"workers": 2})
    proxy.stop()
    signed = {path.name.partition("-")[0] for path in proxy.audit.glob("[0-9]*.jsonl")}
    assert len(signed) == 2
    shutil.rmtree(proxy.audit)
    if also_cache:
        shutil.rmtree(proxy.cache)
    proxy.start()
    verified = proxy.command("audit", "verify")
    assert verified.exit_code == 1
    for process in signed:
        assert re.search(rf"^(process {process}[ :]|{process}-\d+\.jsonl)", verified.stderr, re.MULTILINE)


NODE_ID = "2f1d2c1e-7f0b-4f7e-9d57-0d9be2f0a001"


def _whole(cache: Path) -> None:
    (cache / "audit").mkdir(parents=True)
    for name in ("0-000000000001.jsonl", "decisions-0.jsonl"):
        (cache / "audit" / name).write_text(name)
    (cache / "pins").mkdir()
    (cache / "pins" / f"sha256-{'a' * 64}").touch()
    (cache / "node-id").write_text(NODE_ID)
    (cache / "schema").write_text("1\n")


def _half_moved(cache: Path) -> None:
    _whole(cache)
    kept = cache.with_name("cache.audit")
    kept.mkdir()
    shutil.move(cache / "audit" / "decisions-0.jsonl", kept)
    shutil.copy(cache / "audit" / "0-000000000001.jsonl", kept)
    (kept / "0-000000000001.jsonl.0123456789abcdef").touch()


@pytest.mark.parametrize("make", [_whole, _half_moved])
def test_files_of_an_older_release_inside_are_moved(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Log, id and pins of a cache of 0.1.0 are beside it after a start, also after one that was cut off."""
    cache, kept = tmp_path / "cache", tmp_path / "cache.audit"
    make(cache)
    prepare_cache(cache)
    expected = ["0-000000000001.jsonl", "decisions-0.jsonl", "node-id", f"pins/sha256-{'a' * 64}"]
    assert [name for name in names(kept) if len(name.split(".")) < 3] == expected
    assert (kept / "0-000000000001.jsonl").read_text() == "0-000000000001.jsonl"
    assert (kept / "node-id").read_text() == NODE_ID
    assert not (cache / "audit").exists()
    assert not (cache / "pins").exists()
    assert (cache / "schema").read_text() == "2\n"


def test_a_place_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    """Where nothing can lie beside the cache, the start names the directory to make, and nothing is lost."""
    cache = tmp_path / "cache"
    _whole(cache)
    (tmp_path / "cache.audit").touch()
    with pytest.raises(CacheMoveError, match=r"cache\.audit: File exists; the service keeps in .* make that directory"):
        prepare_cache(cache)
    assert (cache / "audit" / "0-000000000001.jsonl").exists()
    assert (cache / "schema").read_text() == "1\n"


def pinned_bytes(proxy: Proxy) -> float:
    """Return the metric that the documents name for a look before the cache is deleted."""
    return proxy.metric("registry_proxy_cache_bytes", state="pinned")


def test_pinned_bytes_are_reported_at_every_scrape(start_proxy: StartProxy, registries: list[Server]) -> None:
    """While a replica misses a push the gauge has its bytes: immediately, after a reload, and after a crash."""
    proxy = start_proxy(registries, {"workers": 2})
    ann = proxy.add_user("ann", pull_push=["team/**"])
    assert pinned_bytes(proxy) == 0
    registries[1].stop()
    image = make_image(random_bytes(10_000))
    ann.push("team/app", "1", image)
    size_bytes = len(image.manifest) + sum(map(len, image.blobs.values()))
    assert pinned_bytes(proxy) == size_bytes
    assert proxy.command("reload").exit_code == 0
    assert pinned_bytes(proxy) == size_bytes
    proxy.kill_everything()
    proxy.start()
    assert pinned_bytes(proxy) == size_bytes
    registries[1].start()
    wait_until(lambda: pinned_bytes(proxy) == 0, "the replica has it")


class Pushes:
    """A client that pushes small images one after the other, and records the acknowledged ones."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._ending = threading.Event()
        self.acknowledged: dict[str, Image] = {}
        self.statuses: set[int] = set()

    def _run(self) -> None:
        number = 0
        while not self._ending.is_set():
            number += 1
            image = make_image(random_bytes(1000))
            try:
                answers = [self._user.push_blob("team/app", blob) for blob in image.blobs.values()]
                if all(answer.status_code == 201 for answer in answers):
                    answers.append(self._user.push_manifest("team/app", f"v{number}", image))
            except httpx.TransportError:
                continue
            self.statuses |= {answer.status_code for answer in answers}
            if len(answers) > len(image.blobs) and answers[-1].status_code == 201:
                self.acknowledged[f"v{number}"] = image

    @contextmanager
    def running(self) -> Iterator[None]:
        """Push for the length of a with block."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ending.set()
            thread.join()

    def wait_for(self, count: int) -> None:
        """Wait until a number of further images are acknowledged."""
        before = len(self.acknowledged)
        wait_until(lambda: len(self.acknowledged) >= before + count, f"{count} pushes")


def holds(registry: Server, image: Image) -> bool:
    """Tell whether a registry has a whole image."""
    paths = [f"manifests/{image.digest}", *(f"blobs/{digest}" for digest in image.blobs)]
    urls = [f"{registry.url}/v2/team/app/{path}" for path in paths]
    return all(httpx.head(url, headers={"Accept": image.media_type}, verify=False).status_code == 200 for url in urls)


def warnings(proxy: Proxy) -> str:
    """Return the warnings of /readyz."""
    return " ".join(httpx.get(f"{proxy.admin_url}/readyz", timeout=30, verify=False).json()["warnings"])


def lost_copies(proxy: Proxy) -> float:
    """Return the number of lost contents that the cache kept for a replica."""
    return proxy.metric("registry_proxy_lost_copies")


def check_nothing_is_lost(proxy: Proxy, pushes: Pushes, registries: list[Server]) -> None:
    """Restart the replica: then it holds every acknowledged image, and no copy counts as lost."""
    registries[1].start()
    for image in pushes.acknowledged.values():
        wait_until(lambda image=image: holds(registries[1], image), "the replica has it", 90)  # type: ignore[misc]
    wait_until(lambda: lost_copies(proxy) == 0, "no copy counts as lost", 90)
    assert "are gone from it" not in warnings(proxy)


def test_a_cache_deleted_after_a_crash_loses_nothing(start_proxy: StartProxy, registries: list[Server]) -> None:
    """A replica is away, the node dies under load, its cache is deleted: reported, and repaired from the other."""
    proxy = start_proxy(registries, {"workers": 2})
    pushes = Pushes(proxy.add_user("ann", pull_push=["team/**"]))
    registries[1].stop()
    with pushes.running():
        pushes.wait_for(5)
        proxy.kill_everything()
    shutil.rmtree(proxy.cache)
    proxy.start()
    wait_until(lambda: lost_copies(proxy) >= 3 * 5, "each manifest and blob counts")
    replica = f"127.0.0.1:{registries[1].port}"
    assert f"that the cache kept for replica {replica} are gone from it" in warnings(proxy)
    assert f"are only on 127.0.0.1:{registries[0].port}" in warnings(proxy)
    assert "are gone from it" in proxy.command("replica", "list").stderr
    assert "are gone from it" in proxy.log_text()
    check_nothing_is_lost(proxy, pushes, registries)


def test_a_cache_deleted_under_a_running_node_loses_nothing(start_proxy: StartProxy, registries: list[Server]) -> None:
    """Pushes that need the deleted cache are refused with 503; earlier acknowledged ones are not lost."""
    proxy = start_proxy(registries)
    pushes = Pushes(proxy.add_user("ann", pull_push=["team/**"]))
    registries[1].stop()
    with pushes.running():
        pushes.wait_for(5)
        shutil.rmtree(proxy.cache, ignore_errors=True)
        wait_until(lambda: 503 in pushes.statuses, "a push is refused")
    assert pushes.statuses <= {201, 404, 503}  # 404: an upload whose beginning was deleted, which is begun again
    restarted_without(proxy, *([proxy.cache] if proxy.cache.exists() else []))  # files written meanwhile
    wait_until(lambda: lost_copies(proxy) >= 3 * 5, "each manifest and blob counts")
    check_nothing_is_lost(proxy, pushes, registries)
