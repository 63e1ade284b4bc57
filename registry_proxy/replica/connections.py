"""The connections to replicas: data, probes and tokens never wait for one another."""

import asyncio
import socket
import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError, RawResponseMessage

from registry_proxy.protocol.zones import Zone, check_zone, zone_of

_READ_BUFFER_BYTES = 256 * 1024
_MAX_HEADER_BYTES = 32 * 1024
"""Signed redirect locations are long."""

INFORMATIONAL_MAX = 32
"""More informational answers than that before an answer are taken for an attack."""

_READ_BEFORE_ANSWER_BYTES = 4096
_DEAD_PEER_MILLISECONDS = 30_000
REDIRECTS = frozenset({301, 302, 303, 307, 308})
REDIRECTS_MAX = 5


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """The address of a replica, and our login there.

    Args:
        upstream: name of its upstream.
        name: name of the replica.
        url: base URL, http or https, without ``/v2/``.
        username: for Basic or the token endpoint; None for anonymous.
        password: belongs to it.
        ca_file: PEM file of certificates trusted besides the system's.
        realm_hosts: hosts besides its own at which its tokens may be fetched, with the password.
        redirect_hosts: hosts that its redirects may lead to wherever they are, also inside the network.
        allow_plain_credentials: send the password over plain HTTP beyond loopback.
        server_name: what it is called by, in TLS and the Host header; None for the host of the URL.
    """

    upstream: str
    name: str
    url: str
    username: str | None = None
    password: str | None = None
    ca_file: Path | None = None
    realm_hosts: tuple[str, ...] = ()
    redirect_hosts: tuple[str, ...] = ()
    allow_plain_credentials: bool = False
    server_name: str | None = None

    def __repr__(self) -> str:
        return f"ReplicaAddress({self.upstream}/{self.name})"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines in seconds.

    Args:
        connect: until the connection stands.
        first_byte: from the request sent to the headers of its answer.
        stall: between two reads of a body, or for a write to be taken.
        probe: for a whole probe.
        commit: like ``first_byte`` where the registry first has to work: the end of an upload, a manifest.
    """

    connect: float = 2.0
    first_byte: float = 5.0
    stall: float = 15.0
    probe: float = 2.0
    commit: float = 60.0


class Deadline:
    """The time limit of one request, moved as it goes on; also from the task that writes its body."""

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._is_over = False

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(self, *details: object) -> None:
        self._is_over = True
        await self._timeout.__aexit__(*details)  # type: ignore[arg-type]  # handed through as they come

    def move(self, seconds: float | None) -> None:
        """End in so many seconds from now; None: never."""
        if not (self._is_over or self._timeout.expired()):
            self._timeout.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


@dataclass(frozen=True, slots=True)
class RequestPace:
    """Handed to aiohttp with a request: once the headers are out, the answer has ``seconds``."""

    deadline: Deadline
    seconds: float


async def _headers_sent(_session: aiohttp.ClientSession, context: object, _params: object) -> None:
    pace = getattr(context, "trace_request_ctx", None)
    if isinstance(pace, RequestPace):
        pace.deadline.move(pace.seconds)


class _AnswerReader(ResponseHandler):
    """aiohttp's protocol of a connection to a replica, with bounds on what comes before an answer, and behind it.

    Behind a whole answer nothing may come until there is another request. aiohttp would read and keep it for as long as
    the connection rests in its pool.
    """

    _awaits_answer = False
    _informational = 0

    def set_response_params(self, **options: Any) -> None:
        """Begin to wait for an answer."""
        self._awaits_answer, self._informational = True, 0
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        """Read. Before an answer a little at a time: thousands of informational ones would fit into one read."""
        while self._awaits_answer and len(data) > _READ_BEFORE_ANSWER_BYTES and self.exception() is None:
            super().data_received(data[:_READ_BEFORE_ANSWER_BYTES])
            data = data[_READ_BEFORE_ANSWER_BYTES:]
        if self.exception() is None:
            super().data_received(data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take an answer. Informational ones (RFC 9110, 15.2) say nothing to us, and too many end the connection.

        So does an unrequested answer. The one before it stands: it came whole.
        """
        if 100 <= data[0].code < 200:
            self._informational += 1
            if self._informational == INFORMATIONAL_MAX + 1:
                self._end("informational answers without end")
        elif self._awaits_answer:
            self._awaits_answer = False
            super().feed_data(data, size)
        elif self.exception() is None:
            self._end("an unrequested answer")

    def _end(self, why: str) -> None:
        self.set_exception(HttpProcessingError(code=502, message=why))
        if self.transport is not None:
            self.transport.abort()


