"""Replicas that DNS names: found before the workers start, and again when what was found has expired.

The workers know nothing of it: their settings list the replicas as if the operator had. Another list is a reload.
"""

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from registry_proxy.config.errors import StartError
from registry_proxy.config.model import ReplicaSettings, Settings, UpstreamSettings
from registry_proxy.config.types import Address, is_replica_place
from registry_proxy.files.atomic import write_file

_ANSWER_SECONDS = 5.0
_LONGEST_SECONDS = 300.0
_SHORTEST_SECONDS = 1.0
_RETRY_SECONDS = 10.0
_WRITE_SECONDS = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class _Found:
    """A replica: ``name`` is its identity, ``server_name`` what it calls itself, ``address`` where it is now."""

    name: str
    address: str
    port: int
    server_name: str


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answer of DNS about an entry, the seconds it holds, and the unusable part of it, with the reason."""

    found: Sequence[_Found]
    seconds: float
    faults: Mapping[str, str] = field(default_factory=dict)


class Discovery:
    """Finds the replicas of the entries with ``discover``.

    The result is kept in a file, so that a node starts while DNS is away. A replica of an independent upstream that
    has left DNS stays there: it is down, and what it misses is still recorded.

    Args:
        path: of that file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._known: dict[str, list[_Found]] = self._read()
        self._expires_at: dict[str, float] = {}
        self._faults: dict[str, Mapping[str, str]] = {}
        self._given: dict[str, list[_Found]] = {}
        self._settings: Settings | None = None
        self._in_force: dict[str, list[_Found]] = {}
        self._confirmed = asyncio.Event()
        self._told: dict[str, list[_Found]] = {}
        self._told_again_seconds = _RETRY_SECONDS
        self._told_again_at = 0.0

    async def expand(self, settings: Settings) -> Settings:
        """Return the settings with the replicas that DNS names now in place of the entries that name DNS.

        Raises:
            StartError: an upstream would have no replica.
        """
        await self._look(settings)
        self._given = self._replicas_of(settings)
        return settings.model_copy(
            update={"upstreams": {name: self._expanded(name, each) for name, each in settings.upstreams.items()}}
        )

    def confirm(self, settings: Settings) -> None:
        """Take what ``expand`` gave last for settings, as they were configured, for what is in force now."""
        self._settings, self._in_force = settings, self._given
        self._confirmed.set()

    async def changed(self) -> None:
        """Return when DNS names other replicas than those in force; later and later again while it is the same ones."""
        clock = asyncio.get_running_loop().time
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._expires_seconds()):
                    await self._confirmed.wait()
            if self._settings is None or self._confirmed.is_set():  # what is to be looked at now expires otherwise
                self._confirmed.clear()
                continue
            await self._look(self._settings)
            named = self._replicas_of(self._settings)
            if named == self._in_force:
                continue
            is_new = named != self._told
            if is_new or clock() >= self._told_again_at:
                self._told = named
                self._told_again_seconds = (
                    _RETRY_SECONDS if is_new else min(2 * self._told_again_seconds, _LONGEST_SECONDS)
                )
                self._told_again_at = clock() + self._told_again_seconds
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

    def _replicas_of(self, settings: Settings) -> dict[str, list[_Found]]:
        sources = (_source(replica) for _, replica in _entries(settings))
        return {source: self._known.get(source, []) for source in sources}

    def _expires_seconds(self) -> float:
        """Return in how many seconds the first answer expires of those that the settings in force need."""
        if self._settings is None:
            return _LONGEST_SECONDS
        now = asyncio.get_running_loop().time()
        expiries = [self._expires_at.get(_source(replica), now) - now for _, replica in _entries(self._settings)]
        return max(min(expiries, default=_LONGEST_SECONDS), 0.0)

    async def _look(self, settings: Settings) -> None:
        before = dict(self._known)
        await asyncio.gather(*(self._ask(settings.nameservers, *entry) for entry in _entries(settings)))
        if self._known != before:
            with suppress(TimeoutError):  # a disk that hangs must not hold up the supervisor
                async with asyncio.timeout(_WRITE_SECONDS):
                    await asyncio.to_thread(self._write)

    async def _ask(self, nameservers: Sequence[Address], upstream: UpstreamSettings, replica: ReplicaSettings) -> None:
        ask = _find_targets if replica.discover == "srv" else _find_addresses
        source = _source(replica)
        try:
            answer = await ask(nameservers, replica)
        except OSError as error:
            faults = {f"{replica.host} is not found in DNS, the replicas stay as they were": str(error)}
            answer = _Answer(self._known.get(source, []), _RETRY_SECONDS, faults)
        for fault, reason in answer.faults.items():
            if fault not in self._faults.get(source, {}):  # said when it begins, not at each look
                _log.warning("%s: %s", fault, reason)
        self._faults[source] = answer.faults
        found = answer.found
        if upstream.storage == "independent":
            found = list({each.name: each for each in [*self._known.get(source, []), *found]}.values())
        self._known[source] = sorted(found)
        now = asyncio.get_running_loop().time()
        self._expires_at[source] = now + min(max(answer.seconds, _SHORTEST_SECONDS), _LONGEST_SECONDS)

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
            write_file(self._path, json.dumps(document, indent=1).encode())
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error.strerror)


def _entries(settings: Settings) -> Iterator[tuple[UpstreamSettings, ReplicaSettings]]:
    """Give each entry that names DNS, with its upstream."""
    for upstream in settings.upstreams.values():
        for replica in upstream.replicas:
            if replica.discover is not None:
                yield upstream, replica


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
    answers = await asyncio.gather(*(_records(nameservers, host, kind) for kind in ("A", "AAAA")))
    found = sorted(record.address for records, _ in answers for record in records)
    if not found:
        raise OSError(f"{host} has no address")
    return found, min(seconds for _, seconds in answers)


async def _find_addresses(nameservers: Sequence[Address], replica: ReplicaSettings) -> _Answer:
    """Every address of a name is a replica; an address is no identity, but over shared storage none is needed."""
    addresses, seconds = await _addresses(nameservers, replica.host)
    places = [Address(address, replica.port) for address in addresses]
    return _Answer([_Found(str(place), place.host, place.port, replica.host) for place in places], seconds)


async def _find_targets(nameservers: Sequence[Address], replica: ReplicaSettings) -> _Answer:
    """Every target of an SRV record is a replica, by its name and port (RFC 2782; priority and weight are not used)."""
    records, seconds = await _records(nameservers, replica.host, "SRV")
    if not records:
        raise OSError(f"{replica.host} has no SRV record")
    targets = [(record.target.to_text(omit_final_dot=True).lower(), record.port) for record in records]
    faults = {
        f"{target}:{port}, a target of {replica.host}, is left out": "it cannot be the name of a replica"
        for target, port in targets
        if not is_replica_place(target, port)
    }
    usable = sorted({(target, port) for target, port in targets if is_replica_place(target, port)})
    answers = await asyncio.gather(*(_addresses(nameservers, target) for target, _ in usable), return_exceptions=True)
    found = []
    for (target, port), answer in zip(usable, answers, strict=True):
        if isinstance(answer, OSError):
            faults[f"{target}, a target of {replica.host}, has no address"] = str(answer)
            seconds = min(seconds, _RETRY_SECONDS)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            addresses, holds = answer
            seconds = min(seconds, holds)
            found.append(_Found(f"{target}:{port}", addresses[0], port, target))
    return _Answer(found, seconds, faults)
