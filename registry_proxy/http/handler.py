"""aiohttp's handler of a connection, which tells the protocol in front of it what it reads and answers.

Three private names of aiohttp stand here, and nowhere else: its parser, which is replaced by one that tells what it has
read, and the two bounds of its queue of requests, for which there is no option.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from aiohttp import StreamReader, web
from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.web import BaseRequest, RequestHandler, RequestPayloadError, StreamResponse

from registry_proxy.http.limits import FIELD_MAX_BYTES

SMALL_BUFFER_BYTES: Final = 16 * 1024
"""For a body, unless more is allowed for it: aiohttp keeps twice as much, and what is read at once."""

_QUEUED_MAX: Final = 2  # requests behind the one that is answered: a client that pipelines more is read later
_READ_AT_ONCE_MAX: Final = 32  # of some bytes: aiohttp counts too many where a body ends behind its handler's beginning
_NEVER_SECONDS: Final = 7 * 86_400.0

ReadRequest = tuple[RawRequestMessage, StreamReader]
"""The head of a request, and its body."""


class RefusedHeadError(BadHttpMessage):
    """A head that can be read and is refused; ``code`` is the status of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.code = status


class Front(Protocol):
    """The protocol that stands in front of a handler."""

    def take(self, requests: Sequence[ReadRequest], data: bytes) -> Sequence[ReadRequest]:
        """Take note of the requests that were read with some bytes; return those that are to be handled."""
        ...

    def refuse(self, error: HttpProcessingError) -> None:
        """Answer, behind the requests that have come, what cannot be read."""
        ...

    def end_request(self, response: StreamResponse) -> None:
        """Take note of an answer, once the whole of it is written."""
        ...

    def reading_goes_on(self) -> None:
        """Take note that the client can send again."""
        ...


class Handler(RequestHandler):
    """Handles the requests that its front passes on."""

    def __init__(
        self,
        manager: web.Server,
        front: Front,
        *,
        max_line_size: int = 8190,
        max_headers: int = 128,
        auto_decompress: bool = True,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=_NEVER_SECONDS,  # by the account of the front
            access_log=None,  # type: ignore[arg-type]  # for none
        )
        self.front = front
        self._max_msg_queue_size, self._msg_queue_resume_size = _QUEUED_MAX, _QUEUED_MAX // 2
        parser = _Parser(
            self,
            loop,
            SMALL_BUFFER_BYTES,
            max_line_size=max_line_size,
            max_headers=max_headers,
            max_field_size=FIELD_MAX_BYTES,
            payload_exception=RequestPayloadError,
            auto_decompress=auto_decompress,
            max_msg_queue_size=_READ_AT_ONCE_MAX,
        )
        parser.front = front
        self._parser = parser

    def log_access(self, request: BaseRequest, response: StreamResponse, time: float | None) -> None:  # noqa: ARG002
        """Tell of an answer: aiohttp calls this once the whole of it is written."""
        self.front.end_request(response)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - its signature
        """Read on."""
        super().resume_reading(resume_parser)
        self.front.reading_goes_on()


class _Parser(HttpRequestParser):
    """aiohttp's parser; what it cannot read, and what wants another protocol, never reaches the handler."""

    front: Front

    def feed_data(  # type: ignore[override]  # the parser in C takes this alone
        self, data: bytes
    ) -> tuple[Sequence[ReadRequest], bool, bytes]:
        requests: Sequence[ReadRequest]
        try:
            requests, is_upgraded, behind = super().feed_data(data)
        except HttpProcessingError as error:
            self.front.refuse(error)
            return (), False, b""
        if requests:
            requests = self.front.take(requests, data)
        if is_upgraded:
            # Read on in HTTP/1.1; what came behind the request already is not read: it may be no HTTP.
            self.set_upgraded(False)
            if behind:
                message = "something came behind a request for another protocol: wait for its answer"
                self.front.refuse(RefusedHeadError(400, message))
        return requests, False, b""
