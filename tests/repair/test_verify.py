"""Comparisons of replicas without the journal, and their entries into it."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKind
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.repair import Comparison, Difference, Failure
from registry_proxy.ports.replicas import StorageKind
from registry_proxy.ports.store import Change, Table
from registry_proxy.protocol.descriptor import OCI_MANIFEST, Descriptor, Manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, digest_of, fallback_tags
from registry_proxy.protocol.referrers import describe_referrer, index_of, parse_referrers
from registry_proxy.tasks import spawn
from tests.repair.test_repair import Workshop, push, same
from tests.support.fakes.images import Parts, image, index
from tests.support.fakes.replicas import REPOSITORY, ROUTED, Bench, MemoryReplica
from tests.support.waiting import until

LATEST = Tag("latest")


async def compare(
    setting: Bench, *, repair: bool = False, prefer: str | None = None, only_at: str | None = None
) -> Comparison:
    """Compare the two replicas."""
    verifier = setting.verifier()
    comparison = verifier.new()
    await verifier.compare(comparison, repair=repair, prefer=prefer, only_at=only_at)
    assert comparison.is_done
    return comparison


def put_past(replica: MemoryReplica, parts: Parts, *tags: str) -> Parts:
    """Put an image into one replica past the proxy."""
    for blob in parts.blobs:
        replica.add_blob(REPOSITORY, blob)
    replica.add_manifest(REPOSITORY, parts.manifest)
    for tag in tags:
        replica.tags[REPOSITORY, tag] = parts.digest
    return parts


def is_equal(comparison: Comparison) -> bool:
    """Tell whether a comparison was completed and found no difference."""
    return not comparison.error and not comparison.differing


def found(comparison: Comparison) -> set[tuple[IntentKind, str, str | None]]:
    """Return the differences and losses: kind, name, replica."""
    return {(one.key.kind, one.key.name, one.replica) for one in comparison.differences}


async def test_equal_replicas_do_not_differ(setting: Bench) -> None:
    """An image with a tag, one by digest alone and an index are compared, and no difference is found."""
    await push(setting, image(b"1"), "latest")
    await push(setting, index(await push(setting, image(b"2"))))
    comparison = await compare(setting)
    assert is_equal(comparison)
    assert (comparison.repositories_done, comparison.manifests, comparison.blobs) == (1, 3, 3)


async def test_a_push_under_way_is_no_difference(setting: Bench) -> None:
    """A push that only one replica has taken yet is no difference: endless pushes keep no replica out."""
    await push(setting, image(b"1"), "latest")
    new = image(b"2")
    for blob in new.blobs:
        await setting.under_test.upload(blob)
    gate = setting.a.gates["put_manifest"] = asyncio.Event()
    pushing = spawn(setting.under_test.put(LATEST, new.manifest, new.media_type), "push")
    await until(lambda: setting.b.tags[REPOSITORY, LATEST] == new.digest)
    assert is_equal(await compare(setting))
    gate.set()
    await pushing
    assert is_equal(await compare(setting))


async def test_a_tag_that_moves_meanwhile_is_no_difference(setting: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tag that moves between the answers of two replicas is the same at both in the end."""
    await push(setting, image(b"1"), "latest")
    resolve_tag = setting.b.resolve_tag

    async def resolve_late(repository: Repository, tag: Tag) -> Descriptor:
        monkeypatch.undo()
        await push(setting, image(b"2"), "latest")
        return await resolve_tag(repository, tag)

    monkeypatch.setattr(setting.b, "resolve_tag", resolve_late)
    assert is_equal(await compare(setting))


async def test_an_empty_replica_is_filled(setting: Bench) -> None:
    """After the repair no tagged content, and no content pushed through the proxy by digest, is missing."""
    child = await push(setting, image(b"1"))
    await push(setting, index(child), "latest")
    put_past(setting.a, image(b"past us"), "old")
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    comparison = await compare(setting)
    assert (comparison.differing, comparison.repaired) == (8, 0)  # 2 tags, 3 manifests, 3 blobs
    assert {replica for _, _, replica in found(comparison)} == {"b"}
    assert await setting.under_test.intents() == {}
    comparison = await compare(setting, repair=True)
    assert comparison.repaired == comparison.differing
    workshop = Workshop(setting)
    assert await workshop.repair()
    assert same(setting)
    assert is_equal(await compare(setting))


async def test_the_journal_decides_about_a_tag_where_it_knows(setting: Bench) -> None:
    """Of a tag pushed through the proxy and changed past it at one replica, the recorded value counts."""
    ours = await push(setting, image(b"ours"), "latest")
    put_past(setting.b, image(b"theirs"), "latest")
    comparison = await compare(setting, repair=True)
    assert (IntentKind.TAG, "latest", "b") in found(comparison)
    assert comparison.undecided == 0
    assert await Workshop(setting).repair()
    assert setting.b.tags[REPOSITORY, "latest"] == ours.digest


