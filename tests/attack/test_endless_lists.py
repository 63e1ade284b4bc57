"""Lists of a registry are bounded in pages, names and time, and are read once for all callers."""

import asyncio
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Repository
from registry_proxy.replica import listing, long_lists
from registry_proxy.replica.failure import BadUpstreamError
from registry_proxy.upstream import failover, sharing
from registry_proxy.upstream.failover import FailoverReader
from tests.conftest import StartProxy
from tests.support.fakes.malice import Asked, Malice, Said, answer
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import REPOSITORY, ScriptedMarks, open_client, open_replicas
from tests.support.servers import Server, wait_until
from tests.support.waiting import until

JSON = {"Content-Type": "application/json"}


@contextmanager
def endless(*, brings_news: bool) -> Iterator[Malice]:
    """Serve lists whose pages each link to another one; with ``brings_news`` each page holds a new name."""
    numbers = itertools.count()

    def answers(asked: Asked) -> Said:
        if not asked.target.partition("?")[0].endswith(("/tags/list", "/_catalog")):
            return answer(200, JSON, b"{}")
        number = next(numbers)
        name = f"v{number if brings_news else 0}"
        link = f'<{asked.target.partition("?")[0]}?last={number}>; rel="next"'
        return answer(200, {**JSON, "Link": link}, json.dumps({"tags": [name], "repositories": [name]}).encode())

    with Malice(answers) as malice:
        yield malice


async def stays_quiet(malice: Malice, target: str) -> None:
    """Return once no more pages are requested: two looks, with another request between them, agree."""

    def count() -> int:
        return malice.count(target)

    async with asyncio.timeout(20):
        before = -1
        while before != (now := count()):
            before = now
            async with open_client(malice.url) as client:
                await client.probe()


async def test_pages_without_news_are_few() -> None:
    """A list whose pages bring nothing new is a 502 after a bounded number of them."""
    with endless(brings_news=False) as malice:
        async with open_client(malice.url) as client:
            with pytest.raises(BadUpstreamError, match="does not answer as"):
                await client.list_tags(REPOSITORY)
        assert malice.count("tags/list") <= listing._IDLE_PAGES_MAX + 2


async def test_small_pages_without_end_come_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its first pages the small pages of a list are delayed: else they would keep a core busy for a minute."""
    monkeypatch.setattr(long_lists, "PAGE_SECONDS", 3600.0)
    with endless(brings_news=True) as malice:
        async with open_replicas([malice.url]) as replicas:
            listing_tags = asyncio.ensure_future(FailoverReader(replicas, ScriptedMarks(), 5).list_tags(REPOSITORY))  # noqa: TID251 - cancelled
            await until(lambda: malice.count("tags/list") > long_lists.QUICK_PAGES)
            await stays_quiet(malice, "tags/list")
            assert malice.count("tags/list") == long_lists.QUICK_PAGES + 1
            listing_tags.cancel()
            await asyncio.gather(listing_tags, return_exceptions=True)


async def test_a_list_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list with a new name on each page is a 502 when its time is over; no further page is requested."""
    monkeypatch.setattr(failover, "LIST_SECONDS", 0.3)
    with endless(brings_news=True) as malice:
        async with open_replicas([malice.url]) as replicas:
            reader = FailoverReader(replicas, ScriptedMarks(), 5)
            with pytest.raises(BadUpstreamError) as refused:
                await reader.list_tags(REPOSITORY)
            assert "takes longer than" in refused.value.reason
            await stays_quiet(malice, "tags/list")


