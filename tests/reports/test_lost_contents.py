"""A content that no replica can serve is lost: reported and counted, skipped, and no reason to keep a replica out.

Reports: an index whose child was deleted (`crane delete`, `oras manifest delete` after two `oras attach`), an image
with a layer that a garbage collection took: a replica that was added or came back stayed behind for ever, because of
object.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import yaml

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import ContentKind
from registry_proxy.protocol.descriptor import OCI_INDEX
from registry_proxy.protocol.reference import Digest, Tag, digest_of
from registry_proxy.repair.exceptions import Exceptions
from tests.conftest import StartProxy, StartRegistry
from tests.path.test_repair import is_up, pending
from tests.repair.test_repair import Workshop, begin_and_die, push, same
from tests.repair.test_verify import compare, is_equal, make_newcomer, put_past
from tests.support.fakes.images import Parts, build_cache, image, index
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench, bench
from tests.support.product import Image, Proxy, User, make_image, random_bytes
from tests.support.product import digest_of as digest_of_bytes
from tests.support.servers import Server, wait_until

LATEST = Tag("latest")
REPO = "team/app"


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Bench]:
    """Two replicas in memory."""
    async with bench(tmp_path) as under_test:
        yield under_test


def key_of(parts: Parts) -> IntentKey:
    """Return the key of a manifest."""
    return IntentKey(ROUTED, IntentKind.MANIFEST, str(parts.digest))


def blob_key(digest: Digest) -> IntentKey:
    """Return the key of a blob."""
    return IntentKey(ROUTED, IntentKind.BLOB, str(digest))


async def lost_keys(setting: Bench) -> set[IntentKey]:
    """Return the contents that are on record as lost."""
    return set((await setting.under_test.journal.current.marks()).lost_keys)


async def push_an_index_with_a_lost_child(setting: Bench, *, is_cached: bool = False) -> tuple[Parts, Parts, Parts]:
    """Push an index of two children, one of which both replicas then lose; return index, child, lost child."""
    kept, gone = await push(setting, image(b"kept")), await push(setting, image(b"gone", label="gone"))
    both = await push(setting, index(kept, gone), "latest")
    for replica in (setting.a, setting.b):
        del replica.manifests[REPOSITORY, gone.digest]
    if not is_cached:
        setting.holdings.end(ROUTED, ContentKind.MANIFEST, gone.digest)
    return both, kept, gone


async def test_a_lost_child_keeps_no_newcomer_out(setting: Bench) -> None:
    """It gets everything else, is a member then, and does not answer for the index that it cannot have."""
    both, kept, gone = await push_an_index_with_a_lost_child(setting)
    await push(setting, image(b"other"), "other")
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    await make_newcomer(setting)
    assert await Workshop(setting).repair()
    marks = await setting.under_test.journal.current.marks()
    assert (marks.is_newcomer("main", "b"), marks.pending("b", "main")) == (False, 0)
    assert set(marks.lost_keys) == {key_of(gone)}
    assert (REPOSITORY, kept.digest) in setting.b.manifests
    assert (REPOSITORY, "other") in setting.b.tags
    assert set(setting.b.blobs) <= set(setting.a.blobs)
    # The index is refused without its child: b is not trusted about it, and about all else it is.
    assert marks.refuses("b", ROUTED, both.digest)
    assert marks.misses_tag("b", ROUTED, LATEST)
    assert not marks.misses_any("b", ROUTED)
    assert marks.refused("b", "main") == 2


async def test_a_lost_layer_keeps_no_newcomer_out(setting: Bench) -> None:
    """The image is copied nowhere, its other layers and all other images are."""
    app = await push(setting, image(b"layer", b"gone"), "latest")
    for replica in (setting.a, setting.b):
        del replica.blobs[REPOSITORY, digest_of(b"gone")]
    setting.holdings.end(ROUTED, ContentKind.BLOB, digest_of(b"gone"))
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    await make_newcomer(setting)
    assert await Workshop(setting).repair()
    marks = await setting.under_test.journal.current.marks()
    assert not marks.is_newcomer("main", "b")
    assert set(marks.lost_keys) == {blob_key(digest_of(b"gone"))}
    assert marks.refuses("b", ROUTED, app.digest)
    assert (REPOSITORY, digest_of(b"layer")) in setting.b.blobs


async def test_a_lost_grandchild_keeps_no_newcomer_out(setting: Bench) -> None:
    """An index of an index of a lost image is refused with it, under each of its tags."""
    inner, kept, gone = await push_an_index_with_a_lost_child(setting)
    outer = await push(setting, index(inner, kept), "outer", "again")
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    await make_newcomer(setting)
    assert await Workshop(setting).repair()
    marks = await setting.under_test.journal.current.marks()
    assert (marks.is_newcomer("main", "b"), set(marks.lost_keys)) == (False, {key_of(gone)})
    assert marks.refuses("b", ROUTED, inner.digest)
    assert marks.refuses("b", ROUTED, outer.digest)
    assert marks.refused("b", "main") == 5
    assert set(setting.b.manifests) == {(REPOSITORY, kept.digest)}


async def test_a_manifest_that_nobody_can_read_ends_no_walk(setting: Bench) -> None:
    """An unreadable manifest put past the proxy is copied where it is accepted; its references are unknown."""
    odd = Parts(b"{}", ())
    put_past(setting.a, odd, "odd")
    app = put_past(setting.a, image(b"layer"), "app")
    comparison = await compare(setting, repair=True)
    assert (comparison.error, comparison.failed, comparison.manifests) == ("", 0, 2)
    workshop = Workshop(setting)
    assert await workshop.repair()
    assert setting.b.tags == {(REPOSITORY, "app"): app.digest}


async def test_a_child_that_nobody_pushed_is_not_lost(setting: Bench) -> None:
    """An index pushed without a child is sparse; once the child was pushed, its disappearance is a loss."""
    child, absent = await push(setting, image(b"here")), image(b"elsewhere", label="elsewhere")
    setting.a.is_sparse = setting.b.is_sparse = True
    await push(setting, index(child, absent), "latest")
    comparison = await compare(setting, repair=True)
    assert (comparison.lost, comparison.sparse, comparison.differing, comparison.error) == (0, 1, 0, "")
    assert await lost_keys(setting) == set()
    await push(setting, absent)
    comparison = await compare(setting)
    assert (comparison.lost, comparison.sparse) == (0, 0)
    for replica in (setting.a, setting.b):
        del replica.manifests[REPOSITORY, absent.digest]
    assert ((await compare(setting)).lost, await lost_keys(setting)) == (1, {key_of(absent)})


async def test_a_child_that_was_deleted_through_us_is_not_lost(setting: Bench) -> None:
    """A child deleted through the proxy is no loss, and the other children are compared."""
    kept, gone = await push(setting, image(b"kept")), await push(setting, image(b"gone", label="gone"))
    await push(setting, index(kept, gone), "latest")
    await setting.under_test.manage.delete_manifest(ROUTED, gone.digest)
    comparison = await compare(setting)
    assert (comparison.lost, comparison.sparse, comparison.manifests) == (0, 1, 2)


async def test_a_registry_that_takes_an_index_without_its_child_gets_it(setting: Bench) -> None:
    """The replica decides whether it accepts it: then nothing is on record as refused, and only the child is lost."""
    both, kept, _ = await push_an_index_with_a_lost_child(setting)
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    setting.b.is_sparse = True
    await make_newcomer(setting)
    assert await Workshop(setting).repair()
    marks = await setting.under_test.journal.current.marks()
    assert (marks.is_newcomer("main", "b"), marks.refused("b", "main"), marks.lost("main")) == (False, 0, 1)
    assert setting.b.tags[REPOSITORY, LATEST] == both.digest
    assert (REPOSITORY, kept.digest) in setting.b.manifests


async def test_content_that_one_missed_and_the_other_lost_keeps_none_behind(setting: Bench) -> None:
    """When it was away for a push, and the other lost the layer since, the replica is up, and the layer lost."""
    setting.replicas.down.add("b")
    app = await push(setting, image(b"layer"), "latest")
    other = await push(setting, image(b"other"), "other")
    del setting.a.blobs[REPOSITORY, digest_of(b"layer")]
    setting.holdings.end(ROUTED, ContentKind.BLOB, digest_of(b"layer"))
    workshop = Workshop(setting)
    assert await workshop.repair()
    marks = await setting.under_test.journal.current.marks()
    assert (marks.pending("b", "main"), set(marks.lost_keys)) == (0, {blob_key(digest_of(b"layer"))})
    assert marks.refuses("b", ROUTED, app.digest)
    assert setting.b.tags == {(REPOSITORY, "other"): other.digest}
    assert workshop.counts() == {"copied": 4, "lost": 1, "refused": 2}
    setting.b.requests.clear()
    assert await workshop.repair()
    assert setting.b.requests == []  # there are no endless retries


async def test_while_a_replica_is_away_nothing_is_lost(setting: Bench) -> None:
    """The absent replica may hold it: missing contents are pending, and a comparison says that it is uncertain."""
    setting.replicas.down.add("b")
    await push(setting, image(b"layer"), "latest")
    setting.a.blobs.clear()
    setting.holdings.entries.clear()
    setting.replicas.down = {"a"}
    workshop = Workshop(setting)
    assert not await workshop.repairer.repair(setting.b)
    assert await lost_keys(setting) == set()
    assert (await setting.under_test.journal.current.marks()).pending("b", "main") > 0
    comparison = await compare(setting)
    assert ("a" in comparison.error, comparison.lost) == (True, 0)


async def test_a_replica_that_fails_for_one_content_ends_no_walk(setting: Bench) -> None:
    """A manifest that one replica answers with 500 is not lost; everything after it is compared, and it is reported."""
    bad = await push(setting, image(b"bad"), "bad")
    app = put_past(setting.a, image(b"app"), "app")
    fetch = setting.b.fetch_manifest

    async def failing(repository: str, digest: Digest) -> object:
        if digest == bad.digest:
            raise UpstreamUnavailableError("it answers 500")
        return await fetch(repository, digest)  # type: ignore[arg-type]  # handed on

    setting.b.fetch_manifest = failing  # type: ignore[method-assign, assignment]  # of this replica alone
    del setting.a.manifests[REPOSITORY, bad.digest]
    del setting.a.tags[REPOSITORY, "bad"]
    comparison = await compare(setting, repair=True)
    assert (comparison.error, comparison.repositories_done, comparison.failed) == ("", 1, 1)
    assert (comparison.failures[0].replica, comparison.failures[0].is_held) == ("b", False)
    assert await lost_keys(setting) == set()
    assert (IntentKind.MANIFEST, str(app.digest)) in {(d.key.kind, d.key.name) for d in comparison.differences}


async def test_a_newcomer_waits_where_much_cannot_be_known(setting: Bench) -> None:
    """Many contents that the only replica answers with 500 may return: the newcomer is filled, and waits."""
    bad = {(await push(setting, image(b"bad %d" % number), f"bad-{number}")).digest for number in range(11)}
    app = await push(setting, image(b"app"), "app")
    setting.holdings.entries.clear()
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    await make_newcomer(setting)
    fetch = setting.a.fetch_manifest

    async def failing(repository: str, digest: Digest) -> object:
        if digest in bad:
            raise UpstreamUnavailableError("it answers 500")
        return await fetch(repository, digest)  # type: ignore[arg-type]  # handed on

    setting.a.fetch_manifest = failing  # type: ignore[method-assign, assignment]  # of this replica alone
    workshop = Workshop(setting)
    assert not await workshop.repair()
    assert "it answers 500" in workshop.repairer.status("b").error
    assert (await setting.under_test.journal.current.marks()).is_newcomer("main", "b")
    assert setting.b.tags[REPOSITORY, "app"] == app.digest


async def test_a_loss_is_reported_once_counted_and_dismissed(setting: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """After two comparisons the log has one line; a dismissed loss is neither counted nor reported, and still lost."""
    _, _, gone = await push_an_index_with_a_lost_child(setting)
    assert [(await compare(setting)).lost for _ in range(2)] == [1, 1]
    assert len([record for record in caplog.records if "is lost" in record.getMessage()]) == 1
    assert (await setting.under_test.journal.current.marks()).lost("main") == 1
    exceptions = Exceptions(setting.under_test.store)
    assert await exceptions.dismiss("main", None, "sha256:other") == 0
    assert await exceptions.dismiss("main", REPOSITORY, str(gone.digest)) == 1
    assert (await compare(setting)).lost == 0
    assert (await setting.under_test.journal.current.marks()).lost("main") == 0
    assert [(one.key, one.is_lost, one.is_dismissed) for one in await exceptions.list("main")] == [
        (key_of(gone), True, True)
    ]


async def test_content_that_is_pushed_again_is_not_lost(setting: Bench) -> None:
    """The push of a lost manifest or blob ends it immediately, and refusals because of it are tried again."""
    both, _, gone = await push_an_index_with_a_lost_child(setting)
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    await make_newcomer(setting)
    workshop = Workshop(setting)
    assert await workshop.repair()
    await workshop.repairer._look_at_lost()
    assert await lost_keys(setting) == {key_of(gone)}
    await push(setting, gone)
    assert await lost_keys(setting) == set()
    await workshop.repairer._look_at_lost()
    assert await workshop.repair()
    assert same(setting)
    assert setting.b.tags[REPOSITORY, LATEST] == both.digest
    assert await setting.under_test.intents() == {}


async def test_a_blob_that_is_pushed_again_is_not_lost(setting: Bench) -> None:
    """The push of a lost layer ends its loss, and the image is complete again."""
    await push(setting, image(b"layer"), "latest")
    for replica in (setting.a, setting.b):
        del replica.blobs[REPOSITORY, digest_of(b"layer")]
    await compare(setting)
    assert await lost_keys(setting) == {blob_key(digest_of(b"layer"))}
    await setting.under_test.upload(b"layer")
    assert await lost_keys(setting) == set()


async def test_a_lost_manifest_that_is_deleted_is_not_lost(setting: Bench) -> None:
    """A lost manifest ends with its deletion through the proxy."""
    gone = await push(setting, image(b"gone"), "latest")
    for replica in (setting.a, setting.b):
        replica.manifests, replica.tags = {}, {}
    assert (await compare(setting)).lost == 2
    await setting.under_test.manage.delete_manifest(ROUTED, gone.digest)
    assert await lost_keys(setting) == set()
    assert is_equal(await compare(setting))


@pytest.mark.parametrize("ended_by", ["a push past us", "the deletion of the image"])
async def test_a_comparison_ends_what_is_not_lost_any_more(setting: Bench, ended_by: str) -> None:
    """A loss ends when a replica has the content again, or nothing refers to it any more."""
    app = await push(setting, image(b"layer"), "latest")
    for replica in (setting.a, setting.b):
        del replica.blobs[REPOSITORY, digest_of(b"layer")]
    assert (await compare(setting)).lost == 1
    if ended_by == "a push past us":
        setting.a.add_blob(REPOSITORY, b"layer")
    else:
        await setting.under_test.manage.delete_manifest(ROUTED, app.digest)
    assert (await compare(setting)).lost == 0
    assert await lost_keys(setting) == set()


async def test_a_copy_that_a_node_has_pinned_is_not_lost(setting: Bench) -> None:
    """Another node, without the copy, took it for lost: the node with the copy sends it to all, and ends that."""
    setting.replicas.down.add("b")
    app = await push(setting, image(b"layer"), "latest")
    setting.replicas.down.clear()
    setting.a.tags, setting.a.manifests, setting.a.blobs = {}, {}, {}
    entries, setting.holdings.entries = setting.holdings.entries, {}
    elsewhere = Workshop(setting)
    assert await elsewhere.repair()
    assert IntentKey(ROUTED, IntentKind.TAG, LATEST) in await lost_keys(setting)
    assert app.digest in setting.spool.pins
    setting.holdings.entries = entries
    here = Workshop(setting)
    for _ in range(3):
        await here.repairer._look_at_lost()
        for client in (setting.a, setting.b):
            await here.repairer.repair(client)
    assert same(setting)
    assert setting.b.tags == {(REPOSITORY, LATEST): app.digest}
    assert await setting.under_test.intents() == {}


async def test_an_older_state_of_a_lost_tag_is_served_by_nobody(setting: Bench) -> None:
    """The move of a tag is lost with the replica that took it: the other one's older state is not trusted."""
    await push(setting, image(b"old"), "latest")
    setting.replicas.down.add("b")
    await push(setting, image(b"new"), "latest")
    setting.a.tags, setting.a.manifests, setting.a.blobs = {}, {}, {}
    setting.holdings.entries.clear()
    await Workshop(setting).repair()
    marks = await setting.under_test.journal.current.marks()
    assert IntentKey(ROUTED, IntentKind.TAG, LATEST) in marks.lost_keys
    assert marks.pending("b", "main") == 0
    assert marks.misses_tag("b", ROUTED, LATEST)


