"""Owners of a listener's connections, and the connections that make room for others."""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from registry_proxy.edge.origin import Origins
from registry_proxy.http.connections import ConnectionLimits, Connections, Owner, Patience
from registry_proxy.ports.metrics import ConnectionEnd
from tests.support.fakes.memory import RecordingObserver

PROXIES = (ipaddress.ip_network("10.0.0.1/32"),)
MAX = 64
SHARE = 8
RESERVE = 8


@dataclass(eq=False)
class Connection:
    """A connection that is late, at rest, or not read by its client, for a number of seconds."""

    late_seconds: float = -1
    rests_seconds: float = -1
    stalls_seconds: float = -1
    has_ended: bool = False
    leave: list[Callable[[], None]] = field(default_factory=list)

    def is_late(self, now: float, patience: Patience) -> bool:  # noqa: ARG002 - a test sets it
        return self.late_seconds > patience.body

    def rests(self, now: float, seconds: float) -> bool:  # noqa: ARG002 - a test sets it
        return self.rests_seconds > seconds

    def stalls(self, now: float, seconds: float) -> bool:  # noqa: ARG002 - a test sets it
        return self.stalls_seconds > seconds

    def abort(self) -> None:
        self.has_ended = True
        for leave in self.leave:
            leave()


class Listener:
    """A listener with ``10.0.0.1`` as a trusted proxy."""

    def __init__(self) -> None:
        self.now = 100.0
        self.observer = RecordingObserver()
        self.connections = Connections(
            ConnectionLimits(connections_max=MAX), Origins(None, PROXIES), lambda: self.now, "public", self.observer
        )

    @property
    def ended(self) -> list[str]:
        """The reasons of the connections closed for others, in their order."""
        return [event.reason for event in self.observer.found(ConnectionEnd, "public")]

    def open(self, address: str, connection: Connection | None = None, *, is_unfinished: bool = False) -> Connection:
        """Open a connection."""
        made, book = connection or Connection(), self.connections

        def leave(owner: Owner, ends: Callable[[Connection, Owner], None]) -> None:
            made.leave.append(lambda: ends(made, owner))

        leave(book.open(made, address), book.close)
        if is_unfinished:
            leave(book.begin(made, address), book.end)
        return made


@pytest.fixture
def listener() -> Listener:
    """Make a listener."""
    return Listener()


def test_an_owner_has_a_share_of_what_is_unfinished(listener: Listener) -> None:
    """One connection beyond the share ends, as it is the latest; others, and finished ones, do not count."""
    own = [listener.open("192.0.2.1", is_unfinished=True) for _ in range(SHARE)]
    served = [listener.open("192.0.2.1") for _ in range(SHARE)]
    assert listener.open("192.0.2.1", is_unfinished=True).has_ended
    assert not listener.open("192.0.2.2", is_unfinished=True).has_ended
    own[0].leave[1]()
    assert not listener.open("192.0.2.1", is_unfinished=True).has_ended
    assert not any(connection.has_ended for connection in own + served)
    assert listener.ended == ["share"]


def test_a_late_one_makes_room_for_a_new_one_of_the_same_owner(listener: Listener) -> None:
    """Of one owner's share, an abuser's withheld request ends before a request that has just begun."""
    late = listener.open("192.0.2.1", Connection(late_seconds=5), is_unfinished=True)
    for _ in range(SHARE):
        assert not listener.open("192.0.2.1", is_unfinished=True).has_ended
    assert late.has_ended


def test_a_network_of_ipv6_is_one_owner_and_a_trusted_proxy_none(listener: Listener) -> None:
    """A /64 has one share; a proxy stands for many owners, and mapped addresses are those of IPv4."""
    for number in range(SHARE):
        listener.open(f"2001:db8::{number}", is_unfinished=True)
        listener.open("192.0.2.1" if number % 2 else "::ffff:192.0.2.1", is_unfinished=True)
    assert listener.open("2001:db8::ffff:1", is_unfinished=True).has_ended
    assert listener.open("::ffff:192.0.2.1", is_unfinished=True).has_ended
    assert not listener.open("2001:db8:0:1::1", is_unfinished=True).has_ended
    assert not any(listener.open("10.0.0.1", is_unfinished=True).has_ended for _ in range(2 * SHARE))


def test_slow_and_idle_connections_make_room_before_there_are_too_many(listener: Listener) -> None:
    """From three quarters on those that are late or at rest for long are closed; none in use is."""
    idle = [listener.open("192.0.2.1", Connection(rests_seconds=60)) for _ in range(10)]
    late = [
        listener.open(f"198.51.100.{number}", Connection(late_seconds=11), is_unfinished=True) for number in range(10)
    ]
    brisk = [listener.open(f"192.0.2.{number}", Connection(late_seconds=2), is_unfinished=True) for number in range(10)]
    served = [listener.open("203.0.113.1") for _ in range(18)]
    assert (listener.connections.shortage(), any(each.has_ended for each in idle + late)) == ("", False)
    listener.open("203.0.113.2")
    assert all(each.has_ended for each in idle + late)
    assert not any(each.has_ended for each in brisk + served)
    assert listener.connections.shortage() == "short"  # also with room again
    listener.now += 60
    assert listener.connections.shortage() == ""