class _Connector(aiohttp.TCPConnector):
    """aiohttp's connections, read by our protocol."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(_AnswerReader, loop=self._loop)  # type: ignore[assignment]  # a partial of a subclass


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_headers_sent)
    return aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "registry-proxy", "Accept-Encoding": "identity"},
        max_field_size=_MAX_HEADER_BYTES,
        max_line_size=_MAX_HEADER_BYTES,
        read_bufsize=_READ_BUFFER_BYTES,
        requote_redirect_url=False,
        timeout=aiohttp.ClientTimeout(total=None),
        trace_configs=[trace],
    )


def _make_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket that the kernel gives up when its peer takes nothing for long.

    A transport that is closed with bytes still to send waits for them to go: without this, for ever.
    """
    made = socket.socket(address[0], address[1], address[2])
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MILLISECONDS)
    return made


class ReplicaConnections:
    """Connection pools of one replica, and of where it sends us.

    ``zone`` is the outermost one in which the replica was connected to, None before the first connection. It only
    moves outwards: a name that means an address inside for once opens nothing.
    """

    def __init__(self) -> None:
        self.zone: Zone | None = None
        self._elsewhere: dict[Zone, aiohttp.ClientSession] = {}
        self.data = _session(_Connector(limit=0, ttl_dns_cache=10, socket_factory=self._make_own_socket))
        self.probes = _session(
            # A probe that reused a connection would not notice that nobody listens any more.
            _Connector(limit=0, force_close=True, use_dns_cache=False, socket_factory=self._make_own_socket)
        )
        self.tokens = _session(_Connector(limit=20, ttl_dns_cache=10))

    def elsewhere(self, *, is_listed: bool) -> aiohttp.ClientSession:
        """Return the pool for a host that the replica names, and not its own address.

        Its connections go no further inside than where the replica is itself; ``is_listed`` hosts may be anywhere but
        in ``Zone.NEVER``. The address decides that a connection is made to, however the host was written.
        """
        limit = Zone.LOOPBACK if is_listed else min(self.zone or Zone.GLOBAL, Zone.LOOPBACK)
        if limit not in self._elsewhere:
            factory = partial(_make_socket_within, limit)
            self._elsewhere[limit] = _session(_Connector(limit=0, ttl_dns_cache=10, socket_factory=factory))
        return self._elsewhere[limit]

    def _make_own_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        zone = zone_of(address[4][0])
        self.zone = zone if self.zone is None else min(self.zone, zone)
        return _make_socket(address)

    async def aclose(self) -> None:
        """Close every connection."""
        for session in (self.data, self.probes, self.tokens, *self._elsewhere.values()):
            await session.close()


def _make_socket_within(limit: Zone, address: aiohttp.AddrInfoType) -> socket.socket:
    check_zone(address[4][0], limit)
    return _make_socket(address)


def tls_context(ca_file: Path | None) -> ssl.SSLContext | bool:
    """Return what verifies the replica's certificate: the system's trust, and ``ca_file`` where one is given.

    Raises:
        OSError, ssl.SSLError: the file cannot be read or holds no certificate.
    """
    if ca_file is None:
        return True
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context