async def test_a_push_that_reached_nobody_is_taken_back_beside_a_lost_one(setting: Bench) -> None:
    """A write that was never acknowledged is not called lost."""
    await begin_and_die(setting, image(b"never"), "latest")
    workshop = Workshop(setting)
    assert await workshop.repair()
    assert (await lost_keys(setting), workshop.counts()) == (set(), {"given_up": 2})


async def test_a_lost_build_cache_is_lost_by_its_blobs(setting: Bench) -> None:
    """The children of an index that are blobs are lost as blobs, each separately."""
    cache = await push(setting, build_cache(b"one", b"two"), "latest")
    for replica in (setting.a, setting.b):
        del replica.blobs[REPOSITORY, digest_of(b"one")]
    comparison = await compare(setting)
    assert (comparison.error, comparison.lost, comparison.blobs) == ("", 1, 3)
    assert await lost_keys(setting) == {blob_key(digest_of(b"one"))}
    setting.holdings.forget(ROUTED, ContentKind.BLOB, digest_of(b"one"))
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    await make_newcomer(setting)
    assert await Workshop(setting).repair()
    assert (await setting.under_test.journal.current.marks()).refuses("b", ROUTED, cache.digest)


# ---------------------------------------------------------------- the running product


def index_of(*children: Image | bytes, **more: object) -> Image:
    """Return an index of images and of blobs."""
    descriptors = [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": digest_of_bytes(child),
            "size": len(child),
        }
        if isinstance(child, bytes)
        else {"mediaType": child.media_type, "digest": child.digest, "size": len(child.manifest)}
        for child in children
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors, **more}
    blobs = {digest_of_bytes(child): child for child in children if isinstance(child, bytes)}
    return Image(json.dumps(document).encode(), blobs, OCI_INDEX)


