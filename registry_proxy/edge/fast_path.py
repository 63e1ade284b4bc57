"""Requests that can be answered where their bytes arrive: no task and no parser, at a third of the price.

A reader of plain requests and a writer of answers from memory; all between is what the server does with any request.
A request that is not fully understood, or for which somebody has to be waited for, is left, untouched, to the server.
benchmarks/README.md has the figures.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus

from multidict import CIMultiDict, CIMultiDictProxy

from registry_proxy.edge.answer import Answer, error_answer, head_of
from registry_proxy.edge.exchange import Exchange
from registry_proxy.edge.middleware import Frame
from registry_proxy.edge.origin import Origins
from registry_proxy.edge.registry import Registry
from registry_proxy.http.guarded import GuardedConnection, peer_address
from registry_proxy.operations.ask import Ask
from registry_proxy.protocol.endpoints import RegistryRequest, parse_request
from registry_proxy.protocol.errors import RegistryError

_HEAD_MAX_BYTES = 8190  # room for any token; below the server's own bounds, which accept all that is accepted here
_REMEMBERED_HEADS_BYTES = 4 * 1024 * 1024
_HEAD_BYTES = 1500  # of a head that is remembered, besides its text, which it holds twice
_REQUEST_LINE = re.compile(r"(GET|HEAD) (/v2/[A-Za-z0-9._/:-]*)(?:\?([A-Za-z0-9=&._:%-]*))? HTTP/1\.1")
_FIELD = re.compile(r"([A-Za-z-]+): ([!-~](?:[ -~]*[!-~])?)")
_FIELDS = frozenset(
    [
        "accept",
        "accept-encoding",
        "accept-language",
        "authorization",
        "cache-control",
        "connection",
        "docker-upload-uuid",
        "host",
        "pragma",
        "traceparent",
        "tracestate",
        "user-agent",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
        "x-request-id",
    ]
)
"""Fields that ask for nothing but the plain answer; any other, a condition or a body, is for the server."""


_NO_BODY: tuple[bytes, ...] = ()
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class _Head:
    """The meaning of some bytes as a request, which no change of rights can alter."""

    method: str
    path: str
    raw_query: str
    headers: CIMultiDictProxy[str]
    request: RegistryRequest


class _Peer:
    """The sender of a request without a body; implements ``Client``."""

    __slots__ = ("_transport", "remote")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.remote = peer_address(transport)

    @property
    def sockname(self) -> object:
        return self._transport.get_extra_info("sockname")

    @property
    def body_bytes(self) -> int | None:
        return None

    async def read_chunk(self) -> bytes:
        return b""

    async def read_body(self) -> AsyncIterator[bytes]:
        for chunk in _NO_BODY:
            yield chunk

    def hold(self, size_bytes: int) -> bool:  # noqa: ARG002 - it has no body
        return True

    def has_left(self) -> bool:
        return self._transport.is_closing()


@dataclass(frozen=True, slots=True)
class HandedOn:
    """A request that was read and allowed, and the way to its answer."""

    exchange: Exchange
    ask: Ask[Answer]


class FastPath:
    """Answers plain requests for what is here.

    Args:
        registry: answers them.
        frame: names, counts and logs them.
        origins: knows who calls.
    """

    def __init__(self, registry: Registry, frame: Frame, origins: Origins) -> None:
        self._registry = registry
        self._frame = frame
        self._origins = origins
        self._heads: dict[bytes, _Head] = {}  # clients repeat themselves
        self._heads_bytes = 0

    def answer(self, data: bytes, transport: asyncio.Transport) -> bytes | None:
        """Return the whole answer to the bytes of one request; None when it is for the server, and nothing was done.

        The connection keeps the way to the answer, where one was found, for the server to go on from there.
        """
        head = self._heads.get(data) or self._read(data)
        if head is None:
            return None
        exchange = Exchange(head.method, head.path, head.raw_query, head.headers, _Peer(transport), "")
        exchange.address = self._origins.client_address(exchange)
        begun = self._frame.begin(exchange)
        try:
            answer = self._answer(exchange, head.request)
            if isinstance(answer, Ask):
                connection = transport.get_protocol()
                if isinstance(connection, GuardedConnection):
                    connection.handed_on = HandedOn(exchange, answer)
                return None
            if answer is None or not isinstance(answer.body, bytes):
                return None
            exchange.status, exchange.source = answer.status, answer.source
            exchange.sent_bytes = 0 if answer.source is None else len(answer.body)
            self._frame.end(exchange, begun)
            return _format(exchange, answer)
        finally:
            self._frame.leave(begun)

    def _answer(self, exchange: Exchange, request: RegistryRequest) -> Answer | Ask[Answer] | None:
        try:
            return self._registry.answer_now(exchange, request)
        except RegistryError as error:
            return error_answer(error)

    def _read(self, data: bytes) -> _Head | None:
        head = _read_head(data)
        if head is not None:
            if self._heads_bytes >= _REMEMBERED_HEADS_BYTES:
                self._heads.clear()
                self._heads_bytes = 0
            self._heads[data] = head
            self._heads_bytes += _HEAD_BYTES + 2 * len(data)
        return head


def _format(exchange: Exchange, answer: Answer) -> bytes:
    fields = "".join([f"{name}: {value}\r\n" for name, value in head_of(exchange, answer).items()])
    head = f"{_STATUS_LINES[answer.status]}{fields}\r\n".encode()
    return head if exchange.method == "HEAD" or not isinstance(answer.body, bytes) else head + answer.body


def _read_head(data: bytes) -> _Head | None:
    """Return what the bytes ask for; None unless they are one plain request, complete and without a body."""
    if len(data) > _HEAD_MAX_BYTES or not data.endswith(b"\r\n\r\n") or not data.isascii():
        return None
    first, *lines = data[:-4].decode("ascii").split("\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        return None
    headers = CIMultiDict[str]()
    for text in lines:
        field = _FIELD.fullmatch(text)
        if field is None or field[1].lower() not in _FIELDS or field[1] in headers:
            return None
        headers[field[1]] = field[2]
    if headers.get("Connection", "keep-alive").lower() != "keep-alive" or "Host" not in headers:
        return None
    method, path, raw_query = line[1], line[2], line[3] or ""
    try:
        request = parse_request(method, path, raw_query)
    except RegistryError:
        return None
    return _Head(method, path, raw_query, CIMultiDictProxy(headers), request)