async def test_a_catalog_that_takes_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 502 names the replica and the time, and the replicas stay up."""
    monkeypatch.setattr(failover, "LIST_SECONDS", 0.1)
    async with FakeRegistry() as a, FakeRegistry() as b, open_replicas([a.url, b.url]) as replicas:
        for registry in (a, b):
            registry.inject(Fault("_catalog", stall=True))
        with pytest.raises(RegistryError) as refused:
            await FailoverReader(replicas, ScriptedMarks(), 0).list_repositories()
        assert (refused.value.status, refused.value.code) == (502, ErrorCode.UNAVAILABLE)
        assert "too long for this list" in refused.value.message
        assert isinstance(refused.value.detail, dict)
        assert refused.value.detail["reason"] == "its list takes longer than 0 s"
        assert all(health.is_up for health in replicas.health().values())


async def test_a_list_ends_with_its_callers() -> None:
    """Callers share one reading of a list; it goes on for the last caller, and ends with them."""
    with endless(brings_news=True) as malice:
        async with open_replicas([malice.url]) as replicas:
            reader = FailoverReader(replicas, ScriptedMarks(), 5)
            callers = [asyncio.ensure_future(reader.list_tags(REPOSITORY)) for _ in range(10)]  # noqa: TID251 - cancelled
            await until(lambda: malice.count("tags/list") > 5)
            assert malice.count("tags/list.n=1000") == 1, "ten callers cost one list"
            callers[0].cancel()
            await until(lambda: malice.count("tags/list.n=1000") == 2)
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
            await stays_quiet(malice, "tags/list")
            assert not reader._lists._running


def test_a_client_that_leaves_ends_its_list(start_proxy: StartProxy, tmp_path: Path) -> None:
    """The product reads no further pages for clients that have closed their connections."""
    with endless(brings_news=True) as malice:
        proxy = start_proxy([Server([], malice.port, tmp_path / "none")])
        user = proxy.add_user("ann", pull=["**"])
        with user.client("team/app") as client, pytest.raises(httpx.ReadTimeout):
            client.get("/tags/list", timeout=0.5)
        counts: list[int] = []

        def is_quiet() -> bool:
            counts.append(malice.count("tags/list"))
            threading.Event().wait(0.3)
            return len(counts) > 1 and counts[-1] == counts[-2]

        wait_until(is_quiet, "no more pages are asked for")


async def test_a_catalog_is_read_once_until_a_repository_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of the catalog within seconds comes from the last reading, unless a push may have made a repository."""
    monkeypatch.setattr(sharing, "FRESH_TIMES", 1e9)
    marks = ScriptedMarks()
    async with FakeRegistry() as a, FakeRegistry() as b, open_replicas([a.url, b.url]) as replicas:
        for registry in (a, b):
            registry.add_manifest("team/app", b"{}", "1")
        reader = FailoverReader(replicas, marks, 0)
        for _ in range(20):
            assert await reader.list_repositories() == ["team/app"]
            marks.writes, marks.written = marks.writes + 1, {Repository("team/app")}
        assert [registry.count("GET", "_catalog") for registry in (a, b)] == [1, 1]
        a.add_manifest("team/new", b"{}", "1")
        marks.writes, marks.written = marks.writes + 1, {Repository("team/app"), Repository("team/new")}
        assert await reader.list_repositories() == ["team/app", "team/new"]


async def test_a_long_list_of_tags_is_read_once_until_its_repository_is_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its pages come from one reading until a write to the repository, an unknown write, or the return of a replica."""
    monkeypatch.setattr(sharing, "FRESH_TIMES", 1e9)
    marks = ScriptedMarks()
    async with FakeRegistry() as a, FakeRegistry() as b, open_replicas([a.url, b.url]) as replicas:
        names = [f"v{number:05}" for number in range(1500)]
        a.add_manifest(REPOSITORY, b"{}", *names)
        reader = FailoverReader(replicas, marks, 0)

        async def reads() -> int:
            before = a.count("GET", "tags/list.n=1000$")
            assert await reader.list_tags(REPOSITORY) == sorted(a.of(REPOSITORY).tags)
            return a.count("GET", "tags/list.n=1000$") - before

        assert [await reads() for _ in range(3)] == [1, 0, 0]
        marks.writes, marks.written = 1, {Repository("team/other")}
        assert await reads() == 0
        a.add_manifest(REPOSITORY, b"{}", "new")
        marks.writes, marks.written = 2, {REPOSITORY}
        assert [await reads() for _ in range(2)] == [1, 0]
        marks.writes, marks.written = 3, None
        assert [await reads() for _ in range(2)] == [1, 0]
        replicas.changes += 1
        assert [await reads() for _ in range(2)] == [1, 0]


async def test_a_short_list_of_tags_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that fits into a page shows immediately a tag that was pushed past the proxy."""
    monkeypatch.setattr(sharing, "FRESH_TIMES", 1e9)
    async with FakeRegistry() as a, open_replicas([a.url]) as replicas:
        a.add_manifest(REPOSITORY, b"{}", *(f"v{number:05}" for number in range(1000)))
        reader = FailoverReader(replicas, ScriptedMarks(), 0)
        before = len(await reader.list_tags(REPOSITORY))
        a.add_manifest(REPOSITORY, b"{}", "past-us")
        assert len(await reader.list_tags(REPOSITORY)) == before + 1


