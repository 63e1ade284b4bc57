"""The body of a blob as a replica sends it."""

import time
from collections.abc import AsyncIterator, Callable

import aiohttp

from registry_proxy.ports.content import ByteStream
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.metrics import UpstreamOutcome
from registry_proxy.replica.connections import Deadline
from registry_proxy.replica.failure import ReplicaFailedError, translated


class BlobStream:
    """A ``ByteStream`` over an answer; ``expected_bytes`` is what this answer promised to send.

    Args:
        response: the answer; closed by the client that opened it.
        replica: name of the replica, for errors.
        offset: where its first byte lies in the blob.
        size_bytes: of the whole blob, None when not said.
        stall_seconds: the longest wait for more bytes.
        is_elsewhere: the answer is that of a storage to which the replica redirected.
        failed: receives the outcome (cut, stall) and the start of the body, on the monotonic clock.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        replica: str,
        *,
        offset: int,
        size_bytes: int | None,
        stall_seconds: float,
        is_elsewhere: bool,
        failed: Callable[[UpstreamOutcome, float], None],
    ) -> None:
        self._response = response
        self._replica = replica
        self.offset = offset
        self.size_bytes = size_bytes
        self._stall_seconds = stall_seconds
        self._is_elsewhere = is_elsewhere
        self._failed = failed
        self._started_at = time.monotonic()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            with translated(self._replica, in_body=True, is_elsewhere=self._is_elsewhere):
                while True:
                    async with Deadline(self._stall_seconds):
                        chunk = await content.readany()
                    if not chunk:
                        return
                    yield chunk
        except ReplicaFailedError as error:
            self._failed(error.outcome, self._started_at)
            raise

    async def aclose(self) -> None:
        if not self._response.content.is_eof():
            self._response.close()


class ReportedStream:
    """A ``ByteStream`` that reports its failures."""

    def __init__(self, stream: ByteStream, failed: Callable[[UpstreamUnavailableError], None]) -> None:
        self._stream = stream
        self._failed = failed
        self.offset, self.size_bytes = stream.offset, stream.size_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except UpstreamUnavailableError as error:
            self._failed(error)
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()
