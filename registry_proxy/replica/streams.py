"""The body of a blob as a replica sends it."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import aiohttp

from registry_proxy.ports.content import ByteStream
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.metrics import UpstreamOutcome
from registry_proxy.replica.connections import Deadline
from registry_proxy.replica.failure import ReplicaFailedError, translated


@dataclass(slots=True)
class BlobStream:
    """A ``ByteStream`` over an answer.

    Args:
        response: the answer; closed by the client that opened it.
        replica: name of the replica, for errors.
        offset: where its first byte lies in the blob.
        size_bytes: of the whole blob, None when not said.
        stall_seconds: the longest wait for more bytes.
        is_elsewhere: the answer is that of a storage to which the replica redirected.
        failed: receives the outcome (cut, stall) and the start of the body, on the monotonic clock.
    """

    response: aiohttp.ClientResponse
    replica: str
    offset: int
    size_bytes: int | None
    stall_seconds: float
    is_elsewhere: bool
    failed: Callable[[UpstreamOutcome, float], None]
    started_at: float = field(default_factory=time.monotonic)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        content = self.response.content
        try:
            with translated(self.replica, in_body=True, is_elsewhere=self.is_elsewhere):
                while True:
                    async with Deadline(self.stall_seconds):
                        chunk = await content.readany()
                    if not chunk:
                        return
                    yield chunk
        except ReplicaFailedError as error:
            self.failed(error.outcome, self.started_at)
            raise

    async def aclose(self) -> None:
        if not self.response.content.is_eof():
            self.response.close()


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
