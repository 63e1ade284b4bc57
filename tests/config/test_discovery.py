"""Replicas from DNS, resolved by a real dnsmasq."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dns.rdata import from_text
from dns.resolver import NoResolverConfiguration

from registry_proxy.config import discovery
from registry_proxy.config.discovery import Discovery
from registry_proxy.config.errors import StartError
from registry_proxy.config.model import Settings
from registry_proxy.tasks import spawn
from tests.support.servers import Dns


@pytest.fixture
def configured(dns: Dns) -> Callable[..., Settings]:
    """Return a function that gives settings with one upstream, ``main``."""

    def settings(url: str, discover: str, storage: str = "shared", **upstream: Any) -> Settings:
        main = {"storage": storage, "replicas": [{"url": url, "discover": discover}], **upstream}
        document = {"upstreams": {"main": main}, "routes": [{"prefix": "", "upstream": "main"}]}
        return Settings.model_validate({**document, "nameservers": [f"127.0.0.1:{dns.port}"]})

    return settings


def replicas(settings: Settings) -> list[tuple[str, str, str | None]]:
    """Return name, URL and server name of each replica of ``main``."""
    return [(each.name, each.url, each.server_name) for each in settings.upstreams["main"].replicas]


async def test_each_address_of_a_name_is_a_replica(
    dns: Dns, configured: Callable[..., Settings], tmp_path: Path
) -> None:
    """Each IPv4 and IPv6 address is a replica, in a stable order, with the host name of the URL."""
    dns.serve("--host-record=registry.test,127.0.0.3", "--host-record=registry.test,127.0.0.2,::1")
    found = await Discovery(str(tmp_path / "found")).expand(configured("https://registry.test:5000", "addresses"))
    assert replicas(found) == [
        ("127.0.0.2:5000", "https://127.0.0.2:5000", "registry.test"),
        ("127.0.0.3:5000", "https://127.0.0.3:5000", "registry.test"),
        ("[::1]:5000", "https://[::1]:5000", "registry.test"),
    ]
    assert found.upstreams["main"].replicas[0].realm_hosts == ("registry.test",)
    assert Settings.from_json(found.to_json()) == found


async def test_each_target_of_a_service_is_a_replica_by_its_name(
    dns: Dns, configured: Callable[..., Settings], tmp_path: Path
) -> None:
    """A target has its own name, wherever its address is; the port is that of the record."""
    dns.serve(
        "--host-record=one.test,127.0.0.2",
        "--host-record=two.test,127.0.0.3",
        "--srv-host=_registry._tcp.test,two.test,5002",
        "--srv-host=_registry._tcp.test,one.test,5001",
    )
    found = await Discovery(str(tmp_path / "found")).expand(configured("http://_registry._tcp.test", "srv"))
    assert replicas(found) == [
        ("one.test:5001", "http://127.0.0.2:5001", "one.test"),
        ("two.test:5002", "http://127.0.0.3:5002", "two.test"),
    ]


async def test_a_target_that_cannot_be_a_replica_is_left_out(
    dns: Dns, configured: Callable[..., Settings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The other targets stay, by their names in lower case, and the log says so once, not at each look-up."""
    long = f"{'a' * 60}.{'b' * 60}.test"
    dns.serve(
        "--host-record=one.test,127.0.0.2",
        f"--host-record={long},127.0.0.3",
        "--srv-host=_registry._tcp.test,ONE.test,5001",
        f"--srv-host=_registry._tcp.test,{long},5002",
        "--srv-host=_registry._tcp.test,one.test,0",
    )
    node = Discovery(str(tmp_path / "found"))
    for _ in range(2):
        found = await node.expand(configured("http://_registry._tcp.test", "srv"))
        assert replicas(found) == [("one.test:5001", "http://127.0.0.2:5001", "one.test")]
        assert Settings.from_json(found.to_json()) == found
    assert caplog.text.count(f"{long}:5002, a target of _registry._tcp.test, is left out") == 1
    assert caplog.text.count("one.test:0, a target of") == 1


