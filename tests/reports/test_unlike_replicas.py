"""A final refusal by one of two unlike replicas keeps only that content from it.

Reports: BuildKit's cache at distribution 3, beside a registry that accepts it: a replica is behind for ever, with a
warning every five seconds.
"""

import json
from asyncio import to_thread
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Tag, digest_of
from registry_proxy.repair.exceptions import Exceptions
from tests.conftest import StartProxy, StartRegistry
from tests.path.test_repair import is_up, pending
from tests.repair.test_repair import Workshop, push, same
from tests.repair.test_verify import compare
from tests.support.fakes.images import build_cache, image, index
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench, bench
from tests.support.product import Image, Proxy, make_image, notice_down, random_bytes
from tests.support.refusal import refused
from tests.support.servers import Server, wait_until

LATEST = Tag("latest")


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Bench]:
    """Two replicas in memory."""
    async with bench(tmp_path) as under_test:
        yield under_test


def refusal(code: ErrorCode = ErrorCode.MANIFEST_INVALID, status: int | None = None) -> RegistryError:
    """Return a registry's refusal."""
    return RegistryError(code, "the registry does not take it", status=status)


async def test_a_push_that_one_refuses_leaves_it_current(setting: Bench) -> None:
    """The other one accepts it, nothing is pending or pinned, and the replica counts for all but this."""
    setting.b.errors["put_manifest"] = refusal(ErrorCode.MANIFEST_BLOB_UNKNOWN)
    cache = await push(setting, build_cache(b"one"), "latest")
    setting.b.errors.clear()
    marks = await setting.under_test.journal.current.marks()
    assert (marks.pending("b", "main"), marks.refused("b", "main"), marks.refused("a", "main")) == (0, 2, 0)
    assert marks.refuses("b", ROUTED, cache.digest)
    assert (marks.misses_tag("b", ROUTED, LATEST), marks.misses_any("b", ROUTED)) == (True, False)
    assert setting.spool.pins == set()
    setting.b.requests.clear()
    workshop = Workshop(setting)
    assert await workshop.repair()
    assert setting.b.requests == []  # there are no endless retries
    comparison = await compare(setting)
    assert (comparison.error, comparison.differing, comparison.lost) == ("", 0, 0)
    assert [one.refused for one in await Exceptions(setting.under_test.store).list("main")] == [
        {"b": "it answers 400 MANIFEST_BLOB_UNKNOWN although it has all that the manifest names"}
    ] * 2


