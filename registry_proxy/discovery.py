"""Replicas that DNS names: found before the workers start, and again when what was found has expired.

The workers know nothing of it: their settings list the replicas as if the operator had. Another list is a reload.
"""

import asyncio
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

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
        self._in_force = dict(self._known)

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
        before = dict(self._known)
        for upstream in settings.upstreams.values():
            for replica in upstream.replicas:
                if replica.discover is not None:
                    await self._ask(settings.nameservers, replica, keeps_all=upstream.storage == "independent")
        if self._known != before:
            self._write()

    async def _ask(self, nameservers: Sequence[Address], replica: ReplicaSettings, *, keeps_all: bool) -> None:
        ask = _find_targets if replica.discover == "srv" else _find_addresses
        source = _source(replica)
        known = self._known.get(source, [])
        try:
            found, seconds = await ask(nameservers, replica)
        except OSError as error:
            _log.warning("%s is not found in DNS, the replicas stay as they were: %s", replica.host, error)
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
    place = Address(found.address, found.port)
    return source.model_copy(
        update={
            "discover": None,
            "name": found.name,
            "url": urlsplit(source.url)._replace(netloc=str(place)).geturl(),
            "server_name": found.server_name,
            "realm_hosts": (*source.realm_hosts, found.server_name),
        }
    )


async def _records(nameservers: Sequence[Address], name: str, kind: str) -> tuple[list[Any], float]:
    """Return the records of a kind that a name has, and for how many seconds they hold; [] where it has none.

    Raises:
        OSError: there is no such name, or DNS does not say.
    """
    import dns.asyncresolver  # noqa: PLC0415 - a tenth of the supervisor's start, and few have their replicas from DNS
    import dns.exception  # noqa: PLC0415 - as above
    import dns.nameserver  # noqa: PLC0415 - as above

    try:
        resolver = dns.asyncresolver.Resolver(configure=not nameservers)
        if nameservers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(each.host, each.port) for each in nameservers]
        resolver.lifetime = _ANSWER_SECONDS
        answer = await resolver.resolve(name, kind, raise_on_no_answer=False, search=True)
    except dns.exception.DNSException as error:
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error
    return ([], _LONGEST_SECONDS) if answer.rrset is None else (list(answer), float(answer.rrset.ttl))


async def _addresses(nameservers: Sequence[Address], host: str) -> tuple[list[str], float]:
    """Return the addresses of a host, sorted, at least one, and for how many seconds they hold. Raises OSError."""
    found: list[str] = []
    seconds = _LONGEST_SECONDS
    for kind in ("A", "AAAA"):
        records, holds = await _records(nameservers, host, kind)
        found += [record.address for record in records]
        seconds = min(seconds, holds)
    if not found:
        raise OSError(f"{host} has no address")
    return sorted(found), seconds


async def _find_addresses(nameservers: Sequence[Address], replica: ReplicaSettings) -> tuple[list[_Found], float]:
    """Every address of a name is a replica; an address is no identity, but over shared storage none is needed."""
    addresses, seconds = await _addresses(nameservers, replica.host)
    places = [Address(address, replica.port) for address in addresses]
    return [_Found(str(place), place.host, place.port, replica.host) for place in places], seconds


async def _find_targets(nameservers: Sequence[Address], replica: ReplicaSettings) -> tuple[list[_Found], float]:
    """Every target of an SRV record is a replica, by its name and port (RFC 2782; priority and weight are not used)."""
    records, seconds = await _records(nameservers, replica.host, "SRV")
    if not records:
        raise OSError(f"{replica.host} has no SRV record")
    found = []
    for record in records:
        target = record.target.to_text(omit_final_dot=True)
        try:
            addresses, holds = await _addresses(nameservers, target)
        except OSError as error:
            _log.warning("%s, a target of %s, has no address: %s", target, replica.host, error)
            seconds = min(seconds, _RETRY_SECONDS)
        else:
            seconds = min(seconds, holds)
            found.append(_Found(f"{target}:{record.port}", addresses[0], record.port, target))
    return found, seconds
