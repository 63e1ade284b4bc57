"""Answers on their way out through aiohttp: from memory, from a file by the kernel, or chunk by chunk."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp.web import BaseRequest, Response, StreamResponse

from registry_proxy.edge.answer import Answer, FilePart, head_of
from registry_proxy.edge.exchange import Exchange
from registry_proxy.edge.incoming import STALL_SECONDS, Incoming
from registry_proxy.http.guarded import connection_of, is_tls
from registry_proxy.operations.pull_blobs import SMALL_BYTES
from registry_proxy.ports.content import BlobReader, ByteStream
from registry_proxy.ports.errors import FillFailedError, FillLostError, UpstreamUnavailableError
from registry_proxy.protocol.byterange import ByteRange
from registry_proxy.protocol.errors import RegistryError

_SLICE_BYTES = 1024 * 1024
_ENCRYPTED_BYTES = 256 * 1024
"""Encrypted at once, while no other connection has its turn."""

_GONE_CHECK_SECONDS = 10.0


class _BrokenError(ConnectionResetError):
    """The connection was cut on purpose or by the client: there is nobody to answer any more."""


@dataclass(frozen=True, slots=True)
class AnswerWriter:
    """Writes the answer to one request.

    Args:
        request: as aiohttp gave it.
        exchange: the same as we know it; receives what was sent.
        client: its sender.
    """

    request: BaseRequest
    exchange: Exchange
    client: Incoming

    async def write(self, answer: Answer) -> StreamResponse:
        """Write an answer and close its body; return it as aiohttp knows it.

        Where the disk fails, the rest of a file comes from its source. A body that can no longer be completed ends in a
        broken connection, never in a complete body.

        Raises:
            ConnectionError: the client left, or the body had to be cut.
            FillFailedError, UpstreamUnavailableError, RegistryError: before anything was sent.
        """
        body = answer.body
        self.exchange.source = answer.source
        if isinstance(body, bytes):
            response = await self._send_bytes(answer, body)
        else:
            try:
                if isinstance(body, FilePart):
                    response = await self._send_file(answer, body)
                else:
                    response = await self._send_stream(answer, body.stream, body.size_bytes)
            finally:
                await body.aclose()
        self.exchange.status = answer.status
        return response

    async def _start(self, response: StreamResponse) -> StreamResponse:
        """Send the head; a body that nobody read is drained first: some clients hang when refused mid-way."""
        is_late = response.status == HTTPStatus.REQUEST_TIMEOUT
        if not self.request.content.at_eof() and (is_late or not await self.client.drain()):
            response.force_close()
            if is_late or self.client.awaits_continue:
                self.client.end_behind_answer()
        await response.prepare(self.request)
        return response

    async def _send_bytes(self, answer: Answer, body: bytes) -> StreamResponse:
        """Send a body from memory, in one write with its head."""
        headers = head_of(self.exchange, answer)
        response = await self._start(Response(status=answer.status, headers=headers, body=body))
        if answer.source is not None:
            self.exchange.sent_bytes += len(body)
        await response.write_eof()
        return response

    async def _send_file(self, answer: Answer, body: FilePart) -> StreamResponse:
        """Send a part of a file that may still be growing."""
        reader, first, size_bytes = body.reader, body.part.first, body.size_bytes
        try:
            await reader.wait_beyond(body.part.last if size_bytes <= SMALL_BYTES else first)
            if size_bytes <= SMALL_BYTES:
                return await self._send_bytes(answer, _read_part(reader, body.part))
        except FillLostError:
            async with body.rest(first) as stream:
                return await self._send_stream(answer, stream, size_bytes)
        response = await self._start(self._response(answer))
        sending_of = _EncryptedSending if is_tls(self.request.transport) else _FileSending
        sending = sending_of(response, self.request, self.exchange, reader, first)
        with _cutting(self.request):
            try:
                await sending.send(first + size_bytes)
            except FillLostError:
                async with body.rest(sending.position) as stream, aclosing(_chunks_of(stream)) as chunks:
                    await self._write(response, chunks, first + size_bytes - sending.position)
            finally:
                sending.close()
        await response.write_eof()
        return response

    async def _send_stream(self, answer: Answer, stream: ByteStream, size_bytes: int) -> StreamResponse:
        """Send bytes as they come; the first are fetched before the status line, so that an early failure is an answer.

        Raises FillFailedError and UpstreamUnavailableError before anything was sent.
        """
        if size_bytes == 0:
            return await self._send_bytes(answer, b"")
        async with aclosing(_chunks_of(stream)) as chunks:
            chunk = await anext(chunks, None)
            if chunk is None:
                raise FillFailedError("the upstream sent nothing")
            response = await self._start(self._response(answer))
            with _cutting(self.request):
                await self._write_chunk(response, chunk)
                await self._write(response, chunks, size_bytes - len(chunk))
            await response.write_eof()
        return response

    def _response(self, answer: Answer) -> StreamResponse:
        return StreamResponse(status=answer.status, headers=head_of(self.exchange, answer))

    async def _write(self, response: StreamResponse, chunks: AsyncGenerator[bytes, None], size_bytes: int) -> None:
        """Send what comes. Raises FillFailedError when it is not ``size_bytes``."""
        async for chunk in chunks:
            size_bytes -= len(chunk)
            await self._write_chunk(response, chunk)
        if size_bytes:
            raise FillFailedError("the upstream sent less or more than it announced")

    async def _write_chunk(self, response: StreamResponse, chunk: bytes) -> None:
        async with asyncio.timeout(STALL_SECONDS):
            await response.write(chunk)
        self.exchange.sent_bytes += len(chunk)


async def _chunks_of(stream: ByteStream) -> AsyncGenerator[bytes, None]:
    async for chunk in stream:
        yield chunk


def _read_part(reader: BlobReader, part: ByteRange) -> bytes:
    try:
        body = os.pread(reader.fd, part.size_bytes, part.first)
    except OSError as error:
        raise FillLostError(f"the file cannot be read: {error.strerror}") from error
    if len(body) != part.size_bytes:
        raise FillLostError("the file is shorter than it was")
    return body


@contextlib.contextmanager
def _cutting(request: BaseRequest) -> Iterator[None]:
    """End the connection, and so the body, with every error inside."""
    try:
        yield
    except (OSError, FillFailedError, UpstreamUnavailableError, RegistryError, TimeoutError) as error:
        _cut(request)
        raise _BrokenError("the body was cut") from error
    except BaseException:
        _cut(request)
        raise


class _FileSending:
    """Sends by ``os.sendfile`` on a duplicate of the socket: uvloop has no sendfile, and the loop guards its own.

    ``position`` is up to where the file was sent.
    """

    def __init__(
        self, response: StreamResponse, request: BaseRequest, exchange: Exchange, reader: BlobReader, position: int
    ) -> None:
        self.position = position
        self._response = response
        self._exchange = exchange
        self._request = request
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
                sent = await self._send_some(position, min(available - position, _SLICE_BYTES))
            except BlockingIOError:
                await self._wait_writable()
                continue
            except (ConnectionError, TimeoutError):
                raise
            except OSError as error:
                raise FillLostError(f"the file cannot be read: {error.strerror}") from error
            if sent == 0:
                raise FillLostError("the file is shorter than it was")
            self.position += sent
            self._exchange.sent_bytes += sent
            # A client as fast as the disk never blocks: the others get their turn here.
            await asyncio.sleep(0)

    async def _send_some(self, position: int, size_bytes: int) -> int:
        """Send some of the file; return how many bytes, 0 where it has none there."""
        return os.sendfile(self._fd, self._reader.fd, position, size_bytes)

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
        connection = connection_of(self._request)
        waiting = contextlib.nullcontext() if connection is None else connection.answer_waits()
        try:
            with waiting:
                async with asyncio.timeout(STALL_SECONDS):
                    await writable
        finally:
            self._loop.remove_writer(self._fd)


class _EncryptedSending(_FileSending):
    """Sends through the transport, which encrypts."""

    async def _send_some(self, position: int, size_bytes: int) -> int:
        chunk = os.pread(self._reader.fd, min(size_bytes, _ENCRYPTED_BYTES), position)
        async with asyncio.timeout(STALL_SECONDS):
            await self._response.write(chunk)
        return len(chunk)


def _set_done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _cut(request: BaseRequest) -> None:
    transport = request.transport
    if transport is not None:
        transport.abort()
