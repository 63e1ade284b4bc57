"""Bodies on their way out: from memory, from a file by the kernel, or chunk by chunk."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing

from aiohttp.web import BaseRequest, Response, StreamResponse

from registry_proxy.edge.exchange import STALL_SECONDS, Exchange
from registry_proxy.http.guarded import GuardedConnection
from registry_proxy.ports.content import BlobReader, ByteStream, OpenSource
from registry_proxy.ports.errors import FillFailedError, FillLostError, UpstreamUnavailableError
from registry_proxy.protocol.byterange import ByteRange
from registry_proxy.protocol.errors import RegistryError

SMALL_BYTES = 64 * 1024
"""Up to here one write from memory, header included, is cheaper than sendfile."""

_SLICE_BYTES = 1024 * 1024
_GONE_CHECK_SECONDS = 10.0


class _BrokenError(ConnectionResetError):
    """The connection was cut on purpose or by the client: there is nobody to answer any more."""


async def send_file(
    exchange: Exchange,
    status: int,
    headers: Mapping[str, str],
    reader: BlobReader,
    part: ByteRange,
    *,
    rest: OpenSource,
) -> StreamResponse:
    """Send a part of a file that may still be growing.

    When the disk fails, what is missing comes from ``rest``. What can no longer be completed ends in a broken
    connection, never in a complete body.

    Args:
        exchange: the request.
        status: of the answer.
        headers: of the answer, without Content-Length.
        reader: the file; stays open.
        part: which bytes of it; of an empty file, ``ByteRange(0, -1)``.
        rest: opens the same content, at an offset, from where it comes.

    Raises:
        ConnectionError: the client left, or the body had to be cut.
        FillFailedError, UpstreamUnavailableError, RegistryError: before anything was sent.
    """
    first, size_bytes = part.first, part.size_bytes
    try:
        await reader.wait_beyond(part.last if size_bytes <= SMALL_BYTES else first)
        if size_bytes <= SMALL_BYTES:
            body = _read_part(reader, part)
            exchange.sent_bytes += size_bytes
            return Response(status=status, headers=headers, body=body)
    except FillLostError:
        async with rest(first) as stream:
            return await send_stream(exchange, status, headers, stream, size_bytes)
    response = _start(exchange, status, headers, size_bytes)
    await response.prepare(exchange.request)
    sending = _FileSending(exchange, reader, first)
    with _cutting(exchange):
        try:
            await sending.send(first + size_bytes)
        except FillLostError:
            async with rest(sending.position) as stream, aclosing(_chunks_of(stream)) as chunks:
                await _write(exchange, response, chunks, first + size_bytes - sending.position)
        finally:
            sending.close()
    await response.write_eof()
    return response


def _read_part(reader: BlobReader, part: ByteRange) -> bytes:
    try:
        body = os.pread(reader.fd, part.size_bytes, part.first)
    except OSError as error:
        raise FillLostError(f"the file cannot be read: {error.strerror}") from error
    if len(body) != part.size_bytes:
        raise FillLostError("the file is shorter than it was")
    return body


@contextlib.contextmanager
def _cutting(exchange: Exchange) -> Iterator[None]:
    """End the connection, and so the body, with whatever goes wrong inside."""
    try:
        yield
    except (OSError, FillFailedError, UpstreamUnavailableError, RegistryError, TimeoutError) as error:
        _cut(exchange.request)
        raise _BrokenError("the body was cut") from error
    except BaseException:
        _cut(exchange.request)
        raise


class _FileSending:
    """Sends by ``os.sendfile`` on a duplicate of the socket: uvloop has no sendfile, and the loop guards its own.

    ``position`` is up to where the file was sent.
    """

    def __init__(self, exchange: Exchange, reader: BlobReader, position: int) -> None:
        self.position = position
        self._exchange = exchange
        self._request = exchange.request
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        transport = self._request.transport
        self._fd = -1
        if transport is not None and not transport.is_closing():
            self._fd = os.dup(transport.get_extra_info("socket").fileno())

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def send(self, end: int) -> None:
        await self._flush_transport()
        while (position := self.position) < end:
            available = min(self._reader.available_bytes, end)
            if available <= position:
                await self._wait_for_bytes(position)
                continue
            try:
                sent = os.sendfile(self._fd, self._reader.fd, position, min(available - position, _SLICE_BYTES))
            except BlockingIOError:
                await self._wait_writable()
                continue
            except ConnectionError:
                raise
            except OSError as error:
                raise FillLostError(f"the file cannot be read: {error.strerror}") from error
            if sent == 0:
                raise FillLostError("the file is shorter than it was")
            self.position += sent
            self._exchange.sent_bytes += sent
            # A client as fast as the disk never blocks: the others get their turn here.
            await asyncio.sleep(0)

    def _check_client(self) -> None:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise _BrokenError("the client left")

    async def _flush_transport(self) -> None:
        """Wait until the header, and what an earlier answer left, is out of the transport's own buffer."""
        await asyncio.sleep(0)  # uvloop hands writes to the kernel at the end of a turn
        self._check_client()
        transport = self._request.transport
        if transport is None or not transport.get_write_buffer_size():
            return
        transport.set_write_buffer_limits(high=0)
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._request.writer.drain()
        finally:
            transport.set_write_buffer_limits()
        self._check_client()

    async def _wait_for_bytes(self, position: int) -> None:
        self._check_client()
        try:
            async with asyncio.timeout(_GONE_CHECK_SECONDS):
                await self._reader.wait_beyond(position)
        except TimeoutError:
            self._check_client()

    async def _wait_writable(self) -> None:
        self._check_client()
        writable = self._loop.create_future()
        self._loop.add_writer(self._fd, _set_done, writable)
        connection = self._request.protocol
        waiting = connection.answer_waits() if isinstance(connection, GuardedConnection) else contextlib.nullcontext()
        try:
            with waiting:
                async with asyncio.timeout(STALL_SECONDS):
                    await writable
        finally:
            self._loop.remove_writer(self._fd)


