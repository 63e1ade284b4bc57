"""A list is whole, whatever size of page a registry allows, or an error: never a 200 with missing entries.

Reports: registries that allow pages of 100 names (`catalog.maxentries`, distribution 3's `tags.maxtags`) and refuse
larger ones with PAGINATION_NUMBER_INVALID; behind proxies their catalog was empty.
"""

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from registry_proxy.operations.discover import Discover
from registry_proxy.ports.errors import UpstreamLimitError, UpstreamUnavailableError
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Repository
from registry_proxy.replica.failure import BadUpstreamError
from tests.conftest import StartProxy, StartRegistry
from tests.support.fakes.memory import MemoryReader
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import REPOSITORY, ScriptedMarks, open_client, open_reader
from tests.support.product import make_image, push_directly
from tests.support.refusal import refused
from tests.support.servers import wait_until

TOO_LARGE = b'{"errors":[{"code":"PAGINATION_NUMBER_INVALID","message":"invalid number of results requested"}]}'


def test_a_real_registry_with_small_pages(start_registry: StartRegistry, start_proxy: StartProxy) -> None:
    """Over two docker-registries that allow pages of 3 names the catalog is whole, and `replica verify` works."""
    registries = [start_registry(name, catalog_max_entries=3) for name in ("first", "second")]
    names = [f"team/app{number}" for number in range(7)]
    image = make_image(label="x")
    for registry in registries:
        for name in names:
            push_directly(registry, name, "1", image)
    proxy = start_proxy(registries)
    user = proxy.add_user("ann", pull=["**"])
    with user.client("", "") as client:
        answer = client.get(f"{proxy.url}/v2/_catalog", headers={"Authorization": f"Bearer {user.token()}"})
    assert (answer.status_code, answer.json()) == (200, {"repositories": names})
    assert "Warning" not in answer.headers
    verified = proxy.command("replica", "verify", "--json")
    assert verified.exit_code == 0, verified.output


async def test_a_size_of_page_that_is_refused_is_left_out() -> None:
    """Tags and repositories are requested once more without it, and the registry's own pages are followed."""
    async with FakeRegistry(page_size=10) as registry, open_client(registry.url) as client:
        registry.add_manifest(REPOSITORY, b"{}", *(f"v{number:02}" for number in range(35)))
        for number in range(25):
            registry.of(f"many/app{number:02}")
        registry.inject(Fault(r"[?&]n=(\d{3,}|[2-9]\d)", status=400, body=TOO_LARGE))
        assert len(await client.list_tags(REPOSITORY)) == 35
        assert len(await client.list_repositories()) == 26
        assert registry.count("GET", "tags/list") == 1 + 4


async def test_400_without_a_size_of_page_is_an_error() -> None:
    """A request refused for another reason is not repeated, and is no empty list."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.inject(Fault("_catalog", status=400, body=TOO_LARGE))
        with pytest.raises(BadUpstreamError):
            await client.list_repositories()
        assert registry.count("GET", "_catalog") == 2


BREAKS: dict[str, Fault] = {
    "500": Fault(status=500),
    "400": Fault(status=400, body=TOO_LARGE),
    "404": Fault(status=404),
    "429": Fault(status=429),
    "403": Fault(status=403),
    "cut": Fault(cut_after=5),
    "html": Fault(html=True),
    "no list": Fault(status=200, body=b"{}"),
}


@pytest.mark.parametrize("kind", BREAKS)
async def test_a_later_page_that_fails_fails_the_list(kind: str) -> None:
    """The first page alone is never served as the list."""
    fault = BREAKS[kind]
    async with FakeRegistry(page_size=2) as registry, open_reader([registry.url]) as reader:
        registry.add_manifest(REPOSITORY, b"{}", "1", "2", "3")
        registry.inject(
            Fault("last=2", **{key: getattr(fault, key) for key in ("status", "body", "cut_after", "html")})
        )
        with pytest.raises((RegistryError, UpstreamUnavailableError)) as failed:
            await reader.list_tags(REPOSITORY)
    assert not isinstance(failed.value, RegistryError) or failed.value.status == 502


@pytest.mark.parametrize("status", [401, 403, 404, 405])
async def test_a_later_page_of_repositories_that_is_refused_is_no_missing_list(status: int) -> None:
    """A registry that gave a part of its catalog has one: a later failure is a failure of the upstream."""
    async with FakeRegistry(page_size=2) as registry, open_reader([registry.url]) as reader:
        for name in ("a", "b", "c"):
            registry.of(name)
        registry.inject(Fault("last=b", status=status))
        assert (await refused(reader.list_repositories())).status == 502


async def test_every_link_is_read() -> None:
    """The next page is found where there are several Link headers, and other relations in one."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        link = f'</docs>; rel="help", </v2/{REPOSITORY}/tags/list?last=1>; rel="next"'
        registry.add_manifest(REPOSITORY, b"{}", "1", "2")
        registry.inject(Fault("n=1000", status=200, body=b'{"tags": ["1"]}', headers={"Link": link}))
        assert await client.list_tags(REPOSITORY) == ["1", "2"]


