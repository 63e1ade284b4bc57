"""The protocol of a connection: it looks at the bytes first, and passes on to aiohttp what it does not answer itself.

It keeps an account of its own: the requests that were read, those that are answered, and what is on its way. By that it
bounds what aiohttp does not: heads, withheld bodies, garbage, time at rest and answers that nobody takes.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from aiohttp import StreamReader
from aiohttp.http import HttpProcessingError, HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web import BaseRequest, RequestPayloadError, StreamResponse

from registry_proxy.http.connections import LEAST_BYTES_PER_SECOND, Connections, Owner, Patience, Sender
from registry_proxy.http.handler import SMALL_BUFFER_BYTES, Handler, ReadRequest, RefusedHeadError
from registry_proxy.http.limits import HEAD_MAX_BYTES, scattered

_RESERVED_SECONDS: Final = 2.0
_BUFFER_BYTES: Final = 256 * 1024
_END_OF_HEAD: Final = b"\r\n\r\n"

AnswerNow = Callable[[bytes, asyncio.Transport], bytes | None]
"""Takes what came on an idle connection; returns a whole answer, or None without having done anything."""


@dataclass(slots=True)
class Guard:
    """The bounds of one listener, for all its connections.

    Args:
        connections: counts them.
        health: how requests begin that are answered when there are too many connections.
        busy: returns the whole answer to all others then.
        refuse: returns the whole answer to bytes that cannot be read, or are refused.
        make_handler: returns the handler behind a connection.
        answer_now: answers requests that no handler sees; None for none.
    """

    connections: Connections
    health: tuple[bytes, ...]
    busy: Callable[[], bytes]
    refuse: Callable[[HttpProcessingError], bytes]
    make_handler: Callable[["GuardedConnection"], Handler]
    answer_now: AnswerNow | None = None


class GuardedConnection(asyncio.Protocol):
    """A connection that its listener can bound, and end for others; aiohttp's handler stands behind it."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._time = asyncio.get_running_loop().time
        self._call_later = asyncio.get_running_loop().call_later
        self._handler = guard.make_handler(self)
        self._transport: asyncio.Transport | None = None
        self._address = ""
        self._owner: Owner | None = None
        self._unfinished_of: Owner | None = None
        self._header_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self._untaken_since: float | None = None
        self._late_since = 0.0
        self._head_bytes = 0
        self._held_bytes = 0
        self._is_spoilt = False
        self._refusal: bytes | None = None
        # The account of requests that aiohttp has read, and those that are answered: between two of them it rests.
        self._read = self._answered = 0
        self._is_ending = False
        self._ends_behind_answer = False
        self._rests_since = 0.0
        self._rest_timer: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None  # that has not come whole
        self.handed_on: object = None
        """What ``answer_now`` leaves to the handler of the request that it does not answer."""
        # Of the last request, in bytes; None where something came behind it, perhaps the beginning of the next one.
        self._body_to_come: int | None = 0

    # ------------------------------------------------------------ for the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a head."""
        # uvloop's transports are no subclass of asyncio's, so the type cannot be asserted.
        self._transport = transport  # type: ignore[assignment]
        self._handler.connection_made(transport)
        self._address = peer_address(transport) or ""
        connections = self._guard.connections
        self._rests_since = self._time()
        self._owner = connections.open(self, self._address)
        is_reserved = connections.is_reserved(self)
        self._await_head(_RESERVED_SECONDS if is_reserved else connections.limits.header_seconds)
        self._rest_timer = self._call_later(connections.limits.keep_alive_seconds, self._end_rest)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._stop_header_timer()
        self._stop_answer_timer()
        if self._rest_timer is not None:
            self._rest_timer.cancel()
        self._leave()
        self._handler.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Answer at once where that can be done, else pass on."""
        answer_now, self.handed_on = self._guard.answer_now, None
        if answer_now is not None and (transport := self._quiet_transport()) is not None:
            answer = answer_now(data, transport)
            if answer is not None:
                transport.write(answer)
                self._stop_header_timer()
                self._finish()
                self._rests_since = self._time()
                return
        self._pass_on(data)

    def eof_received(self) -> bool | None:
        """Keep a half-closed connection for its answer; a body that ended too early has no answer."""
        if self.is_idle() or self._body is not None:
            return None
        self._is_ending = True
        self._handler.close()
        return not is_tls(self._transport)  # TLS has no half-closed connection

    def pause_writing(self) -> None:
        """Begin to wait for the client to take of its answer."""
        self._handler.pause_writing()
        self._untaken_since = self._time()
        self._answer_timer = self._call_later(self._guard.connections.limits.answer_seconds, self.abort)

    def resume_writing(self) -> None:
        """Go on: it took some."""
        self._handler.resume_writing()
        self._stop_answer_timer()

    def _quiet_transport(self) -> asyncio.Transport | None:
        """Return the transport where a whole answer may be written to it at once: nothing of a request is here."""
        transport = self._transport
        if (
            self._head_bytes  # aiohttp holds the beginning of a header
            or self._guard.connections.is_reserved(self)
            or self._body_to_come != 0  # or something came behind the last request
            or not self.is_idle()
            or transport is None
            or transport.is_closing()
            or transport.get_write_buffer_size()
        ):
            return None
        return transport

    def _pass_on(self, data: bytes) -> None:
        """Have aiohttp read; bytes that are no HTTP, or are refused, end the reading."""
        if self._is_spoilt or (self._header_timer is not None and self._is_refused(data)):
            return
        before, has_body_to_come = self._read, self._body is not None
        if has_body_to_come:
            self._late_since = min(self._time(), self._late_since + len(data) / LEAST_BYTES_PER_SECOND)
            self._body_to_come = None if self._body_to_come is None else self._body_to_come - len(data)
        self._handler.data_received(data)
        if self._read != before:
            self._read_on()
        elif not has_body_to_come and not self._is_spoilt:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX_BYTES:
                message = f"the head of the request is longer than {HEAD_MAX_BYTES} bytes: send less in it"
                self.refuse(RefusedHeadError(431, message))
            elif self.is_idle() and self._header_timer is None:
                self._await_head(self._guard.connections.limits.header_seconds)

    def _read_on(self) -> None:
        """Have aiohttp go on with a body that has more room than that for which it has stopped reading."""
        body, transport = self._body, self._transport
        if body is None or transport is None or transport.is_closing() or transport.is_reading():
            return
        if body.get_read_buffer_limits()[0] > SMALL_BUFFER_BYTES:
            self._handler.resume_reading()

    def _is_refused(self, data: bytes) -> bool:
        """Answer for a node that has no room for one more, unless it is asked for its health."""
        if not self._guard.connections.is_reserved(self) or data.startswith(self._guard.health):
            return False
        self._end(self._guard.busy())
        return True

    def _end(self, answer: bytes = b"") -> None:
        """End as soon as the answers that are written have left, behind this one where there is one."""
        self._is_ending = True
        if answer and self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)
        self._handler.force_close()

    # ------------------------------------------------------------ for the handler

    def take(self, requests: Sequence[ReadRequest], data: bytes) -> Sequence[ReadRequest]:
        """Take note of the requests that were read with some bytes; return those that are of our version of HTTP."""
        taken = list(takewhile(_is_of_our_version, requests))
        self._read += len(taken)
        self._stop_header_timer()
        self._finish()
        if len(taken) < len(requests):
            self.refuse(_refused_version(requests[len(taken)][0]))
        else:
            self._look_for_more(*requests[-1], data, is_alone=len(requests) == 1)
        self._head_bytes = 0
        return taken

    def refuse(self, error: HttpProcessingError) -> None:
        """Answer with an error behind the requests that have come, and read no more.

        Of the bytes that it is about nothing is kept: it may wait long for the answers before it.
        """
        self._is_spoilt = True
        self._stop_header_timer()
        body = self._body
        self._finish()
        if body is not None:
            self._ends_behind_answer = True
            body.set_exception(RequestPayloadError("the rest of the body cannot be read"))
            return
        refusal = self._guard.refuse(error)
        if self.is_idle():
            self._end(refusal)
        else:
            self._refusal = refusal

    def end_request(self, response: StreamResponse) -> None:
        """Take note of an answer."""
        self._answered += 1
        self._rests_since = self._time()
        if not response.keep_alive:
            self._is_ending = True
        if self._ends_behind_answer:
            self._end()
        elif self._refusal is not None and self.is_idle():
            self._end(self._refusal)

    def reading_goes_on(self) -> None:
        """Take note that the client can send again: while nothing was read, it could not."""
        self._late_since = self._time()

    def is_idle(self) -> bool:
        """Tell whether every request that has come is answered, and another one may come."""
        return self._answered == self._read and not self._is_ending

    def end_behind_answer(self) -> None:
        """End right behind the next answer: the client is not waited for to send the rest of a body."""
        self._ends_behind_answer = True

    def close_if_idle(self, until: float) -> None:
        """End if it has been at rest since ``until``, by the loop's clock, or longer."""
        if self.is_idle() and self._rests_since <= until:
            self._end()

    @contextlib.contextmanager
    def answer_waits(self) -> Iterator[None]:
        """Note that an answer waits for its client, where it is not written through the transport."""
        self._untaken_since = self._time()
        try:
            yield
        finally:
            self._untaken_since = None

    def hold(self, size_bytes: int) -> bool:
        """Count bytes of a small body until all of it has come; return False where its owner has too many."""
        owner = self._unfinished_of
        if owner is None:
            return True
        if not owner.has_room_for(size_bytes):
            return False
        self._held_bytes += size_bytes
        owner.held_bytes += size_bytes
        return True

    # ------------------------------------------------------------ what is unfinished

    def _look_for_more(self, message: RawRequestMessage, body: StreamReader, data: bytes, *, is_alone: bool) -> None:
        """Look whether more of the last request is to come, or something has come behind it."""
        if body is EMPTY_PAYLOAD:
            self._body_to_come = 0 if data.endswith(_END_OF_HEAD) else None
            return
        is_plain = is_alone and not self._head_bytes and self._body_to_come == 0
        size = message.headers.get("Content-Length", "") if is_plain else ""
        came = len(data) - data.find(_END_OF_HEAD) - len(_END_OF_HEAD)
        self._body_to_come = int(size) - came if size.isdecimal() else None
        if not body.is_eof():
            self._await_body(message, body)

    def _await_head(self, seconds: float) -> None:
        self._header_timer = self._call_later(scattered(seconds), self._header_too_slow)
        self._begin(self._address)

    def _await_body(self, message: RawRequestMessage, body: StreamReader) -> None:
        address = self._address
        if self._owner is not None and self._owner.share is None:
            address = self._guard.connections.addresses.client_address(Sender(address, message.headers))
        self._begin(address)
        if self._unfinished_of is None or not self._unfinished_of.is_crowded:
            body.set_read_chunk_size(_BUFFER_BYTES)
        elif self._unfinished_of is self._owner and self._transport is not None:
            # A trusted proxy sends for others, too: that of its connection stays.
            own = self._transport.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * SMALL_BUFFER_BYTES)
        self._body = body
        body.on_eof(self._finish)

    def _begin(self, address: str) -> None:
        self._late_since = self._time()
        self._unfinished_of = self._guard.connections.begin(self, address)

    def _finish(self) -> None:
        owner, self._unfinished_of, self._body = self._unfinished_of, None, None
        if owner is not None:
            owner.held_bytes -= self._held_bytes
            self._held_bytes = 0
            self._guard.connections.end(self, owner)

    def _leave(self) -> None:
        self._finish()
        owner, self._owner = self._owner, None
        if owner is not None:
            self._guard.connections.close(self, owner)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_answer_timer(self) -> None:
        self._untaken_since = None
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def _header_too_slow(self) -> None:
        self._header_timer = None
        self._end()

    def _end_rest(self) -> None:
        keep_alive_seconds = self._guard.connections.limits.keep_alive_seconds
        left_seconds = self._rests_since + keep_alive_seconds - self._time()
        if self.is_idle() and self._header_timer is None and left_seconds <= 0:
            self._end()
            return
        wait_seconds = left_seconds if left_seconds > 0 else keep_alive_seconds
        self._rest_timer = self._call_later(wait_seconds, self._end_rest)

    # ------------------------------------------------------------ for Connections

    def is_late(self, now: float, patience: Patience) -> bool:
        """Tell whether a head has been on its way for too long, or a body comes more slowly than the least rate."""
        seconds = patience.body if self._header_timer is None else patience.head
        transport = self._transport
        is_read = transport is not None and not transport.is_closing() and transport.is_reading()
        return is_read and now > self._late_since + seconds

    def rests(self, now: float, seconds: float) -> bool:
        """Tell whether it has been at rest for longer than ``seconds``."""
        return (
            self._unfinished_of is None
            and self.is_idle()
            and now > self._rests_since + seconds
            and self._transport is not None
            and not self._transport.get_write_buffer_size()
        )

    def stalls(self, now: float, seconds: float) -> bool:
        """Tell whether its client has read nothing of an answer for longer than ``seconds``."""
        return self._untaken_since is not None and now > self._untaken_since + seconds

    def abort(self) -> None:
        """End it at once."""
        self._leave()
        self._end()
        if self._transport is not None:
            _shut_down(self._transport)
            self._transport.abort()


