"""The connections of a listener: their owners, and those that make room for others when they run short.

A connection is *unfinished* while a head or a body is on its way, *at rest* between two requests, else it is being
served. Each owner of addresses has a share of what is unfinished, and so has each site, which may have many owners.
Under shortage the slowest unfinished ones and those at rest make room, those of the heaviest site and owner first, then
those whose clients take nothing of their answers; no other connection that is being served is ended for another.
"""

import logging
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, Literal, Protocol, Self

from multidict import CIMultiDictProxy

from registry_proxy.ports.metrics import ConnectionEnd, Listener, Observer
from registry_proxy.protocol.addresses import address_owner, site_of

LEAST_BYTES_PER_SECOND: Final = 4096
"""A body that comes more slowly is ended under shortage."""

_SHARE: Final = 8
"""One owner has at most an eighth of all connections unfinished."""

_OWNERS_OF_A_SITE: Final = 2
"""A site has at most the shares of so many owners: its /48 makes 65,536 of them."""

_CROWD: Final = 8
"""From an eighth of a share on the bodies of an owner are read into small buffers."""

HELD_MAX_BYTES: Final = 64 * 1024 * 1024
"""Of the unfinished small bodies of one owner, which are kept whole."""

_RESERVE: Final = 32
"""A 32nd is accepted beyond the maximum, for health checks alone."""

_SHORT: Final = 0.75
"""The part of all connections from which on they run short."""

_LOOKED_AT_OF_SHARE: Final = 16
_ROOM_MADE_AT_ONCE: Final = 64
_LOOK_SECONDS: Final = 0.05
_LOOK_SECONDS_EXEMPT: Final = 0.005
"""For what comes through a trusted proxy, which stands for many callers."""

_LOG_SECONDS: Final = 60.0
_TOLD_SECONDS: Final = 10.0
"""A shortage is reported for so long after the last connection made room: at each moment there is some again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """For how many seconds a head may be on its way, a body may be late, a connection rest, an answer wait untaken."""

    head: float
    body: float
    rest: float
    answer: float


_SHORT_PATIENCE: Final = Patience(5, 10, 10, 60)
_FULL_PATIENCE: Final = Patience(1, 1, 1, 10)
_HEAVIER_PATIENCE: Final = Patience(0, 0.2, 0, 10)
"""With those of an owner who has more than the newcomer, when there is no room at all."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds on what clients may hold of one listener in one process.

    Args:
        header_seconds: from the first byte of a request, or from the connect, to the end of its head.
        keep_alive_seconds: how long a connection may rest between requests.
        connections_max: at once; beyond it only health checks are answered.
        answer_seconds: how long a client may read nothing of an answer.
    """

    header_seconds: float = 15.0
    keep_alive_seconds: float = 75.0
    connections_max: int = 8192
    answer_seconds: float = 300.0

    def within_files(self, part: int) -> Self:
        """Return the limits for a process that may open few files: at most one in ``part`` of them for connections."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        connections_max = min(self.connections_max, max(_SHARE, files // part))
        return replace(self, connections_max=connections_max)


class Connection(Protocol):
    """A connection as the ``Connections`` of its listener know it; ``now`` is by the loop's clock."""

    def is_late(self, now: float, patience: Patience) -> bool:
        """Tell whether a head has been on its way for too long, or a body comes more slowly than the least rate."""
        ...

    def rests(self, now: float, seconds: float) -> bool:
        """Tell whether it has been at rest for longer than ``seconds``."""
        ...

    def stalls(self, now: float, seconds: float) -> bool:
        """Tell whether its client has read nothing of an answer for longer than ``seconds``."""
        ...

    def abort(self) -> None:
        """End it at once, and report that to ``Connections``."""
        ...


@dataclass(frozen=True, slots=True)
class Sender:
    """The origin of a request: the address of the peer, and the headers in which a trusted proxy says more."""

    remote: str | None
    headers: CIMultiDictProxy[str]


class SenderAddresses(Protocol):
    """Knows whose requests come through trusted proxies."""

    def is_trusted(self, address: str) -> bool: ...
    def client_address(self, request: Sender) -> str: ...