async def test_a_replica_that_was_away_is_current_but_for_what_it_refuses(
    setting: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The repair tries it once, logs the reason, and the rest arrives."""
    setting.replicas.down.add("b")
    cache, app = build_cache(b"one"), await push(setting, image(b"layer"), "app")
    await push(setting, cache, "latest")
    put = setting.b.put_manifest

    async def picky(repository: str, tag_or_digest: object, manifest: object) -> None:
        if getattr(manifest, "body", b"") == cache.manifest:
            raise refusal()
        await put(repository, tag_or_digest, manifest)  # type: ignore[arg-type]  # handed on

    setting.b.put_manifest = picky  # type: ignore[method-assign]  # of this replica alone
    workshop = Workshop(setting)
    assert await workshop.repair()
    marks = await setting.under_test.journal.current.marks()
    assert (marks.pending("b", "main"), marks.refused("b", "main")) == (0, 2)
    assert setting.b.tags == {(REPOSITORY, "app"): app.digest}
    assert workshop.counts() == {"copied": 6, "refused": 2}
    assert len([record for record in caplog.records if "cannot have" in record.getMessage()]) == 2
    assert setting.spool.pins == set()


@pytest.mark.parametrize("status", [401, 403, 404, 405, 408, 409, 429, 500, 502])
async def test_a_refusal_that_may_pass_is_not_final(setting: Bench, status: int) -> None:
    """It stays pending: credentials, rights, limits, maintenance and faults come to an end."""
    setting.b.errors["put_manifest"] = refusal(ErrorCode.DENIED, status)
    await push(setting, image(b"layer"), "latest")
    assert not await Workshop(setting).repair()
    marks = await setting.under_test.journal.current.marks()
    assert (marks.pending("b", "main"), marks.refused("b", "main")) == (2, 0)


@pytest.mark.parametrize("status", [400, 413, 415, 422])
async def test_a_refusal_for_a_missing_blob_is_not_final(setting: Bench, status: int) -> None:
    """A replica that misses a blob that others have is sent the blob, whatever its error; then it refuses nothing."""
    app = image(b"layer")
    for blob in app.blobs:
        await setting.under_test.upload(blob)
    setting.b.blobs.clear()
    setting.holdings.entries.clear()  # nothing of it can be sent during the push
    setting.b.errors["put_manifest"] = refusal(status=status)
    await setting.under_test.put(LATEST, app.manifest, app.media_type)
    marks = await setting.under_test.journal.current.marks()
    assert (marks.pending("b", "main"), marks.refused("b", "main")) == (2, 0)
    setting.b.errors.clear()
    assert await Workshop(setting).repair()
    assert same(setting)


async def test_an_index_over_what_a_replica_refuses_is_refused(setting: Bench) -> None:
    """Its child never arrives there: the index is not pending for ever, after a push and after a repair."""
    child = image(b"layer")
    for blob in child.blobs:
        await setting.under_test.upload(blob)
    setting.b.errors["put_manifest"] = refusal()
    await setting.under_test.put(child.digest, child.manifest, child.media_type)
    setting.b.errors.clear()
    whole = index(child)
    setting.holdings.entries.clear()  # else the child would be healed
    await setting.under_test.put(LATEST, whole.manifest, whole.media_type)
    marks = await setting.under_test.journal.current.marks()
    assert (marks.pending("b", "main"), marks.refused("b", "main")) == (0, 3)


async def test_it_counts_against_the_quorum(setting: Bench) -> None:
    """Where the quorum can never be reached the client gets the refusal, not advice to try again."""
    setting.replicas.write_quorum = 2
    setting.b.errors["put_manifest"] = refusal()
    app = image(b"layer")
    for blob in app.blobs:
        await setting.under_test.upload(blob)
    error = await refused(setting.under_test.put(LATEST, app.manifest, app.media_type))
    assert (error.code, error.status) == (ErrorCode.MANIFEST_INVALID, 400)
    setting.b.errors["put_manifest"] = UpstreamUnavailableError("down")
    assert (await refused(setting.under_test.put(LATEST, app.manifest, app.media_type))).status == 503


async def test_a_later_push_and_a_retry_try_it_again(setting: Bench) -> None:
    """A registry that accepts it meanwhile gets it with the next push, or when an operator asks for a retry."""
    setting.b.errors["put_manifest"] = refusal()
    app = await push(setting, image(b"layer"), "latest")
    workshop = Workshop(setting)
    await workshop.repairer.retry()
    assert await workshop.repair()
    assert (await setting.under_test.journal.current.marks()).refused("b", "main") == 2
    setting.b.errors.clear()
    await workshop.repairer.retry()
    assert await workshop.repair()
    assert same(setting)
    assert await setting.under_test.intents() == {}
    setting.b.errors["put_manifest"] = refusal()
    await push(setting, image(b"other"), "latest")
    assert (await setting.under_test.journal.current.marks()).refused("b", "main") == 2
    setting.b.errors.clear()
    await setting.under_test.put(LATEST, app.manifest, app.media_type)
    marks = await setting.under_test.journal.current.marks()
    assert (marks.refused("b", "main"), marks.misses_tag("b", ROUTED, LATEST)) == (1, False)


async def test_during_a_push_a_refused_tag_is_not_believed(setting: Bench) -> None:
    """The replica has an older state of the tag until it accepts a newer one, also while that runs or fails."""
    await push(setting, image(b"old"), "latest")
    setting.b.errors["put_manifest"] = refusal()
    app = await push(setting, image(b"new"), "latest")
    content = (app.digest, app.media_type)
    key = next(one.key for one in await Exceptions(setting.under_test.store).list("main") if one.key.name == LATEST)
    write = await setting.under_test.journal.begin({key: content}, ["a", "b"])
    assert (await setting.under_test.journal.current.marks()).misses_tag("b", ROUTED, LATEST)
    await setting.under_test.journal.withdraw(write)
    assert (await setting.under_test.journal.current.marks()).misses_tag("b", ROUTED, LATEST)


async def test_a_deletion_ends_it(setting: Bench) -> None:
    """The manifest is gone everywhere; a replica with an older state of its tag is behind until that is gone."""
    await push(setting, image(b"old"), "latest")
    setting.b.errors["put_manifest"] = refusal()
    app = await push(setting, image(b"new"), "latest")
    setting.b.errors.clear()
    await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
    marks = await setting.under_test.journal.current.marks()
    assert (marks.refused("b", "main"), marks.misses_tag("b", ROUTED, LATEST)) == (0, True)
    assert await Workshop(setting).repair()
    assert setting.b.tags == {}
    assert await setting.under_test.intents() == {}


async def test_a_blob_is_refused_for_its_size_and_not_for_its_bytes(setting: Bench) -> None:
    """413 is final; a 400 may be about bytes that were cut on their way, and is tried again."""
    for status, is_final in ((400, False), (413, True)):
        content = b"blob %d" % status
        setting.b.errors = {"push_blob": refusal(ErrorCode.DIGEST_INVALID, status), "commit_upload": refusal()}
        await setting.under_test.upload(content)
        assert await Workshop(setting).repair() is is_final
        marks = await setting.under_test.journal.current.marks()
        assert marks.refuses("b", ROUTED, digest_of(content)) is is_final
        setting.b.errors = {}
        await setting.under_test.upload(content)


# ---------------------------------------------------------------- the running product


async def test_two_registries_that_differ_in_what_they_take(
    start_registry: StartRegistry, start_proxy: StartProxy, tmp_path: Path
) -> None:
    """An image that only one registry accepts is pulled from it; the other one is up, shown, and not trusted."""
    liberal = start_registry("liberal")
    async with FakeRegistry() as picky:
        strict = Server([], picky.port, tmp_path / "none")
        odd = make_image(random_bytes(100))
        picky.inject(Fault(f"/manifests/(odd|{odd.digest})", "PUT", status=400))
        await to_thread(_look_at_unlike, await to_thread(start_proxy, [liberal, strict]), liberal, strict, odd)


def _look_at_unlike(proxy: Proxy, liberal: Server, strict: Server, odd: Image) -> None:
    user = proxy.add_user("ann", pull_push=["team/**"])
    user.push("team/app", "plain", make_image(random_bytes(100)))
    user.push("team/app", "odd", odd)
    strict_name = f"127.0.0.1:{strict.port}"
    wait_until(lambda: proxy.metric("registry_proxy_replica_refused", replica=strict_name) == 2, "it is counted")
    assert (is_up(proxy, strict), pending(proxy, strict)) == (True, 0)
    assert "cannot take 2" in proxy.command("replica", "list").stdout
    verified = proxy.command("replica", "verify")
    assert (verified.exit_code, "2 contents that a replica refuses" in verified.stderr) == (0, True), verified.output
    listed = proxy.command("replica", "exceptions", "--json")
    assert {one["name"] for one in json.loads(listed.stdout)["main"]} == {"odd", odd.digest}
    for _ in range(10):
        assert user.head("team/app", "manifests/odd").status_code == 200
    assert proxy.command("replica", "dismiss", "main", "--name", "odd").exit_code == 0
    assert "cannot take 1" in proxy.command("replica", "list").stdout
    assert proxy.command("replica", "repair").exit_code == 0
    assert "cannot take 2" in proxy.command("replica", "list").stdout
    assert proxy.log_text().count("cannot have") == 3  # once for the push, once for each key when it was tried again
    liberal.stop(9)
    notice_down(user, "team/app")
    (proxy.cache / "repositories").rename(proxy.root / "lost")
    assert user.get("team/app", "manifests/plain").status_code == 200
    assert user.get("team/app", f"manifests/{odd.digest}").status_code == 503
    assert user.get("team/app", "manifests/absent").status_code == 503
