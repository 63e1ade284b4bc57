"""aiohttp's protocol of a connection with the bounds that it lacks: on heads, on what is withheld, on garbage."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import StreamReader, web
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web import BaseRequest, RequestHandler, StreamResponse
from aiohttp.web_protocol import _ErrInfo

from registry_proxy.http.connections import LEAST_BYTES_PER_SECOND, Connections, Owner, Patience, Sender
from registry_proxy.http.limits import FIELD_MAX_BYTES, HEAD_MAX_BYTES, scattered

_QUEUED_MAX: Final = 2  # requests behind the one that is answered: a client that pipelines more is read later
_RESERVED_SECONDS: Final = 2.0
_NEVER_SECONDS: Final = 7 * 86_400.0
_REASON_MAX: Final = 100
_SMALL_BUFFER_BYTES: Final = 16 * 1024
"""For the body of an owner who has many unfinished: aiohttp keeps twice as much, and what is read at once."""
_END_OF_HEAD: Final = b"\r\n\r\n"


class RefusedHeadError(BadHttpMessage):
    """A head that can be read and is not taken; ``code`` is the status of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.code = status


@dataclass(frozen=True, slots=True)
class Guard:
    """The bounds of one listener, for all its connections.

    Args:
        connections: counts them.
        health: how requests begin that are answered when there are too many connections.
        busy: returns the whole answer to all others then.
        refuse: returns the whole answer, by status and message, to what is not read any further.
    """

    connections: Connections
    health: tuple[bytes, ...]
    busy: Callable[[], bytes]
    refuse: Callable[[int, str], bytes]