async def test_names_without_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page with more names than a list may have is a 502, and its rest is not read."""
    monkeypatch.setattr(listing, "_NAMES_MAX", 1000)
    names = {f"v{number}" for number in range(100_000)}
    body = json.dumps({"name": "x", "tags": sorted(names)}).encode()
    found: set[str] = set()
    listing._scan(body, "tags", found)
    assert len(found) == 1001
    with Malice(lambda _: answer(200, JSON, body)) as malice:
        async with open_client(malice.url) as client:
            with pytest.raises(BadUpstreamError):
                await client.list_tags(REPOSITORY)


async def test_many_names_are_sorted_and_whole() -> None:
    """The sorted list holds all tags of all replicas, without the entries that are no tags."""
    body = json.dumps({"tags": [f"v{number * 7919 % 30_000}" for number in range(30_000)] + ["-", 'a"b', "x"]}).encode()
    with Malice(lambda _: answer(200, JSON, body)) as malice, Malice(lambda _: answer(200, JSON, body)) as other:
        async with open_replicas([malice.url, other.url]) as replicas:
            tags = await FailoverReader(replicas, ScriptedMarks(), 0).list_tags(REPOSITORY)
    assert tags == sorted({*(f"v{number}" for number in range(30_000)), "x"})


@pytest.mark.parametrize("end", [b"", b"5]}", b'"a" "b"]}', b'"a]}'])
async def test_a_long_page_that_is_no_list_is_a_502(end: bytes) -> None:
    """Garbage in the middle of a page is not taken for the end of the list."""
    body = b'{"tags": [' + b'"name",' * 100_000 + end
    with Malice(lambda _: answer(200, JSON, body)) as malice:
        async with open_client(malice.url) as client:
            with pytest.raises(BadUpstreamError):
                await client.list_tags(REPOSITORY)


@pytest.mark.parametrize("size", [100_000, 1_000_000])
async def test_names_of_any_length_are_not_kept(size: int) -> None:
    """Pages whose names are invalid bring nothing new: a million of them would not fit into memory."""
    numbers = itertools.count()

    def answers(asked: Asked) -> Said:
        number = next(numbers)
        link = f'<{asked.target.partition("?")[0]}?last={number}>; rel="next"'
        name = f"{number}".ljust(size, "a") if "/tags/list" in asked.target else ""
        return answer(200, {**JSON, "Link": link}, json.dumps({"tags": [name]}).encode())

    with Malice(answers) as malice:
        async with open_client(malice.url) as client:
            with pytest.raises(BadUpstreamError):
                await client.list_tags(REPOSITORY)
        assert malice.count("tags/list") <= listing._IDLE_PAGES_MAX + 2


@pytest.mark.parametrize("begin", [b'"' + b"a" * 10_000_000, b" " * 10_000_000 + b'"a'])
def test_a_name_without_end_stops_nothing_else(begin: bytes) -> None:
    """A string of many megabytes is no name; the interpreter does not read it to its end in one step."""
    with pytest.raises(ValueError):  # noqa: PT011 - which the caller takes for no list
        listing._scan(b'{"tags": [' + begin + b'"]}', "tags", set())
