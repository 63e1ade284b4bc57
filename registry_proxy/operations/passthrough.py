"""Bytes handed from a replica to a client without the cache: when the disk cannot take them, and for far ranges."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING

from registry_proxy.ports.content import ByteStream, OpenSource, Reopenings
from registry_proxy.ports.errors import FillFailedError, UpstreamUnavailableError, WrongContentError
from registry_proxy.protocol.byterange import ByteRange
from registry_proxy.protocol.reference import Digest

if TYPE_CHECKING:
    from hashlib import _Hash

HOLD_BACK_BYTES = 64 * 1024
"""How much of the end of a whole content is kept back until its digest was right."""


class PassThrough:
    """A part of a content, read from the upstream as the client takes it; a ``ByteStream``.

    When the replica fails in mid-body the rest is opened anew, which fails over to another one. A whole content is
    hashed on the way and its tail withheld until the digest is right, so that a lie ends as a short body; a part cannot
    be checked here, its client checks the whole.

    Args:
        source: opens the content at an offset.
        digest: of the whole content.
        size_bytes: of the whole content.
        byte_range: the part that is wanted; None for the whole.
        hasher: of what comes before the part, where that was sent already and the whole is to be right.
    """

    def __init__(
        self,
        source: OpenSource,
        digest: Digest,
        size_bytes: int,
        byte_range: ByteRange | None,
        hasher: "_Hash | None" = None,
    ) -> None:
        self._source = source
        self._digest = digest
        self._size_bytes = size_bytes
        self._hasher = digest.hasher() if byte_range is None else hasher
        self._is_proof = byte_range is None  # all that is hashed comes from the upstream
        self._position = 0 if byte_range is None else byte_range.first
        self._end = size_bytes if byte_range is None else byte_range.last + 1
        self._offset = self._position
        self._stack = AsyncExitStack()
        self._stream: ByteStream | None = None
        self._opened = 0

    @property
    def offset(self) -> int:
        """The position of the first byte in the content."""
        return self._offset

    @property
    def size_bytes(self) -> int | None:
        """Size of the whole content."""
        return self._size_bytes

    async def open(self) -> None:
        """Ask the upstream, so that what it refuses is known before a status line is sent.

        Raises:
            RegistryError: what the upstream answered.
            UpstreamUnavailableError: nobody answered.
        """
        await self._stack.aclose()
        self._stack = AsyncExitStack()
        self._opened += 1
        self._stream = await self._stack.enter_async_context(self._source(self._position))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._wanted() if self._hasher is None else self._verified(self._hasher)

    async def _wanted(self) -> AsyncGenerator[bytes, None]:
        reopenings = Reopenings()
        while self._position < self._end:
            before = self._position
            try:
                if self._stream is None:
                    await self.open()
                async with aclosing(self._read_stream()) as chunks:
                    async for chunk in chunks:
                        yield chunk
                cause: Exception = UpstreamUnavailableError("the upstream's body ended early")
            except UpstreamUnavailableError as error:
                cause = error
            self._stream = None
            if self._position < self._end:
                pause_seconds = reopenings.broke_off(self._position - before)
                if pause_seconds is None:
                    raise FillFailedError("the upstream did not send the whole content") from cause
                await asyncio.sleep(pause_seconds)

    async def _read_stream(self) -> AsyncGenerator[bytes, None]:
        """Yield what the open stream has of the wanted part; it may begin before it, and go on behind it."""
        if self._stream is None:
            return
        at = self._stream.offset
        async for chunk in self._stream:
            wanted = chunk[max(self._position - at, 0) : max(self._end - at, 0)]
            at += len(chunk)
            if wanted:
                self._position += len(wanted)
                yield wanted
            if self._position >= self._end:
                return

    async def _verified(self, hasher: "_Hash") -> AsyncGenerator[bytes, None]:
        held = b""
        async with aclosing(self._wanted()) as wanted:
            async for chunk in wanted:
                hasher.update(chunk)
                held += chunk
                if len(held) > HOLD_BACK_BYTES:
                    yield held[:-HOLD_BACK_BYTES]
                    held = held[-HOLD_BACK_BYTES:]
        if hasher.hexdigest() != self._digest.hex:
            is_proven = self._is_proof and self._opened == 1
            error = WrongContentError(f"the upstream's content is not {self._digest}", is_proven=is_proven)
            await self._stack.__aexit__(WrongContentError, error, None)  # raises it; the source is to know
            raise error
        if held:
            yield held

    async def aclose(self) -> None:
        """Let go of the upstream's connection; twice is fine."""
        self._stream = None
        await self._stack.aclose()