class GuardedConnection(RequestHandler):
    """A connection that its listener can bound, and end for others."""

    def __init__(self, manager: web.Server, guard: Guard, **options: Any) -> None:
        super().__init__(
            manager,
            keepalive_timeout=_NEVER_SECONDS,  # by our own account
            max_field_size=FIELD_MAX_BYTES,
            access_log=None,  # type: ignore[arg-type]  # for none
            **options,
        )
        self._max_msg_queue_size, self._msg_queue_resume_size = _QUEUED_MAX, _QUEUED_MAX // 2
        self._guard = guard
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
        self._answered = 0
        self._is_ending = False
        self._ends_behind_answer = False
        self._rests_since = 0.0
        self._rest_timer: asyncio.TimerHandle | None = None
        # Of the last request, in bytes; None where something came behind it, perhaps the beginning of the next one.
        self._body_to_come: int | None = 0

    # ------------------------------------------------------------ bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._address = peer_address(transport) or ""
        connections = self._guard.connections
        self._rests_since = self._loop.time()
        self._owner = connections.open(self, self._address)
        is_reserved = connections.is_reserved(self)
        self._await_head(_RESERVED_SECONDS if is_reserved else connections.limits.header_seconds)
        self._rest_timer = self._loop.call_later(connections.limits.keep_alive_seconds, self._end_rest)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._stop_header_timer()
        self._stop_answer_timer()
        if self._rest_timer is not None:
            self._rest_timer.cancel()
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read; what is no HTTP, or not taken, ends the reading, and is answered behind the requests before it."""
        if self._is_spoilt or (self._header_timer is not None and self._is_refused(data)):
            return
        before = self._request_count
        has_body_to_come = self.has_body_to_come()
        if has_body_to_come:
            self._late_since = min(self._loop.time(), self._late_since + len(data) / LEAST_BYTES_PER_SECOND)
            self._body_to_come = None if self._body_to_come is None else self._body_to_come - len(data)
        super().data_received(data)
        if self._request_count != before:
            self._stop_header_timer()
            self._finish()
            self._look_at(self._request_count - before, data)
            self._head_bytes = 0
            self._decline_upgrade()
        elif not has_body_to_come and data and not self._upgraded:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX_BYTES:
                self._refuse(431, f"the head of the request is longer than {HEAD_MAX_BYTES} bytes: send less in it")
            elif self.is_idle() and self._header_timer is None:
                self._await_head(self._guard.connections.limits.header_seconds)

    def log_access(self, request: BaseRequest, response: StreamResponse, time: float | None) -> None:
        """Take note of an answer: aiohttp calls this once the whole of it is written."""
        super().log_access(request, response, time)
        self._answered += 1
        self._rests_since = self._loop.time()
        if not response.keep_alive:
            self._is_ending = True
        if self._ends_behind_answer:
            self.force_close()
        elif self._refusal is not None and self.is_idle():
            self._end_with(self._refusal)

    def close(self) -> None:
        """Answer the requests that have come, and end."""
        self._is_ending = True
        super().close()

    def force_close(self) -> None:
        """End as soon as the answers that are written have left."""
        self._is_ending = True
        super().force_close()

    def is_idle(self) -> bool:
        """Tell whether every request that has come is answered, and another one may come."""
        return self._answered == self._request_count and not self._is_ending

    def end_behind_answer(self) -> None:
        """End right behind the next answer: the client is not waited for to send the rest of a body."""
        self._ends_behind_answer = True

    def has_body_to_come(self) -> bool:
        """Tell whether the body of the last request has not come whole."""
        return self._unfinished_of is not None and self._header_timer is None

    def close_if_idle(self, until: float) -> None:
        """End if it has been at rest since ``until``, by the loop's clock, or longer."""
        if self.is_idle() and self._rests_since <= until:
            self.force_close()

    def quiet_transport(self) -> asyncio.Transport | None:
        """Return the transport where a whole answer may be written to it at once: nothing of a request is here."""
        transport = self.transport
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

    def answered_beside(self) -> None:
        """Take note of a request that aiohttp never sees, and of its answer."""
        self._stop_header_timer()
        self._finish()
        self._rests_since = self._loop.time()

    def _end_rest(self) -> None:
        keep_alive_seconds = self._guard.connections.limits.keep_alive_seconds
        left_seconds = self._rests_since + keep_alive_seconds - self._loop.time()
        if self.is_idle() and self._header_timer is None and left_seconds <= 0:
            self.force_close()
            return
        wait_seconds = left_seconds if left_seconds > 0 else keep_alive_seconds
        self._rest_timer = self._loop.call_later(wait_seconds, self._end_rest)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - its signature
        """Go on; while nothing was read, the client could not send."""
        super().resume_reading(resume_parser)
        self._late_since = self._loop.time()

    def pause_writing(self) -> None:
        """Begin to wait for the client to take of its answer."""
        super().pause_writing()
        self._untaken_since = self._loop.time()
        self._answer_timer = self._loop.call_later(self._guard.connections.limits.answer_seconds, self.abort)

    def resume_writing(self) -> None:
        """Go on: it took some."""
        super().resume_writing()
        self._stop_answer_timer()

    @contextlib.contextmanager
    def answer_waits(self) -> Iterator[None]:
        """Note that an answer waits for its client, where it is not written through the transport."""
        self._untaken_since = self._loop.time()
        try:
            yield
        finally:
            self._untaken_since = None

    def _is_refused(self, data: bytes) -> bool:
        """Answer for a node that has no room for one more, unless it is asked for its health."""
        transport = self.transport
        if transport is None or not self._guard.connections.is_reserved(self) or data.startswith(self._guard.health):
            return False
        self._end_with(self._guard.busy())
        return True

    def _end_with(self, answer: bytes) -> None:
        """Write an answer that is made of bytes, and end."""
        if self.transport is not None:
            self.transport.write(answer)
        self.force_close()

    def _decline_upgrade(self) -> None:
        """Read on in HTTP/1.1 at once; what came behind the request already is not read: it may be no HTTP.

        Else aiohttp would take it, and a body, past all that is looked at.
        """
        if self._upgraded and self._parser is not None:
            self._parser.set_upgraded(False)
            self._upgraded = False
            if self._message_tail:
                self._message_tail = b""
                self._refuse(400, "something came behind a request for another protocol: wait for its answer")

    def _look_at(self, count: int, data: bytes) -> None:
        """Look at the ``count`` requests that have come with some bytes."""
        for index in range(-count, 0):
            message, body = self._messages[index]
            if isinstance(message, _ErrInfo):
                self._spoil(index, _without_content(message))
                return
            if message.version is not HttpVersion11 and message.version is not HttpVersion10:
                self._spoil(index, _refused_version(message))
                return
            if index == -1:
                self._look_for_more(message, body, data, is_alone=count == 1)

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

    def _spoil(self, index: int, error: _ErrInfo) -> None:
        """Put an error in the place of the requests from the one at ``index`` on, and read no more."""
        self._is_spoilt = True
        for _ in range(-index):
            self._messages.pop()
        self._messages.append((error, EMPTY_PAYLOAD))

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error behind the requests that have come, and read no more."""
        self._is_spoilt = True
        self._stop_header_timer()
        self._finish()
        refusal = self._guard.refuse(status, message)
        if self.is_idle():
            self._end_with(refusal)
        else:
            self._refusal = refusal

    def _make_error_handler(self, err_info: _ErrInfo) -> Callable[[BaseRequest], Awaitable[StreamResponse]]:
        answer = super()._make_error_handler(err_info)

        async def handle(request: BaseRequest) -> StreamResponse:
            request._version = HttpVersion11  # noqa: SLF001 - aiohttp answers 1.0 to what it could not read
            return await answer(request)

        return handle

    # ------------------------------------------------------------ what is unfinished

    def _await_head(self, seconds: float) -> None:
        self._header_timer = self._loop.call_later(scattered(seconds), self._header_too_slow)
        self._begin(self._address)

    def _await_body(self, message: RawRequestMessage, body: StreamReader) -> None:
        address = self._address
        if self._owner is not None and self._owner.share is None:
            address = self._guard.connections.addresses.client_address(Sender(address, message.headers))
        self._begin(address)
        if self._unfinished_of is not None and self._unfinished_of.is_crowded:
            self._read_little(body)
        body.on_eof(self._finish)

    def _read_little(self, body: StreamReader) -> None:
        body._low_water, body._high_water = _SMALL_BUFFER_BYTES, 2 * _SMALL_BUFFER_BYTES  # noqa: SLF001 - can but be raised
        own = None if self.transport is None else self.transport.get_extra_info("socket")
        if own is not None and self._unfinished_of is self._owner:  # a trusted proxy sends for others, too
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * _SMALL_BUFFER_BYTES)

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

    def _begin(self, address: str) -> None:
        self._late_since = self._loop.time()
        self._unfinished_of = self._guard.connections.begin(self, address)

    def _finish(self) -> None:
        owner, self._unfinished_of = self._unfinished_of, None
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
        self.force_close()

    # ------------------------------------------------------------ for Connections

    def is_late(self, now: float, patience: Patience) -> bool:
        """Tell whether a head has been on its way for too long, or a body comes more slowly than the least rate."""
        seconds = patience.body if self._header_timer is None else patience.head
        is_read = self.transport is not None and self.transport.is_reading()
        return is_read and now > self._late_since + seconds

    def rests(self, now: float, seconds: float) -> bool:
        """Tell whether it has been at rest for longer than ``seconds``."""
        return (
            self._unfinished_of is None
            and self.is_idle()
            and now > self._rests_since + seconds
            and self.transport is not None
            and not self.transport.get_write_buffer_size()
        )

    def stalls(self, now: float, seconds: float) -> bool:
        """Tell whether its client has taken nothing of an answer for longer than ``seconds``."""
        return self._untaken_since is not None and now > self._untaken_since + seconds

    def abort(self) -> None:
        """End it at once."""
        self._leave()
        transport = self.transport
        self.force_close()
        if transport is not None:
            _shut_down(transport)
            transport.abort()


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


def _refused_version(message: RawRequestMessage) -> _ErrInfo:
    version = f"HTTP/{message.version.major}.{message.version.minor}"
    error = RefusedHeadError(400 if message.version < HttpVersion10 else 505, f"{version} is not spoken: use HTTP/1.1")
    return _ErrInfo(error.code, error, error.message)


def _without_content(error: _ErrInfo) -> _ErrInfo:
    """Return an error that does not hold the bytes that it is about: it may wait long for the answer before it."""
    if isinstance(error.exc, LineTooLong):
        return _ErrInfo(error.status, error.exc.with_traceback(None), error.message)
    message = error.message[:_REASON_MAX]
    return _ErrInfo(error.status, BadHttpMessage(message), message)
