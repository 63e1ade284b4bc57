"""Stand-ins for the upstream and for Prometheus in tests of the cache."""

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from registry_proxy.ports.content import BlobReader
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.metrics import CacheBytes, CacheEviction, CacheFailure, MetricEvent, ScrubbedBytes, ScrubEnd
from registry_proxy.protocol.reference import Digest
from tests.support.fakes.memory import RecordingObserver

MIB = 1024 * 1024


class Events(RecordingObserver):
    """An ``Observer`` that accepts events of the cache and no others."""

    def observe(self, event: MetricEvent, /) -> None:
        assert isinstance(event, CacheBytes | CacheEviction | CacheFailure | ScrubEnd | ScrubbedBytes)
        super().observe(event)

    @property
    def errors(self) -> Counter[str]:
        """The number of failures of the cache, by reason."""
        return Counter(event.reason for event in self.found(CacheFailure))

    @property
    def rounds(self) -> list[float]:
        """The ends of rounds of the scrub."""
        return [event.ended_at for event in self.found(ScrubEnd)]


@dataclass
class Answer:
    """A source's answer to one request. The defaults send the whole content from the requested offset."""

    body: bytes
    announce: bool = True  # whether the size is known before the end
    size_bytes: int | None = None  # announced instead of the true size
    ignore_offset: bool = False  # start at 0 for any offset
    cut_after: int | None = None  # the sender dies after this many bytes of this answer
    pause_at: int | None = None  # wait for ``resume`` after this many bytes of this answer
    error: Exception | None = None  # raised instead of an answer
    chunk_bytes: int = 64 * 1024
    sent_bytes: int = 0  # counted here
    reached: asyncio.Event = field(default_factory=asyncio.Event)  # set at the pause
    resume: asyncio.Event = field(default_factory=asyncio.Event)


class _Stream:
    def __init__(self, answer: Answer, offset: int) -> None:
        self._answer = answer
        self.offset = offset

    @property
    def size_bytes(self) -> int | None:
        if not self._answer.announce:
            return None
        return len(self._answer.body) if self._answer.size_bytes is None else self._answer.size_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        answer, sent = self._answer, 0
        while self.offset + sent < len(answer.body):
            end = sent + answer.chunk_bytes
            for limit in (answer.pause_at, answer.cut_after):
                if limit is not None and sent < limit:
                    end = min(end, limit)
            if sent == answer.pause_at:
                answer.reached.set()
                await answer.resume.wait()
            if sent == answer.cut_after:
                raise UpstreamUnavailableError("cut")
            chunk = answer.body[self.offset + sent : self.offset + end]
            sent += len(chunk)
            answer.sent_bytes += len(chunk)
            yield chunk
            await asyncio.sleep(0)
        if sent == answer.cut_after:
            raise UpstreamUnavailableError("cut")

    async def aclose(self) -> None:
        """Close nothing."""


class Source:
    """An ``OpenSource`` that gives one answer after the other, the last one repeatedly.

    ``offsets`` are those of its openings; ``raised`` holds errors through its contexts; ``open`` is the number open.
    """

    def __init__(self, *answers: Answer) -> None:
        self._answers = answers
        self.offsets: list[int] = []
        self.raised: list[BaseException] = []
        self.open = 0

    @asynccontextmanager
    async def __call__(self, offset: int) -> AsyncIterator[_Stream]:
        answer = self._answers[min(len(self.offsets), len(self._answers) - 1)]
        self.offsets.append(offset)
        if answer.error is not None:
            raise answer.error
        self.open += 1
        try:
            yield _Stream(answer, 0 if answer.ignore_offset else offset)
        except BaseException as error:
            self.raised.append(error)
            raise
        finally:
            self.open -= 1


def content(size_bytes: int, seed: int = 0) -> tuple[bytes, Digest]:
    """Return bytes that do not repeat, the same for the same arguments, and their digest."""
    body = hashlib.shake_128(f"{size_bytes} {seed}".encode()).digest(size_bytes)
    return body, Digest("sha256", hashlib.sha256(body).hexdigest())


async def read_all(reader: BlobReader, chunk_bytes: int = MIB) -> bytes:
    """Read as the web does: the available bytes, then wait; closes the reader."""
    pieces: list[bytes] = []
    offset = 0
    try:
        while offset < reader.size_bytes:
            await reader.wait_beyond(offset)
            piece = os.pread(reader.fd, min(chunk_bytes, reader.available_bytes - offset), offset)
            assert piece, "the watermark promises bytes that are not there"
            pieces.append(piece)
            offset += len(piece)
    finally:
        reader.close()
    return b"".join(pieces)