def add_replica(proxy: Proxy, server: Server) -> None:
    """Configure a registry as a further replica."""
    settings = yaml.safe_load(proxy.config.read_text())
    settings["upstreams"]["main"]["replicas"].append({"url": server.url})
    proxy.config.write_text(yaml.safe_dump(settings))
    with proxy.admin() as admin:
        assert admin.post("/reload").status_code == 200


def tags_of(server: Server) -> set[str]:
    """Return the tags of a registry, asked past the proxy."""
    return set(httpx.get(f"{server.url}/v2/{REPO}/tags/list", verify=False).json()["tags"])


def push_what_gets_lost(user: User, registries: list[Server]) -> str:
    """Make the losses of the reports, each of which kept a replica out for ever; return the fallback tag."""
    # The cache of BuildKit, and a child that was deleted.
    user.push(REPO, "cache", index_of(random_bytes(100), random_bytes(100)))
    children = [make_image(random_bytes(100), label=str(number)) for number in range(2)]
    for child in children:
        user.push(REPO, child.digest, child)
    user.push(REPO, "index", index_of(*children))
    # Two referrers in one fallback tag, of which one was deleted.
    fallback = children[0].digest.replace(":", "-")
    user.push(REPO, fallback, index_of(*children, annotations={"of": "it"}))
    with user.client(REPO, "delete") as client:
        assert client.delete(f"/manifests/{children[1].digest}").status_code == 202
    # A layer that a garbage collection took.
    gone = make_image(random_bytes(100), random_bytes(100), label="gone")
    user.push(REPO, "collected", gone)
    for server in registries:
        layer = list(gone.blobs)[-1]
        assert httpx.delete(f"{server.url}/v2/{REPO}/blobs/{layer}", verify=False).status_code == 202
    return fallback