def _set_done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def send_stream(
    exchange: Exchange, status: int, headers: Mapping[str, str], stream: ByteStream, size_bytes: int
) -> StreamResponse:
    """Send bytes as they come; the first are fetched before the status line, so that an early failure is an answer.

    Raises:
        ConnectionError: the client left, or the body had to be cut.
        FillFailedError, UpstreamUnavailableError: before anything was sent.
    """
    if size_bytes == 0:
        return Response(status=status, headers=headers, body=b"")
    async with aclosing(_chunks_of(stream)) as chunks:
        chunk = await anext(chunks, None)
        if chunk is None:
            raise FillFailedError("the upstream sent nothing")
        response = _start(exchange, status, headers, size_bytes)
        await response.prepare(exchange.request)
        with _cutting(exchange):
            await _write_chunk(exchange, response, chunk)
            await _write(exchange, response, chunks, size_bytes - len(chunk))
        await response.write_eof()
    return response


async def _write(
    exchange: Exchange, response: StreamResponse, chunks: AsyncGenerator[bytes, None], size_bytes: int
) -> None:
    """Send what comes. Raises FillFailedError when it is not ``size_bytes``."""
    async for chunk in chunks:
        size_bytes -= len(chunk)
        await _write_chunk(exchange, response, chunk)
    if size_bytes:
        raise FillFailedError("the upstream sent less or more than it announced")


async def _write_chunk(exchange: Exchange, response: StreamResponse, chunk: bytes) -> None:
    async with asyncio.timeout(STALL_SECONDS):
        await response.write(chunk)
    exchange.sent_bytes += len(chunk)


def _start(exchange: Exchange, status: int, headers: Mapping[str, str], size_bytes: int) -> StreamResponse:
    all_headers = {**exchange.answer_headers, **headers, "Content-Length": str(size_bytes)}
    return StreamResponse(status=status, headers=all_headers)


async def _chunks_of(stream: ByteStream) -> AsyncGenerator[bytes, None]:
    async for chunk in stream:
        yield chunk


def _cut(request: BaseRequest) -> None:
    transport = request.transport
    if transport is not None:
        transport.abort()
