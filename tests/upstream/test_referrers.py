"""Referrers over several replicas: a list has every entry, whatever each registry supports."""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass

import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.replicas import HeldReferrers, StorageKind
from registry_proxy.protocol.descriptor import OCI_INDEX, OCI_MANIFEST
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Tag, digest_of, fallback_tags
from registry_proxy.protocol.referrers import Referrer, index_of
from registry_proxy.upstream.failover import FailoverReader
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import REPOSITORY, ScriptedMarks, open_reader

SUBJECT = digest_of(b"subject")
TAG = fallback_tags(SUBJECT)[0]


def entry(name: str) -> Referrer:
    """Return an entry of the manifest with a name."""
    digest = digest_of(name.encode())
    return Referrer(digest, {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": 1})


@dataclass
class Pair:
    """Two registries, replicas ``a`` and ``b``; neither has the referrers API by itself."""

    a: FakeRegistry
    b: FakeRegistry

    @property
    def urls(self) -> list[str]:
        return [self.a.url, self.b.url]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Start two registries."""
    async with FakeRegistry() as a, FakeRegistry() as b:
        yield Pair(a, b)


def give_api(registry: FakeRegistry, *names: str) -> None:
    """Serve the given entries in a registry's referrers API."""
    registry.inject(Fault("referrers", status=200, body=index_of(map(entry, names)).body))


def tag(registry: FakeRegistry, *names: str) -> Digest:
    """Put an index with the given entries under the fallback tag."""
    return registry.add_manifest(REPOSITORY, index_of(map(entry, names)).body, TAG, media_type=OCI_INDEX)


def names_of(entries: Collection[Referrer], *known: str) -> set[str]:
    """Return the names of entries."""
    names = {entry(name).digest: name for name in (*known, "1", "2", "3", "4")}
    return {names[one.digest] for one in entries}


async def held(reader: FailoverReader) -> HeldReferrers:
    """Ask for the referrers."""
    return await reader.list_referrers(REPOSITORY, SUBJECT)


async def yes(routed: RoutedRepository, tag: Tag, silent: Collection[str]) -> bool:
    """Prove that replicas that do not answer hold nothing else."""
    assert (routed, tag, set(silent)) == (RoutedRepository("main", REPOSITORY), TAG, {"a"})
    return True


async def test_unlike_replicas_are_merged(pair: Pair) -> None:
    """The API of one and the fallback tags of both make the list; the tag is needed where one has no API."""
    give_api(pair.a, "1", "2")
    tags = frozenset({tag(pair.a, "2", "3"), tag(pair.b, "4")})
    async with open_reader(pair.urls) as reader:
        found = await held(reader)
        assert names_of(found.listed) == {"1", "2"}
        assert names_of(found.tagged) == {"2", "3", "4"}
        assert found.tags == tags
        assert found.needs_tag
        give_api(pair.b)
        assert not (await held(reader)).needs_tag


async def test_nothing_is_an_empty_list_and_a_tag_on_something_else_too(pair: Pair) -> None:
    """Where all replicas agree there are no referrers; an image under the name of a fallback tag lists none."""
    async with open_reader(pair.urls) as reader:
        assert await held(reader) == HeldReferrers([], [], frozenset([None]), needs_tag=True)
        pair.b.add_manifest(REPOSITORY, b"{}", TAG)
        assert (await held(reader)).tagged == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault("referrers", status=500),
        Fault("referrers", status=403),
        Fault("referrers", status=200, body=b"<html>"),
        Fault("manifests", status=503),
        Fault("manifests", html=True),
        Fault("", status=404, headers={"Content-Type": "text/html"}, body=b"<html>not found</html>"),
    ],
    ids=["500", "403", "no index", "tag 503", "tag html", "a load balancer"],
)
async def test_a_failure_is_never_an_empty_list(pair: Pair, fault: Fault) -> None:
    """A failure stays an error with one registry, and beside another one that has nothing."""
    pair.a.inject(fault)
    for urls in ([pair.a.url], pair.urls):
        async with open_reader(urls, read_only=False) as reader:
            with pytest.raises((UpstreamUnavailableError, RegistryError)) as failure:
                await held(reader)
            assert getattr(failure.value, "status", 503) >= 500


async def test_a_replica_that_is_away_may_be_proved_to_hold_no_more(pair: Pair) -> None:
    """The record proves it, a tag that exists elsewhere, or replicas that cannot differ."""
    await pair.a.stop()
    give_api(pair.b, "1")
    async with open_reader(pair.urls, read_only=False, proves_absent=yes) as reader:
        found = await held(reader)
        assert names_of(found.listed) == {"1"}
        assert found.needs_tag  # the support of the other one is unknown
    for options in ({"read_only": True}, {"storage": StorageKind.SHARED}):
        async with open_reader(pair.urls, **options) as reader:
            assert names_of((await held(reader)).listed) == {"1"}
    tag(pair.b, "2")
    async with open_reader(pair.urls, read_only=False) as reader:
        assert names_of((await held(reader)).tagged) == {"2"}


async def test_the_features_of_a_replica_are_remembered_while_it_is_away(pair: Pair) -> None:
    """No tag is made at registries with the API because one of them is down."""
    give_api(pair.a)
    give_api(pair.b)
    async with open_reader(pair.urls, read_only=False, proves_absent=yes) as reader:
        assert not (await held(reader)).needs_tag
        await pair.a.stop()
        assert not (await held(reader)).needs_tag


async def test_a_replica_that_is_behind_adds_nothing_but_alone_proves_nothing(pair: Pair) -> None:
    """It may list deleted entries; with the other one down, it may miss pushed ones."""
    give_api(pair.a, "1", "2")
    give_api(pair.b, "2")
    marks = ScriptedMarks(behind={"a"})
    async with open_reader(pair.urls, marks=marks, read_only=False, proves_absent=yes) as reader:
        assert names_of((await held(reader)).listed) == {"2"}
        await pair.b.stop()
        with pytest.raises(UpstreamUnavailableError):
            await held(reader)


async def test_lists_of_all_count_without_deleted_ones_when_all_are_behind(pair: Pair) -> None:
    """Each has the writes that the other misses; deleted manifests that one still holds are left out."""
    for registry, name in ((pair.a, "1"), (pair.b, "2")):
        give_api(registry, name, "3")
        tag(registry, name, "3", "4")
    tombstones = {("a", entry("3").digest), ("b", entry("3").digest), ("b", entry("4").digest)}
    async with open_reader(pair.urls, marks=ScriptedMarks(tombstones=tombstones), read_only=False) as reader:
        found = await held(reader)
        assert names_of(found.listed) == {"1", "2"}
        assert names_of(found.tagged) == {"1", "2", "4"}


async def test_a_replica_that_misses_the_tag_is_not_asked(pair: Pair) -> None:
    """Its list is out of date; the others decide without it."""
    tag(pair.a, "1")
    tag(pair.b, "2")
    async with open_reader(pair.urls, marks=ScriptedMarks(tags={("a", TAG)}), read_only=False) as reader:
        assert names_of((await held(reader)).tagged) == {"2"}
        assert pair.a.count("GET", "referrers") == 0