Answers = dict[tuple[str, str], list[str]]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Records by name and kind that DNS answers immediately; they and every pause last for a moment."""
    known: Answers = {}

    async def records(_nameservers: object, name: str, kind: str) -> tuple[list[Any], float]:
        if (name, kind) not in known:
            raise OSError("no such name")
        return [from_text("IN", kind, text) for text in known[name, kind]], 0.0

    monkeypatch.setattr(discovery, "_records", records)
    monkeypatch.setattr(discovery, "_SHORTEST_SECONDS", 0.01)
    return known


def by_address(*hosts: str) -> Settings:
    """Return settings with an upstream per host, whose replicas are its addresses; ``main`` is the first."""
    upstreams: dict[str, Any] = {"main": {"replicas": [{"url": "http://127.0.0.1:1"}]}}
    for name, host in zip(("main", "other"), hosts, strict=False):
        upstreams[name] = {"storage": "shared", "replicas": [{"url": f"http://{host}", "discover": "addresses"}]}
    routes = [{"prefix": "" if name == "main" else f"{name}/", "upstream": name} for name in upstreams]
    return Settings.model_validate({"upstreams": upstreams, "routes": routes})


@pytest.mark.parametrize("kind", ["entries", "targets"])
async def test_all_that_is_to_be_asked_is_asked_at_once(
    kind: str, monkeypatch: pytest.MonkeyPatch, configured: Callable[..., Settings], tmp_path: Path
) -> None:
    """All addresses of all entries and of all targets are asked at the same time: slow answers overlap."""
    four_at_once = asyncio.Barrier(4)

    async def records(_nameservers: object, _name: str, kind: str) -> tuple[list[Any], float]:
        if kind == "SRV":
            return [from_text("IN", kind, f"0 0 5000 {each}.test.") for each in ("one", "two")], 60.0
        await four_at_once.wait()
        return [from_text("IN", kind, "127.0.0.2" if kind == "A" else "::1")], 60.0

    monkeypatch.setattr(discovery, "_records", records)
    settings = by_address("a.test", "b.test") if kind == "entries" else configured("http://_registry._tcp.test", "srv")
    async with asyncio.timeout(10):
        assert len(replicas(await Discovery(str(tmp_path / "found")).expand(settings))) > 1


async def test_a_reload_that_brings_the_first_name_is_followed_at_once(answers: Answers, tmp_path: Path) -> None:
    """A wait for the expiry of the current answer ends when other settings come into force."""
    found = Discovery(str(tmp_path / "found"))
    await found.expand(by_address())
    found.confirm(by_address())
    changed = spawn(found.changed(), "change")
    await asyncio.sleep(0)  # it waits for five minutes now
    answers.update({("a.test", "A"): ["127.0.0.2"], ("a.test", "AAAA"): []})
    await found.expand(by_address("a.test"))
    found.confirm(by_address("a.test"))
    answers["a.test", "A"] = ["127.0.0.3"]
    async with asyncio.timeout(10):
        await changed


class EnoughError(Exception):
    """Ends a wait for a change that never comes."""


async def test_a_refused_answer_is_reported_again_later_and_a_new_one_at_once(
    answers: Answers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A refused answer is no news at each look-up; nor is the answer to other, refused settings."""
    answers.update({(f"{host}.test", kind): [] for host in "ab" for kind in ("A", "AAAA")})
    answers["a.test", "A"] = answers["b.test", "A"] = ["127.0.0.2"]
    found, settings = Discovery(str(tmp_path / "found")), by_address("a.test")
    await found.expand(settings)
    found.confirm(settings)
    await found.expand(by_address("a.test", "b.test"))  # no further one: the reload is refused

    look = found._look

    async def is_reported() -> bool:
        """Tell whether a change is reported within three look-ups."""
        looks = iter(range(3))

        async def counted(*arguments: Any) -> None:
            if next(looks, None) is None:
                raise EnoughError
            await look(*arguments)

        monkeypatch.setattr(found, "_look", counted)
        try:
            await found.changed()
        except EnoughError:
            return False
        return True

    async with asyncio.timeout(30):
        assert not await is_reported()
        answers["a.test", "A"] = ["127.0.0.3"]
        assert await is_reported()
        assert not await is_reported(), "as before, and just reported"
        answers["a.test", "A"] = ["127.0.0.4"]
        assert await is_reported()
        monkeypatch.setattr(found, "_told_again_at", 0.0)
        assert await is_reported(), "the reload may succeed by now"