def test_the_heaviest_owner_makes_room_for_a_newcomer(listener: Listener) -> None:
    """When all connections are in use, the newest requests of an owner of many give way to the first of another."""
    heavy = [listener.open("198.51.100.1", Connection(late_seconds=0.5), is_unfinished=True) for _ in range(SHARE)]
    light = [
        listener.open(f"192.0.2.{number}", Connection(late_seconds=0.5), is_unfinished=True)
        for number in range(MAX - SHARE)
    ]
    assert not listener.open("203.0.113.1", is_unfinished=True).has_ended
    assert all(each.has_ended for each in heavy)
    assert not any(each.has_ended for each in light)
    assert listener.ended == ["room"] * SHARE


def test_a_few_too_many_are_kept_for_health_checks(listener: Listener) -> None:
    """While all connections are in use there is room for anybody's health checks: the latest connections stay."""
    served = [listener.open(f"192.0.2.{number}") for number in range(MAX)]
    reserved = [listener.open("198.51.100.1") for _ in range(RESERVE)]
    assert listener.connections.shortage() == "full"
    assert all(listener.connections.is_reserved(each) and not each.has_ended for each in reserved)
    latest = listener.open("203.0.113.1")
    assert (reserved[0].has_ended, latest.has_ended, listener.connections.is_reserved(latest)) == (True, False, True)
    for each in served[:RESERVE]:
        each.abort()
    assert not listener.connections.is_reserved(latest)
    assert listener.ended == ["full"] * (RESERVE + 1)
    assert listener.connections.shortage() == "short"


def test_nothing_is_remembered_of_those_who_left(listener: Listener) -> None:
    """No address grows the memory beyond its connections."""
    for number in range(200):
        listener.open(f"192.0.2.{number}", is_unfinished=True).abort()
    assert (listener.connections.total, listener.connections._owners) == (0, {})


def test_those_who_find_no_room_do_not_hinder_those_who_would(listener: Listener) -> None:
    """After a search for an owner of many found none, a newcomer without connections still starts a new search."""
    for number in range(MAX):
        listener.open(f"198.51.100.{number // SHARE}", Connection(late_seconds=0.5), is_unfinished=True)
    crowd = [listener.open("198.51.100.1") for _ in range(3)]
    assert all(listener.connections.is_reserved(each) for each in crowd)
    newcomer = listener.open("203.0.113.1")
    assert not listener.connections.is_reserved(newcomer)


def test_answers_that_nobody_takes_make_room_last(listener: Listener) -> None:
    """Before a newcomer is refused, connections with unread answers are closed; others in use stay."""
    slow = [listener.open("192.0.2.1", Connection(stalls_seconds=5)) for _ in range(MAX - 2)]
    stalled, resting = Connection(stalls_seconds=20), Connection(rests_seconds=20)
    for connection in (stalled, resting):
        listener.open("192.0.2.1", connection)
    assert resting.has_ended or not listener.open("192.0.2.2").has_ended
    assert not any(listener.open("192.0.2.2").has_ended for _ in range(2))
    assert stalled.has_ended
    assert not any(connection.has_ended for connection in slow)


def test_a_site_has_the_shares_of_two_owners(listener: Listener) -> None:
    """The 65,536 owners of a /48 together have no more unfinished requests than two owners elsewhere."""
    for number in range(2 * SHARE):
        assert not listener.open(f"2001:db8:0:{number}::1", is_unfinished=True).has_ended
    assert listener.open("2001:db8:0:ffff::1", is_unfinished=True).has_ended
    assert not listener.open("2001:db8:1::1", is_unfinished=True).has_ended
    assert listener.ended == ["share"]


def test_the_heaviest_site_makes_room_for_a_newcomer(listener: Listener) -> None:
    """When all connections are in use, those of a site with many give way, though each of its owners has but one."""
    heavy = [
        listener.open(f"2001:db8:0:{number}::1", Connection(late_seconds=0.5), is_unfinished=True)
        for number in range(2 * SHARE)
    ]
    light = [
        listener.open(f"192.0.2.{number}", Connection(late_seconds=0.5), is_unfinished=True)
        for number in range(MAX - 2 * SHARE)
    ]
    listener.open("203.0.113.1", is_unfinished=True)
    assert all(each.has_ended for each in heavy)
    assert not any(each.has_ended for each in light)


def test_a_site_whose_newcomers_find_no_room_is_not_looked_for_each_time(listener: Listener) -> None:
    """An owner counts with the others of its site: else each newcomer would cost a look at all connections."""
    looks = 0

    class Counted(Connection):
        def is_late(self, now: float, patience: Patience) -> bool:
            nonlocal looks
            looks += 1
            return super().is_late(now, patience)

    for number in range(MAX):
        listener.open(f"2001:db8:{number // SHARE}:{number % SHARE}::1", Counted(), is_unfinished=True)
    listener.now += 1
    listener.open("2001:db8:0:a::1")
    first = looks
    assert first
    for number in range(5):
        listener.open(f"2001:db8:0:b{number}::1")
    assert looks == first


def test_nothing_is_remembered_of_sites_that_left(listener: Listener) -> None:
    """Neither an address nor its site grows the memory beyond its connections."""
    for number in range(200):
        listener.open(f"2001:db8:{number}::1", is_unfinished=True).abort()
    assert (listener.connections.total, listener.connections._owners, listener.connections._sites) == (0, {}, {})
