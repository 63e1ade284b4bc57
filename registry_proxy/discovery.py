"""Replicas that DNS names: found before the workers start, and again when what was found has expired.

The workers know nothing of it: their settings list the replicas as if the operator had. Another list is a reload.
"""

import asyncio
import ipaddress
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.resolver

from registry_proxy.node import StartError
from registry_proxy.settings import Address, ReplicaSettings, Settings, UpstreamSettings

_ANSWER_SECONDS = 5.0
_LONGEST_SECONDS = 300.0
_SHORTEST_SECONDS = 1.0
_RETRY_SECONDS = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class _Found:
    """A replica: ``name`` is its identity, ``server_name`` what it calls itself, ``address`` where it is now."""

    name: str
    address: str
    port: int
    server_name: str


class Discovery:
    """Finds the replicas of the entries with ``discover``.

    What was found is kept in a file, so that a node starts while DNS is away. A replica of an independent upstream that
    has left DNS stays there: it is down, and what it misses is still recorded.

    Args:
        path: of that file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: dict[str, list[_Found]] = self._read()
        self._in_force: dict[str, list[_Found]] = {}
        self._settings: Settings | None = None
        self._expires_seconds = _LONGEST_SECONDS

    async def expand(self, settings: Settings) -> Settings:
        """Return the settings with the replicas that DNS names now in place of the entries that name DNS.

        Raises:
            StartError: an upstream would have no replica.
        """
        await self._look(settings)
        return settings.model_copy(
            update={"upstreams": {name: self._expanded(name, each) for name, each in settings.upstreams.items()}}
        )

    def confirm(self, settings: Settings) -> None:
        """Take what ``expand`` gave last for settings, as they were configured, for what is in force now."""
        self._settings = settings
        self._in_force = {source: list(found) for source, found in self._known.items()}

    async def changed(self) -> None:
        """Return when DNS names other replicas than those in force; again and again until they are."""
        while True:
            await asyncio.sleep(self._expires_seconds)
            if self._settings is not None:
                await self._look(self._settings)
            if self._known != self._in_force:
                return

    # ------------------------------------------------------------ inside

    def _expanded(self, name: str, upstream: UpstreamSettings) -> UpstreamSettings:
        replicas: dict[str, ReplicaSettings] = {}
        for replica in upstream.replicas:
            if replica.discover is None:
                replicas.setdefault(replica.name, replica)
                continue
            for found in self._known.get(_source(replica), []):
                replicas.setdefault(found.name, _replica(replica, found))
        if not replicas:
            wanted = ", ".join(f"{each.host} ({each.discover})" for each in upstream.replicas)
            raise StartError(f"DNS names no replica of upstream {name}: {wanted}; the log says what it answered")
        return upstream.model_copy(update={"replicas": tuple(replicas.values())})

    async def _look(self, settings: Settings) -> None:
        self._expires_seconds = _LONGEST_SECONDS
        if not any(each.discover for upstream in settings.upstreams.values() for each in upstream.replicas):
            return
        try:
            resolver = _resolver(settings.nameservers)
        except dns.exception.DNSException as error:
            _log.warning("there is no DNS server to ask (nameservers, or /etc/resolv.conf): %s", error)
            self._expires_seconds = _RETRY_SECONDS
            return
        before = {source: list(found) for source, found in self._known.items()}
        for upstream in settings.upstreams.values():
            for replica in upstream.replicas:
                if replica.discover is not None:
                    await self._ask(resolver, replica, keeps_all=upstream.storage == "independent")
        if self._known != before:
            self._write()

    async def _ask(self, resolver: dns.asyncresolver.Resolver, replica: ReplicaSettings, *, keeps_all: bool) -> None:
        ask = _find_targets if replica.discover == "srv" else _find_addresses
        source = _source(replica)
        known = self._known.get(source, [])
        try:
            found, seconds = await ask(resolver, replica)
        except (dns.exception.DNSException, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            _log.warning("%s is not found in DNS, the replicas stay as they were: %s", replica.host, reason)
            seconds, found = _RETRY_SECONDS, known
        if keeps_all:
            found = list({each.name: each for each in [*known, *found]}.values())
        self._known[source] = sorted(found)
        self._expires_seconds = min(self._expires_seconds, max(seconds, _SHORTEST_SECONDS))

    def _read(self) -> dict[str, list[_Found]]:
        try:
            with open(self._path, encoding="utf-8") as file:
                document = json.load(file)
            return {source: [_Found(**each) for each in found] for source, found in document.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            _log.warning("%s cannot be used, replicas that have left DNS are not known: %s", self._path, error)
            return {}

    def _write(self) -> None:
        document = {source: [asdict(each) for each in found] for source, found in self._known.items()}
        try:
            with open(f"{self._path}.new", "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)
            os.replace(f"{self._path}.new", self._path)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error.strerror)


def _source(replica: ReplicaSettings) -> str:
    return f"{replica.discover} {replica.url}"


def _replica(source: ReplicaSettings, found: _Found) -> ReplicaSettings:
    parts = urlsplit(source.url)
    host = f"[{found.address}]" if ipaddress.ip_address(found.address).version == 6 else found.address
    return source.model_copy(
        update={
            "discover": None,
            "name": found.name,
            "url": parts._replace(netloc=f"{host}:{found.port}").geturl(),
            "server_name": found.server_name,
            "realm_hosts": (*source.realm_hosts, found.server_name),
        }
    )


def _resolver(nameservers: Sequence[Address]) -> dns.asyncresolver.Resolver:
    resolver = dns.asyncresolver.Resolver(configure=not nameservers)
    if nameservers:
        resolver.nameservers = [dns.nameserver.Do53Nameserver(each.host, each.port) for each in nameservers]
    resolver.lifetime = _ANSWER_SECONDS
    return resolver


async def _addresses(resolver: dns.asyncresolver.Resolver, host: str) -> tuple[list[str], float]:
    """Return the addresses of a host, sorted, at least one, and for how many seconds they hold."""
    found: list[str] = []
    seconds = _LONGEST_SECONDS
    for kind in ("A", "AAAA"):
        answer = await resolver.resolve(host, kind, raise_on_no_answer=False, search=True)
        if answer.rrset is not None:
            found += [record.address for record in answer]
            seconds = min(seconds, answer.rrset.ttl)
    if not found:
        raise OSError(f"{host} has no address")
    return sorted(found), seconds


async def _find_addresses(resolver: dns.asyncresolver.Resolver, replica: ReplicaSettings) -> tuple[list[_Found], float]:
    """Every address of a name is a replica; an address is no identity, but over shared storage none is needed."""
    addresses, seconds = await _addresses(resolver, replica.host)
    names = {address: f"[{address}]" if ":" in address else address for address in addresses}
    port = replica.port
    return [_Found(f"{name}:{port}", address, port, replica.host) for address, name in names.items()], seconds


async def _find_targets(resolver: dns.asyncresolver.Resolver, replica: ReplicaSettings) -> tuple[list[_Found], float]:
    """Every target of an SRV record is a replica, by its name and port (RFC 2782; priority and weight are not used)."""
    answer = await resolver.resolve(replica.host, "SRV", search=True)
    found, seconds = [], float(answer.rrset.ttl) if answer.rrset is not None else _RETRY_SECONDS
    for record in answer:
        target = record.target.to_text(omit_final_dot=True)
        try:
            addresses, holds = await _addresses(resolver, target)
        except (dns.exception.DNSException, OSError) as error:
            _log.warning("%s, a target of %s, has no address: %s", target, replica.host, error)
            seconds = min(seconds, _RETRY_SECONDS)
        else:
            seconds = min(seconds, holds)
            found.append(_Found(f"{target}:{record.port}", addresses[0], record.port, target))
    return found, seconds
