"""Receivers over HTTP: the hosts and the time limit of a delivery (events.sender.Sender).

The address decides that a connection is made to, after the resolver and whatever the notation (docs/decisions/51).
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import aiohttp
from yarl import URL

from registry_proxy.events.composition import compose
from registry_proxy.events.delivery import ANSWER_MAX_CHARACTERS, Delivery
from registry_proxy.events.sender import TRY_SECONDS, ReceiverAnswer
from registry_proxy.events.subscription import Subscription
from registry_proxy.protocol.addresses import parse_address
from registry_proxy.protocol.times import parse_retry_after
from registry_proxy.protocol.zones import InsideError, Zone, check_zone, zone_of

_SERVICES_KNOWN_SECONDS = 30.0
_LOOK_UP_SECONDS = 2.0
_ANSWER_MAX_BYTES = 4 * ANSWER_MAX_CHARACTERS
_log = logging.getLogger(__name__)

Endpoint = tuple[str, int]
"""A host and a port."""


@dataclass(frozen=True, slots=True)
class ReceiverLimits:
    """The receivers that deliveries may reach.

    Args:
        allows_private: whether receivers may have private addresses.
        allowed_hosts: hosts that may also be this machine.
        services: hosts and ports that never receive events: Redis, the replicas, the admin listener.
    """

    allows_private: bool
    allowed_hosts: Collection[str]
    services: Sequence[Endpoint]


async def receiver_doubt(limits: ReceiverLimits, address: str, *, resolves: bool) -> str | None:
    """Return why no delivery will reach a receiver, with the setting to change; None where none is known.

    Args:
        limits: the receivers that deliveries may reach.
        address: the URL of the receiver.
        resolves: whether a name is looked up: the answer shows whether it lies inside.
    """
    url = URL(address)
    host = url.host or ""
    if host in limits.allowed_hosts:
        return None
    zones = [zone_of(host)] if parse_address(host) is not None else await _zones_of_name(host) if resolves else []
    zone = min(zones, default=Zone.GLOBAL)
    if zone is Zone.LOOPBACK:
        why = f"the address is on this machine: list {url.raw_host} in events.allowed_hosts"
    elif zone is Zone.PRIVATE and not limits.allows_private:
        why = f"the address is private: set events.private, or list {url.raw_host} in events.allowed_hosts"
    elif zone is Zone.NEVER:
        why = "the address is one that no setting allows"
    else:
        return None
    return f"no event will reach {url.raw_host}: {why}"


async def _zones_of_name(host: str) -> list[Zone]:
    try:
        async with asyncio.timeout(_LOOK_UP_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # with TimeoutError, and labels that are too long
        return []
    return [zone_of(str(each[4][0])) for each in found]


class HttpSender:
    """Posts events; open until ``aclose``.

    Args:
        limits: the hosts that it may reach.
        clock: seconds since the epoch.
    """

    def __init__(self, limits: ReceiverLimits, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self._clock = clock
        self._forbidden: frozenset[Endpoint] = frozenset()
        self._forbidden_until = 0.0
        outer = Zone.PRIVATE if limits.allows_private else Zone.GLOBAL
        self._sessions = {
            is_listed: self._session(Zone.LOOPBACK if is_listed else outer) for is_listed in (True, False)
        }

    async def aclose(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()

    async def send(self, subscription: Subscription, number: int, delivery: Delivery) -> ReceiverAnswer:
        url = URL(subscription.url)
        request = compose(subscription, number, delivery, self._clock())
        session = self._sessions[url.host in self._limits.allowed_hosts]
        try:
            async with asyncio.timeout(TRY_SECONDS):
                await self._look_up_services()
                posting = session.post(url, data=request.body, headers=request.headers, allow_redirects=False)
                async with posting as response:
                    body = await response.content.read(_ANSWER_MAX_BYTES)
                    text = body.decode(errors="replace")[:ANSWER_MAX_CHARACTERS]
                    if 300 <= response.status < 400:
                        text = "redirects are not followed: subscribe with the URL that they lead to"
                    wait = parse_retry_after(response.headers.get("Retry-After"), self._clock())
                    return ReceiverAnswer(response.status, text, wait)
        except TimeoutError:
            return ReceiverAnswer(None, f"no answer within {TRY_SECONDS:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return ReceiverAnswer(None, _reason(error)[:ANSWER_MAX_CHARACTERS])

    def _session(self, limit: Zone) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10, socket_factory=partial(self._make_socket, limit)),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            requote_redirect_url=False,
        )

    def _make_socket(self, limit: Zone, address: aiohttp.AddrInfoType) -> socket.socket:
        host, port = address[4][0], int(address[4][1])
        check_zone(host, limit)
        if (host, port) in self._forbidden:
            raise InsideError
        return socket.socket(address[0], address[1], address[2])

    async def _look_up_services(self) -> None:
        """Learn the addresses that the services have now; those of a name that is not known stay out."""
        now = time.monotonic()
        if now < self._forbidden_until:
            return
        loop, found = asyncio.get_running_loop(), set[Endpoint]()
        for host, port in self._limits.services:
            try:
                addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError:
                continue
            found |= {(str(each[4][0]), port) for each in addresses}
        self._forbidden, self._forbidden_until = frozenset(found), now + _SERVICES_KNOWN_SECONDS


def _reason(error: BaseException) -> str:
    if isinstance(error, InsideError) or isinstance(error.__cause__, InsideError):
        return "the address is one that no event is sent to: see events.private and events.allowed_hosts"
    return f"{type(error).__name__}: {error}"
