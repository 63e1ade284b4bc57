"""Requests as aiohttp gives them: their bodies, and whether their clients are still there."""

import asyncio
import socket
from collections.abc import AsyncIterator

from aiohttp.http import HttpVersion11
from aiohttp.web import BaseRequest, RequestPayloadError

from registry_proxy.edge.exchange import Exchange
from registry_proxy.edge.origin import Origins
from registry_proxy.http.guarded import connection_of
from registry_proxy.protocol.errors import ErrorCode, RegistryError

_CLOSE_WAIT = 8
"""State of a connection whose other end has closed (TCP_CLOSE_WAIT of Linux)."""

STALL_SECONDS = 300.0
"""How long a client may neither send nor take a byte."""

DRAIN_MAX_BYTES = 64 * 1024 * 1024
DRAIN_SECONDS = 10.0


class Incoming:
    """The sender of a request that aiohttp has read the head of; implements ``Client``."""

    def __init__(self, request: BaseRequest) -> None:
        self._request = request
        expects = request.headers.get("Expect", "").lower()
        self.awaits_continue = request.version >= HttpVersion11 and expects == "100-continue"
        """Whether it sends its body only once it is asked to."""

    @property
    def remote(self) -> str | None:
        """Its address."""
        return self._request.remote

    @property
    def sockname(self) -> object:
        """The address and port that it connected to."""
        transport = self._request.transport
        return None if transport is None else transport.get_extra_info("sockname")

    @property
    def body_bytes(self) -> int | None:
        """Content-Length."""
        return self._request.content_length

    async def read_chunk(self) -> bytes:
        """Return what has come of the body; nothing at its end."""
        request = self._request
        if self.awaits_continue:
            self.awaits_continue = False
            if request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.transport is None:
            raise ConnectionResetError("the client left")
        try:
            return await request.content.readany()
        except RequestPayloadError as error:
            raise RegistryError(ErrorCode.SIZE_INVALID, "the request's body is not well-formed HTTP") from error

    async def read_body(self) -> AsyncIterator[bytes]:
        """Yield the body."""
        try:
            while True:
                async with asyncio.timeout(STALL_SECONDS):
                    chunk = await self.read_chunk()
                if not chunk:
                    return
                yield chunk
        except TimeoutError as error:
            raise ConnectionResetError("the client sent nothing for too long") from error

    def hold(self, size_bytes: int) -> bool:
        """Count bytes of a small body; return False where the owner of the address has too many on their way."""
        connection = connection_of(self._request)
        return connection is None or connection.hold(size_bytes)

    def has_left(self) -> bool:
        """Tell whether its connection is over, or it has sent all that it ever will.

        A client that closes its end alone is answered as others are, if that does not take long.
        """
        transport = self._request.transport
        if transport is None or transport.is_closing():
            return True
        pseudo = transport.get_extra_info("socket")
        if pseudo is None or pseudo.fileno() < 0:
            return True
        with socket.fromfd(pseudo.fileno(), pseudo.family, pseudo.type) as connection:
            return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE_WAIT

    def end_behind_answer(self) -> None:
        """Close the connection right behind the answer: the client sends no body, or too slowly."""
        connection = connection_of(self._request)
        if connection is not None:
            connection.end_behind_answer()

    async def drain(self) -> bool:
        """Read and drop the rest of the body, within bounds; return whether it ended.

        containerd 1.6 hangs when it is refused while it sends. A client that waits for a 100 sends nothing.
        """
        content = self._request.content
        if self.awaits_continue:
            return False
        size = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not content.at_eof() and size <= DRAIN_MAX_BYTES:
                    size += len(await content.readany())
        except (TimeoutError, ConnectionError, RuntimeError, RequestPayloadError):
            return False
        return content.at_eof()


def make_exchange(request: BaseRequest, client: Incoming, origins: Origins) -> Exchange:
    """Return the exchange of a request."""
    path, _, raw_query = request.raw_path.partition("?")
    if not path.startswith("/"):
        # The absolute form, which servers must take (RFC 9112, 3.2.2): its authority says nothing here.
        _, _, rest = path.partition("://")
        path = "/" + rest.partition("/")[2]
    address = origins.client_address(request)
    return Exchange(request.method, path, raw_query, request.headers, client, address)