async def test_a_tag_that_only_the_replicas_know_is_asked_about(setting: Bench) -> None:
    """For a disagreement both digests are reported, and nothing is done; a preferred replica decides it."""
    one, two = put_past(setting.a, image(b"1"), "latest"), put_past(setting.b, image(b"2"), "latest")
    comparison = await compare(setting, repair=True)
    assert comparison.undecided == 2
    undecided = {(d.replica, d.found) for d in comparison.differences if d.wanted is None}
    assert undecided == {("a", one.digest), ("b", two.digest)}
    await Workshop(setting).repair()
    assert setting.b.tags[REPOSITORY, "latest"] == two.digest
    comparison = await compare(setting, repair=True, prefer="a")
    assert comparison.undecided == 0
    assert await Workshop(setting).repair()
    assert setting.b.tags[REPOSITORY, "latest"] == one.digest


async def test_nothing_is_deleted(setting: Bench) -> None:
    """A content of one replica alone goes to the other."""
    put_past(setting.a, image(b"1"), "a")
    put_past(setting.b, image(b"2"), "b")
    await compare(setting, repair=True)
    workshop = Workshop(setting)
    workshop.repairer._copies.readers["main"] = setting.b  # type: ignore[index]  # b has the contents that a misses
    setting.replicas.down.clear()
    assert await workshop.repairer.repair(setting.a)
    workshop.repairer._copies.readers["main"] = setting.a  # type: ignore[index]  # and the other way round
    assert await workshop.repairer.repair(setting.b)
    assert same(setting)
    assert len(setting.a.tags) == 2


async def test_lost_contents_are_reported(setting: Bench) -> None:
    """A recorded content that no replica has is reported once with manifest and tag, and not entered for repair."""
    gone = await push(setting, image(b"1"), "latest")
    for replica in (setting.a, setting.b):
        replica.manifests.clear()
        replica.tags.clear()
    comparison = await compare(setting, repair=True)
    assert found(comparison) == {(IntentKind.MANIFEST, str(gone.digest), None), (IntentKind.TAG, "latest", None)}
    assert (comparison.lost, comparison.differing, comparison.repaired) == (2, 0, 0)


