"""Replicas by DNS, asked of a real dnsmasq."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dns.resolver import NoResolverConfiguration

from registry_proxy.discovery import Discovery
from registry_proxy.node import StartError
from registry_proxy.settings import Settings
from registry_proxy.tasks import spawn
from tests.conftest import require_program
from tests.servers import Dns, dnsmasq


@pytest.fixture
def dns(tmp_path: Path) -> Iterator[Dns]:
    """A DNS server; it serves the records that it is given."""
    server = dnsmasq(tmp_path / "dns", require_program("dnsmasq"))
    yield server
    server.stop()


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
    """IPv4 and IPv6, in a stable order, called by the name of the URL."""
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
    """A target is called and known by its own name, wherever its address is; ports are those of the record."""
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


async def test_it_tells_when_dns_names_others(dns: Dns, configured: Callable[..., Settings], tmp_path: Path) -> None:
    """Over shared storage an address that leaves DNS is gone; a lapse of DNS changes nothing."""
    settings = configured("http://registry.test:5000", "addresses")
    dns.serve("--host-record=registry.test,127.0.0.2")
    discovery = Discovery(str(tmp_path / "found"))
    await discovery.expand(settings)
    discovery.confirm(settings)
    changed = spawn(discovery.changed(), "change")
    dns.serve("--host-record=registry.test,127.0.0.3")
    async with asyncio.timeout(60):
        await changed
        await discovery.changed()  # as long as nobody has confirmed it
    assert replicas(await discovery.expand(settings)) == [("127.0.0.3:5000", "http://127.0.0.3:5000", "registry.test")]
    dns.stop()
    assert replicas(await discovery.expand(settings)) == [("127.0.0.3:5000", "http://127.0.0.3:5000", "registry.test")]


async def test_a_replica_of_its_own_store_that_leaves_dns_is_not_forgotten(
    dns: Dns, configured: Callable[..., Settings], tmp_path: Path
) -> None:
    """Also by the next start, also when DNS is away then: it is behind, and what it misses must be recorded."""
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
    """A machine without a resolver starts; an entry for DNS is told to have found nothing, not a traceback."""

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
    """The error names the upstream and what was asked; a file that is no memory is no reason to fail."""
    dns.serve()
    (tmp_path / "found").write_text("[]")
    with pytest.raises(StartError, match=r"no replica of upstream main: registry\.test \(addresses\)"):
        await Discovery(str(tmp_path / "found")).expand(configured("http://registry.test", "addresses"))
    assert "registry.test is not found in DNS" in caplog.text