@dataclass(eq=False, slots=True)
class Owner:
    """All addresses of one caller, or of one site; of ``unfinished`` the oldest are first.

    ``share``: how many may be unfinished; None for a trusted proxy, which stands for many callers. ``site`` is None for
    a site, and where the addresses are one by themselves. ``held_bytes`` are those of its unfinished small bodies.
    """

    name: str
    share: int | None
    site: "Owner | None" = None
    connections: set[Connection] = field(default_factory=set)
    unfinished: dict[Connection, None] = field(default_factory=dict)
    held_bytes: int = 0

    @property
    def whole(self) -> "Owner":
        """The site, or this owner where it is one by itself."""
        return self.site or self

    @property
    def is_full(self) -> bool:
        """Whether it has its share."""
        return self.share is not None and len(self.unfinished) >= self.share

    @property
    def is_crowded(self) -> bool:
        """Whether it has so much unfinished that large buffers would fill the memory."""
        return any(
            each.share is not None and len(each.unfinished) > each.share // _CROWD for each in (self, self.whole)
        )

    def has_room_for(self, size_bytes: int) -> bool:
        """Tell whether so many more bytes of small bodies may be held."""
        return self.share is None or self.held_bytes + size_bytes <= HELD_MAX_BYTES


class Connections:
    """The connections of one listener in this process.

    Args:
        limits: how many there may be.
        addresses: knows the caller of a request.
        clock: the loop's.
        listener: the one that accepts the connections.
        observer: receives an event for each connection that is ended for others.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        addresses: SenderAddresses,
        clock: Callable[[], float],
        listener: Listener,
        observer: Observer,
    ) -> None:
        self.limits = limits
        self.addresses = addresses
        self.total = 0
        self._clock = clock
        self._listener: Listener = listener
        self._observer = observer
        self._share = max(_SHARE, limits.connections_max // _SHARE)
        self._short = max(1, int(limits.connections_max * _SHORT))
        self._reserve = max(_SHARE, limits.connections_max // _RESERVE)
        self._owners: dict[str, Owner] = {}
        self._sites: dict[str, Owner] = {}
        self._reserved: dict[Connection, None] = {}
        self._found_few = {True: (0.0, 0), False: (0.0, 0)}
        self._tells_from: dict[str, float] = {}
        self._short_until = 0.0

    def open(self, connection: Connection, address: str) -> Owner:
        """Count a new connection; one that is too many ends, or makes another one end. Return whose it is."""
        owner = self._owner(address)
        owner.connections.add(connection)
        owner.whole.connections.add(connection)
        self.total += 1
        if self.total > self._short:
            self._make_room(owner)
            if self.total > self.limits.connections_max:
                self._reserve_for(connection)
        return owner

    def close(self, connection: Connection, owner: Owner) -> None:
        """Forget a connection that has ended; a second time does nothing."""
        if connection in owner.connections:
            owner.connections.remove(connection)
            owner.whole.connections.discard(connection)
            self.total -= 1
            self._reserved.pop(connection, None)
            self._forget(owner)

    def is_reserved(self, connection: Connection) -> bool:
        """Tell whether a connection is one too many, and good for health checks alone."""
        return bool(self._reserved) and connection in self._reserved and self.total > self.limits.connections_max

    def begin(self, connection: Connection, address: str) -> Owner:
        """Count an unfinished head or body of a caller; return whose it is. Over their share the latest one ends."""
        owner = self._owner(address)
        for each in (owner, owner.whole):
            if each.is_full and self._cut(each, connection) is connection:
                return owner
        owner.unfinished[connection] = owner.whole.unfinished[connection] = None
        return owner

    def _cut(self, owner: Owner, newcomer: Connection) -> Connection:
        """End a late one of those that are unfinished, else the newcomer; return which."""
        now = self._clock()
        first = islice(owner.unfinished, _LOOKED_AT_OF_SHARE)
        late = next((one for one in first if one.is_late(now, _FULL_PATIENCE)), newcomer)
        self._tell("share", f"{owner.name} has its share of {owner.share} unfinished requests: one of them is cut")
        self._observer.observe(ConnectionEnd(self._listener, "share"))
        late.abort()
        return late

    def end(self, connection: Connection, owner: Owner) -> None:
        """Count it no more: it has come, or its connection has ended."""
        if owner.unfinished.pop(connection, self) is None:
            owner.whole.unfinished.pop(connection, None)
            self._forget(owner)

    def shortage(self) -> Literal["", "short", "full"]:
        """Tell whether connections run short, or can be had no more by those who have none."""
        if self.total > self.limits.connections_max:
            return "full"
        return "short" if self.total > self._short or self._clock() < self._short_until else ""

    def _owner(self, address: str) -> Owner:
        name = address_owner(address)
        owner = self._owners.get(name)
        if owner is None:
            share = None if self.addresses.is_trusted(address) else self._share
            owner = self._owners[name] = Owner(name, share, None if share is None else self._site(name))
        return owner

    def _site(self, owner: str) -> Owner | None:
        name = site_of(owner)
        if name == owner:
            return None
        return self._sites.setdefault(name, Owner(name, self._share * _OWNERS_OF_A_SITE))

    def _forget(self, owner: Owner) -> None:
        for each, known in ((owner, self._owners), (owner.site, self._sites)):
            if each is not None and not each.connections and not each.unfinished:
                known.pop(each.name, None)

    # ------------------------------------------------------------ room for others

    def _make_room(self, newcomer: Owner) -> None:
        """End some that are late or at rest.

        Where few are, it is looked at again after a moment only, or for a newcomer who has fewer connections.
        """
        now = self._clock()
        is_full = self.total > self.limits.connections_max
        looks_from, weight = self._found_few[is_full]
        own_weight = 0 if newcomer.share is None else len(newcomer.whole.connections)
        if now < looks_from and own_weight >= weight:
            return
        victims = list(islice(self._candidates(newcomer, now, is_full=is_full), _ROOM_MADE_AT_ONCE))
        if len(victims) < _ROOM_MADE_AT_ONCE:
            self._found_few[is_full] = (now + (_LOOK_SECONDS if own_weight else _LOOK_SECONDS_EXEMPT), own_weight)
        if victims:
            self._short_until = now + _TOLD_SECONDS
            self._tell("short", f"connections run short, {self.total} are open: slow and idle ones are ended")
        for connection in victims:
            self._observer.observe(ConnectionEnd(self._listener, "room"))
            connection.abort()

    def _candidates(self, newcomer: Owner, now: float, *, is_full: bool) -> Iterator[Connection]:
        patience = _FULL_PATIENCE if is_full else _SHORT_PATIENCE
        owners = [owner for owner in self._owners.values() if owner.share is not None]
        for owner in sorted(owners, key=_unfinished, reverse=True):
            with_owner = _HEAVIER_PATIENCE if is_full and _is_heavier(owner, newcomer, _unfinished) else patience
            yield from (each for each in owner.unfinished if each.is_late(now, with_owner))
        owners.sort(key=_open, reverse=True)
        for owner in owners:
            with_owner = _HEAVIER_PATIENCE if is_full and _is_heavier(owner, newcomer, _open) else patience
            yield from (each for each in owner.connections if each.rests(now, with_owner.rest))
        for owner in owners:
            yield from (each for each in owner.connections if each.stalls(now, patience.answer))

    def _reserve_for(self, connection: Connection) -> None:
        """Keep one that is too many for the moment of a health check; of these the latest stay."""
        if len(self._reserved) >= self._reserve:
            next(iter(self._reserved)).abort()
        self._reserved[connection] = None
        self._observer.observe(ConnectionEnd(self._listener, "full"))
        self._tell("full", f"there are too many connections, {self.total}: new ones are refused")

    def _tell(self, what: str, text: str) -> None:
        now = self._clock()
        if now >= self._tells_from.get(what, now):
            self._tells_from[what] = now + _LOG_SECONDS
            _log.warning("%s", text)


def _unfinished(owner: Owner) -> tuple[int, int]:
    return len(owner.whole.unfinished), len(owner.unfinished)


def _open(owner: Owner) -> tuple[int, int]:
    return len(owner.whole.connections), len(owner.connections)


def _is_heavier(owner: Owner, newcomer: Owner, weigh: Callable[[Owner], tuple[int, int]]) -> bool:
    """Tell whether an owner has more than a newcomer, who counts already: their sites, or both within one site."""
    (site, own), (site_of_newcomer, own_of_newcomer) = weigh(owner), weigh(newcomer)
    if owner.whole is newcomer.whole:
        return own > own_of_newcomer + 1
    return site > site_of_newcomer + 1