async def test_pages_without_an_end_are_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither too many pages nor too many names are cut off silently."""
    async with FakeRegistry(page_size=1) as registry, open_client(registry.url) as client:
        registry.add_manifest(REPOSITORY, b"{}", *(f"v{number}" for number in range(9)))
        for bound in ("_PAGES_MAX", "_NAMES_MAX"):
            with monkeypatch.context() as patch:
                patch.setattr(f"registry_proxy.replica.listing.{bound}", 5)
                with pytest.raises(BadUpstreamError):
                    await client.list_tags(REPOSITORY)
        assert len(await client.list_tags(REPOSITORY)) == 9


async def test_replicas_that_miss_something_make_no_list_alone() -> None:
    """The list of a replica that is behind does not count while the current one fails; if all are behind, all count."""
    async with FakeRegistry() as a, FakeRegistry() as b:
        a.of("old")
        for name in ("old", "new"):
            b.of(name)
        async with open_reader([a.url, b.url], marks=ScriptedMarks(behind={"a"})) as reader:
            assert await reader.list_repositories() == ["new", "old"]
            fault = b.inject(Fault("_catalog", status=500))
        async with open_reader([a.url, b.url], marks=ScriptedMarks(behind={"a"})) as reader:
            with pytest.raises(UpstreamUnavailableError, match="a: it has not yet got everything"):
                await reader.list_repositories()
            b.faults.remove(fault)
        async with open_reader([a.url, b.url], marks=ScriptedMarks(behind={"a", "b"})) as reader:
            assert await reader.list_repositories() == ["new", "old"]


# ---------------------------------------------------------------- upstreams without a list


@pytest.mark.parametrize(
    "fault",
    [Fault(status=401), Fault(status=403), Fault(status=404), Fault(status=405)],
    ids=["401", "403", "404", "405"],
)
async def test_a_registry_without_a_list_says_so(fault: Fault) -> None:
    """The error of registries such as Docker Hub and GHCR is no failure, and changes nothing about the replica."""
    fault.target = "_catalog"
    async with FakeRegistry() as registry, open_reader([registry.url], patience_seconds=3600) as reader:
        registry.inject(fault)
        error = await refused(reader.list_repositories())
        assert error.code is ErrorCode.UNSUPPORTED


class _Router:
    """Routes ``hub/`` to one upstream and the rest to another."""

    upstreams = ("main", "hub")

    def may_lead(self, pattern: str, upstream: str) -> bool:
        return pattern == "**" or pattern.startswith("hub/") == (upstream == "hub")

    def local_name(self, routed: RoutedRepository) -> Repository | None:
        return Repository(f"hub/{routed.repository}") if routed.upstream == "hub" else routed.repository


class _Lister(MemoryReader):
    """Gives its repositories, or a scripted error."""

    failure: Exception | None = None

    async def list_repositories(self) -> list[Repository]:
        if self.failure is not None:
            raise self.failure
        return [Repository("app")]


def discover(hub: Exception | None, main: Exception | None = None) -> Discover:
    """Return the lists over two upstreams with the given ends."""
    readers = {"main": _Lister(), "hub": _Lister()}
    readers["main"].failure, readers["hub"].failure = main, hub
    return Discover(readers=readers, router=_Router())  # type: ignore[arg-type]  # as much of it as lists use


NO_LIST: Callable[[], RegistryError] = lambda: RegistryError(ErrorCode.UNSUPPORTED, "it gives no list")  # noqa: E731 - made anew


async def test_upstreams_without_a_list_are_left_out_with_a_warning() -> None:
    """The page says that something is missing; one without such upstreams does not."""
    page = await discover(NO_LIST()).list_repositories(["**"], lambda _: True, None, None)
    assert page.items == ["app"]
    assert page.warning is not None
    assert page.warning.startswith('299 - "')
    page = await discover(None).list_repositories(["**"], lambda _: True, None, None)
    assert (page.items, page.warning) == (["app", "hub/app"], None)
    page = await discover(NO_LIST()).list_repositories(["team/**"], lambda _: True, None, None)
    assert page.warning is None, "a caller who sees nothing of it gets no warning"


async def test_no_list_at_all_is_no_empty_list() -> None:
    """Where no upstream that the caller may see has a list, the answer says so."""
    error = await refused(discover(NO_LIST(), NO_LIST()).list_repositories(["**"], lambda _: True, None, None))
    assert (error.code, error.status) == (ErrorCode.UNSUPPORTED, 405)


@pytest.mark.parametrize(
    "failure",
    [
        BadUpstreamError("a", "it answers 400 where a list was asked for"),
        RegistryError(ErrorCode.UNAVAILABLE, "the upstream registry refuses this proxy access", status=502),
        UpstreamUnavailableError("down"),
        UpstreamLimitError("429", "", 5),
    ],
)
async def test_an_upstream_that_failed_fails_the_list(failure: Exception) -> None:
    """After any failure the others' repositories alone are not served as the list."""
    with pytest.raises(type(failure)):
        await discover(failure).list_repositories(["**"], lambda _: True, None, None)


async def test_the_warning_reaches_the_client(start_proxy: StartProxy) -> None:
    """A catalog without the repositories of an upstream that has no list carries a Warning header."""
    async with FakeRegistry() as main, FakeRegistry() as hub:
        main.of("team/app")
        hub.inject(Fault("_catalog", status=401))
        upstreams = {
            "main": {"replicas": [{"url": main.url}]},
            "hub": {"read_only": True, "replicas": [{"url": hub.url}]},
        }
        routes = [{"prefix": "hub/", "upstream": "hub", "strip_prefix": True}, {"prefix": "", "upstream": "main"}]
        proxy = await asyncio.to_thread(start_proxy, [], {"upstreams": upstreams, "routes": routes})
        user = await asyncio.to_thread(lambda: proxy.add_user("ann", pull=["**"]))

        def catalog() -> tuple[int, object, bool]:
            with user.client("x") as client:
                answer = client.get(f"{proxy.url}/v2/_catalog")
            return answer.status_code, answer.json(), answer.headers.get("Warning", "").startswith("299 - ")

        assert await asyncio.to_thread(catalog) == (200, {"repositories": ["team/app"]}, True)
        main.inject(Fault("_catalog", status=400))
        wait = partial(wait_until, lambda: catalog()[0] == 502, "the list that was read before stands no longer")
        await asyncio.to_thread(wait)