def connection_of(request: BaseRequest) -> GuardedConnection | None:
    """Return the connection of a request; None where it is not ours."""
    handler = request.protocol
    front = handler.front if isinstance(handler, Handler) else None
    return front if isinstance(front, GuardedConnection) else None


def is_tls(transport: asyncio.BaseTransport | None) -> bool:
    """Tell whether a connection is encrypted: its bytes must not go past its transport."""
    return transport is not None and transport.get_extra_info("ssl_object") is not None


def peer_address(transport: asyncio.BaseTransport) -> str | None:
    """Return the address at the other end; None where there is none."""
    name = transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else name


def _shut_down(transport: asyncio.BaseTransport) -> None:
    """End a connection also for who sends on a duplicate of its socket."""
    own = transport.get_extra_info("socket")
    if own is not None and own.fileno() >= 0:
        with contextlib.suppress(OSError), socket.fromfd(own.fileno(), own.family, own.type) as connection:
            connection.shutdown(socket.SHUT_RDWR)


def _is_of_our_version(request: ReadRequest) -> bool:
    version = request[0].version
    return version is HttpVersion11 or version is HttpVersion10


def _refused_version(message: RawRequestMessage) -> RefusedHeadError:
    version = f"HTTP/{message.version.major}.{message.version.minor}"
    return RefusedHeadError(400 if message.version < HttpVersion10 else 505, f"{version} is not spoken: use HTTP/1.1")