async def test_a_manifest_that_is_deleted_meanwhile_is_not_lost(
    setting: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorded manifest that a client deletes during the comparison is absent everywhere, and not lost."""
    gone = await push(setting, image(b"1"), "latest")
    verifier = setting.verifier()
    fetch = verifier._tags

    async def delete_first(*arguments: Any) -> Mapping[Tag, Any]:
        await setting.under_test.manage.delete_manifest(ROUTED, gone.digest)
        return await fetch(*arguments)

    monkeypatch.setattr(verifier, "_tags", delete_first)
    comparison = verifier.new()
    await verifier.compare(comparison, repair=True)
    assert (comparison.lost, found(comparison), comparison.error) == (0, set(), "")
    assert not (await setting.under_test.journal.current.marks()).lost_keys


async def test_a_deleted_manifest_is_no_difference(setting: Bench) -> None:
    """A replica that missed a delete still has manifest and tag: neither goes back to the others."""
    gone = await push(setting, image(b"1"), "v1")
    setting.replicas.down.add("b")
    await setting.under_test.manage.delete_manifest(ROUTED, gone.digest)
    setting.replicas.down.clear()
    comparison = await compare(setting, repair=True)
    assert not [d for d in comparison.differences if d.key.kind is not IntentKind.BLOB]
    assert (REPOSITORY, gone.digest) not in setting.a.manifests


async def test_a_push_between_finding_and_entering_wins(setting: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference of a tag is not entered when a push has moved the tag since."""
    old = put_past(setting.a, image(b"old"), "latest")
    new = image(b"new")
    verifier = setting.verifier()
    enter = verifier._enter

    async def push_first(difference: Difference, *, is_chosen: bool) -> bool:
        monkeypatch.undo()
        await push(setting, new, "latest")
        return await enter(difference, is_chosen=is_chosen)

    monkeypatch.setattr(verifier, "_enter", push_first)
    await verifier.compare(verifier.new(), repair=True)
    await Workshop(setting).repair()
    assert setting.b.tags[REPOSITORY, "latest"] == new.digest != old.digest


async def test_a_replica_that_is_away_cannot_be_compared(setting: Bench) -> None:
    """The replica that is away is named; nothing is found, and nothing counts as equal."""
    setting.replicas.down.add("b")
    comparison = await compare(setting)
    assert (is_equal(comparison), "b" in comparison.error) == (False, True)


async def test_replicas_over_one_store_are_equal(setting: Bench) -> None:
    """Replicas over one store are not compared."""
    setting.replicas.storage = StorageKind.SHARED
    assert is_equal(await compare(setting))
    assert setting.a.requests == []


# ---------------------------------------------------------------- newcomers


async def make_newcomer(setting: Bench) -> None:
    """Configure b as new beside a, which was there before."""
    await setting.under_test.journal.roster.note()
    store = setting.under_test.store
    await store.commit([Change(Table.META, "members/main", {"names": ["a"]})])


async def test_a_newcomer_is_behind_in_everything_until_it_was_compared(setting: Bench) -> None:
    """A newcomer serves no tags, and its 404 does not count; an empty one is filled and accepted by itself."""
    app = await push(setting, image(b"1"), "latest")
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    await make_newcomer(setting)
    marks = await setting.under_test.journal.current.marks()
    assert marks.is_newcomer("main", "b")
    assert marks.misses_tag("b", ROUTED, LATEST)
    assert marks.misses_any("b", ROUTED)
    assert marks.pending("b", "main") == 1
    assert not marks.misses_any("a", ROUTED)
    assert await Workshop(setting).repair()
    assert setting.b.tags == {(REPOSITORY, "latest"): app.digest}
    marks = await setting.under_test.journal.current.marks()
    assert (marks.is_newcomer("main", "b"), marks.pending("b", "main")) == (False, 0)


async def test_a_newcomer_with_contents_of_its_own_waits_for_a_person(setting: Bench) -> None:
    """Contents that it alone has are neither copied nor deleted by themselves; it stays behind, with the reason."""
    await push(setting, image(b"1"), "latest")
    put_past(setting.b, image(b"its own"), "own")
    await make_newcomer(setting)
    workshop = Workshop(setting)
    assert not await workshop.repair()
    assert "replica verify" in workshop.repairer.status("b").error
    assert (REPOSITORY, "own") not in setting.a.tags
    assert (await setting.under_test.journal.current.marks()).is_newcomer("main", "b")


async def test_one_object_that_fails_keeps_no_newcomer_out(setting: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest that its only replica answers with 500, which anybody can push, is left out; the rest is copied."""
    app = await push(setting, image(b"1"), "latest")
    setting.b.tags, setting.b.manifests, setting.b.blobs = {}, {}, {}
    bad = put_past(setting.a, image(b"bad"), "bad")
    fetch = setting.a.fetch_manifest

    async def fetch_or_fail(repository: Repository, digest: Digest) -> Manifest:
        if digest == bad.digest:
            raise UpstreamUnavailableError("it answers 500")
        return await fetch(repository, digest)

    monkeypatch.setattr(setting.a, "fetch_manifest", fetch_or_fail)
    await make_newcomer(setting)
    workshop = Workshop(setting)
    await workshop.repair()
    assert workshop.repairer.status("b").error == ""
    assert not (await setting.under_test.journal.current.marks()).is_newcomer("main", "b")
    assert setting.b.tags[REPOSITORY, "latest"] == app.digest


def failure(repository: str, rest: str, *, is_held: bool) -> Failure:
    """Return a failure of a replica to answer for a content in a repository."""
    routed = RoutedRepository("main", Repository(repository))
    return Failure(f"{routed}{rest}", routed, "a", "it answers 500", is_held=is_held)


@pytest.mark.parametrize(
    "keys",
    [
        [("team/app", "")],
        [("team/app", f":v{number}") for number in range(11)],
        [(f"team{number}/app", "|manifest|sha256:1") for number in range(4)],
    ],
    ids=["a list", "many", "in many namespaces"],
)
def test_much_that_fails_keeps_a_newcomer_out(keys: list[tuple[str, str]]) -> None:
    """A failing list, many failing contents, or some of several owners mean a failing storage."""
    comparison = Comparison(0.0)
    for repository, rest in keys:
        comparison.fail(failure(repository, rest, is_held=True))
    assert comparison.doubt_about("b") == ""
    for repository, rest in keys:
        comparison.fail(failure(repository, rest, is_held=False))
    assert comparison.doubt_about("b") == f"main/{''.join(keys[0])} is unknown at a: it answers 500"


def test_few_contents_that_fail_are_no_doubt() -> None:
    """Failing contents and tags of few owners are failures of these objects, however few there are."""
    comparison = Comparison(0.0)
    for repository, rest in {
        "team/app": ":v1",
        "team/other": "|manifest|sha256:1",
        "home/eve/x": "|blob|sha256:2",
    }.items():
        comparison.fail(failure(repository, rest, is_held=False))
    assert comparison.doubt_about("b") == ""


async def test_members_are_noted_once_and_leave_with_the_configuration(setting: Bench) -> None:
    """The first start accepts all replicas; one that was removed from the configuration returns as a newcomer."""
    journal, store = setting.under_test.journal, setting.under_test.store
    await journal.roster.note()
    assert (await store.list(Table.META, "members/"))[0].value == {"names": ["a", "b"]}
    await store.commit([Change(Table.META, "members/main", {"names": ["a", "b", "gone"]})])
    await journal.roster.note()
    assert (await store.list(Table.META, "members/"))[0].value == {"names": ["a", "b"]}
    await store.commit([Change(Table.META, "members/main", {"names": ["others"]})])
    await journal.roster.note()
    assert not (await journal.current.marks()).is_newcomer("main", "a")


SUBJECT = digest_of(b"subject")
LIST = fallback_tags(SUBJECT)[0]


def referrer(about: str) -> Parts:
    """Return an artifact that refers to the subject."""
    config = about.encode()
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.example", "digest": str(digest_of(config)), "size": len(config)},
        "layers": [],
        "subject": {"mediaType": OCI_MANIFEST, "digest": str(SUBJECT), "size": 7},
    }
    return Parts(json.dumps(document).encode(), (config,))


def list_past(replica: MemoryReplica, *artifacts: Parts) -> None:
    """Put artifacts into one replica past the proxy, and an index of them under the fallback tag."""
    entries = []
    for parts in artifacts:
        put_past(replica, parts)
        entries.append(describe_referrer(replica.manifests[REPOSITORY, parts.digest]))
    index = index_of(entries)
    replica.manifests[REPOSITORY, index.descriptor.digest] = index
    replica.tags[REPOSITORY, LIST] = index.descriptor.digest


def listed(replica: MemoryReplica) -> set[Digest]:
    """Return the entries under a replica's fallback tag."""
    return {one.digest for one in parse_referrers(replica.manifests[REPOSITORY, replica.tags[REPOSITORY, LIST]].body)}


@pytest.mark.parametrize("is_recorded", [True, False])
async def test_unlike_lists_of_referrers_are_merged(setting: Bench, *, is_recorded: bool) -> None:
    """Neither list is the right one, also where the proxy made one: afterwards both replicas have all of both."""
    ours, theirs, shared = referrer("ours"), referrer("theirs"), referrer("shared")
    for replica in (setting.a, setting.b):
        put_past(replica, shared)
    put_past(setting.a, theirs)
    if is_recorded:
        await push(setting, ours)
        list_past(setting.b, shared, theirs)
    else:
        list_past(setting.a, shared, ours)
        list_past(setting.b, shared, theirs)
    before = await compare(setting)
    assert before.differing > 0
    assert listed(setting.a) != listed(setting.b)
    comparison = await compare(setting, repair=True)
    assert (comparison.error, comparison.failed) == ("", 0)
    assert await Workshop(setting).repair()
    assert listed(setting.a) == listed(setting.b) == {ours.digest, theirs.digest, shared.digest}
    assert is_equal(await compare(setting))


async def test_a_list_that_cannot_be_merged_is_left_as_it_is(setting: Bench) -> None:
    """It is reported, and no entry of it is overwritten."""
    list_past(setting.a, referrer("ours"))
    list_past(setting.b, referrer("theirs"))
    for replica in (setting.a, setting.b):
        replica.errors["put_manifest"] = RegistryError(ErrorCode.DENIED, "no", status=403)
    comparison = await compare(setting, repair=True)
    assert comparison.failed > 0
    assert (listed(setting.a), listed(setting.b)) == ({referrer("ours").digest}, {referrer("theirs").digest})


async def test_referrers_that_no_tag_leads_to_are_compared(setting: Bench) -> None:
    """Entries that only one replica's referrers API lists, pushed past the proxy, are copied to the other one."""
    setting.a.has_referrers = setting.b.has_referrers = True
    await push(setting, image(b"1"), "latest")
    subject = setting.a.tags[REPOSITORY, LATEST]
    artifact = referrer("past us")
    manifest = artifact.manifest.replace(str(SUBJECT).encode(), str(subject).encode())
    past = put_past(setting.a, Parts(manifest, artifact.blobs))
    comparison = await compare(setting, repair=True)
    assert (IntentKind.MANIFEST, str(past.digest), "b") in found(comparison)
    assert await Workshop(setting).repair()
    assert same(setting)
    assert is_equal(await compare(setting))