def test_a_replica_that_is_added_is_current_without_what_is_lost(
    registries: list[Server], start_registry: StartRegistry, start_proxy: StartProxy
) -> None:
    """It gets everything that exists, is up, and alone answers 404 for no object of the others."""
    first, second = registries
    replicas = [{"url": server.url} for server in registries]
    proxy = start_proxy([], {"upstreams": {"main": {"replicas": replicas}}, "cache": {"max_size": "1GiB"}})
    user = proxy.add_user("ann", pull_push=["team/**"], delete=["team/**"])
    fallback = push_what_gets_lost(user, registries)
    for number in range(3):
        user.push(f"team/other{number}", "latest", make_image(random_bytes(100), label=str(number)))
    third = start_registry("third")
    (proxy.cache / "blobs").rename(proxy.root / "lost-blobs")
    (proxy.cache / "blobs").mkdir()
    add_replica(proxy, third)
    wait_until(lambda: is_up(proxy, third) and pending(proxy, third) == 0, "it is filled")
    assert tags_of(first) == {"cache", "index", "collected", fallback}
    assert tags_of(third) == {"cache"}
    assert proxy.metric("registry_proxy_lost_contents", upstream="main") == 1  # the child was deleted, not lost
    name = f"127.0.0.1:{third.port}"
    assert proxy.metric("registry_proxy_replica_refused", replica=name) == 6  # three manifests, three tags
    listed = proxy.command("replica", "list")
    assert "cannot take 6" in listed.stdout
    assert "1 content is lost" in listed.stderr
    verified = proxy.command("replica", "verify")
    assert (verified.exit_code, "1 content lost" in verified.stderr) == (1, True), verified.output
    assert "1 child of an index is at no replica" in verified.stderr
    assert proxy.command("replica", "repair").exit_code == 0
    assert proxy.command("replica", "dismiss", "main", "--all").exit_code == 0
    assert proxy.command("replica", "verify").exit_code == 0
    # The third alone: no object that it cannot have is called absent.
    first.stop(9)
    second.stop(9)
    assert user.get("team/other2", "manifests/latest").status_code == 200
    assert user.get(REPO, "manifests/collected").status_code == 503