async def test_it_tells_when_dns_names_others(dns: Dns, configured: Callable[..., Settings], tmp_path: Path) -> None:
    """Over shared storage an address that leaves DNS is removed; a failure of DNS changes nothing."""
    settings = configured("http://registry.test:5000", "addresses")
    dns.serve("--host-record=registry.test,127.0.0.2")
    node = Discovery(str(tmp_path / "found"))
    await node.expand(settings)
    node.confirm(settings)
    changed = spawn(node.changed(), "change")
    dns.serve("--host-record=registry.test,127.0.0.3")
    async with asyncio.timeout(60):
        await changed
    assert replicas(await node.expand(settings)) == [("127.0.0.3:5000", "http://127.0.0.3:5000", "registry.test")]
    dns.stop()
    assert replicas(await node.expand(settings)) == [("127.0.0.3:5000", "http://127.0.0.3:5000", "registry.test")]


async def test_a_replica_of_its_own_store_that_leaves_dns_is_not_forgotten(
    dns: Dns, configured: Callable[..., Settings], tmp_path: Path
) -> None:
    """The next start keeps it too, even without DNS: it is behind, and its missing writes must be recorded."""
    settings = configured("http://_registry._tcp.test", "srv", storage="independent")
    hosts = ("--host-record=one.test,127.0.0.2", "--host-record=two.test,127.0.0.3")
    one, two = "--srv-host=_registry._tcp.test,one.test,5001", "--srv-host=_registry._tcp.test,two.test,5002"
    path = str(tmp_path / "found")
    dns.serve(*hosts, one, two)
    both = replicas(await Discovery(path).expand(settings))
    dns.serve(*hosts, two)
    assert replicas(await Discovery(path).expand(settings)) == both
    dns.stop()
    assert replicas(await Discovery(path).expand(settings)) == both
    assert len(both) == 2


async def test_without_a_dns_server_what_is_configured_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a resolver starts; an entry for DNS has found nothing, and raises no traceback."""

    def no_servers(*_: Any, **__: Any) -> None:
        raise NoResolverConfiguration

    monkeypatch.setattr("dns.asyncresolver.Resolver", no_servers)
    routes = [{"prefix": "", "upstream": "main"}]
    main: dict[str, Any] = {"replicas": [{"url": "http://a.test"}]}
    settings = Settings.model_validate({"upstreams": {"main": main}, "routes": routes})
    assert await Discovery(str(tmp_path / "found")).expand(settings) == settings
    main = {"storage": "shared", "replicas": [{"url": "http://a.test", "discover": "addresses"}]}
    named = Settings.model_validate({"upstreams": {"main": main}, "routes": routes})
    with pytest.raises(StartError, match="no replica of upstream main"):
        await Discovery(str(tmp_path / "found")).expand(named)


async def test_without_any_replica_it_does_not_start(
    dns: Dns, configured: Callable[..., Settings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The error names the upstream and the DNS question; an unreadable memory file is no failure."""
    dns.serve()
    (tmp_path / "found").write_text("[]")
    with pytest.raises(StartError, match=r"no replica of upstream main: registry\.test \(addresses\)"):
        await Discovery(str(tmp_path / "found")).expand(configured("http://registry.test", "addresses"))
    assert "registry.test is not found in DNS" in caplog.text
