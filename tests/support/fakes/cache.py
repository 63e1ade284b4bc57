"""What stands in for the upstream and for Prometheus in tests of the cache."""

# ruff: noqa: ARG002 - an observer takes all arguments of the port

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from registry_proxy.ports.content import BlobReader
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.names import CacheResult, ContentKind, StaleReason
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.protocol.reference import Digest

MIB = 1024 * 1024


@dataclass
class Events:
    """An ``Observer`` that remembers what the cache told it."""

    errors: Counter[str] = field(default_factory=Counter)
    bytes: dict[str, int] = field(default_factory=dict)
    evicted_bytes: int = 0
    rounds: list[float] = field(default_factory=list)

    def cache_error(self, reason: str) -> None:
        self.errors[reason] += 1

    def cache_bytes(self, state: str, size_bytes: int) -> None:
        self.bytes[state] = size_bytes

    def cache_request(self, kind: ContentKind, result: CacheResult) -> None:
        raise AssertionError("not for the cache to say")

    def sent_bytes(self, source: str, size_bytes: int) -> None:
        raise AssertionError("not for the cache to say")

    def upstream_request(self, upstream: str, replica: str, method: str, outcome: str, duration_seconds: float) -> None:
        raise AssertionError("not for the cache to say")

    def replica_state(self, upstream: str, replica: str, state: ReplicaState) -> None:
        raise AssertionError("not for the cache to say")

    def lost_copies(self, upstream: str, count: int) -> None:
        raise AssertionError("not for the cache to say")

    def repositories_mixed(self, upstream: str, replica: str, is_mixed: bool) -> None:  # noqa: FBT001 - a gauge's value
        raise AssertionError("not for the cache to say")

    def replica_pending(self, upstream: str, replica: str, count: int) -> None:
        raise AssertionError("not for the cache to say")

    def replica_refused(self, upstream: str, replica: str, count: int) -> None: ...
    def replica_returned(self, upstream: str, replica: str, reason: str) -> None: ...
    def replica_paused(self, upstream: str, replica: str, *, is_paused: bool) -> None: ...
    def lost_contents(self, upstream: str, count: int) -> None: ...
    def decision(self, action: str, result: str) -> None:
        raise AssertionError("not for the cache to say")

    def request(self, route: str, method: str, status: int, duration_seconds: float) -> None:
        raise AssertionError("not for the cache to say")

    def cache_evicted(self, size_bytes: int) -> None:
        self.evicted_bytes += size_bytes

    def repaired(self, upstream: str, replica: str, outcome: str) -> None:
        raise AssertionError("not for the cache to say")

    def repaired_bytes(self, upstream: str, replica: str, size_bytes: int) -> None:
        raise AssertionError("not for the cache to say")

    def stale_answer(self, reason: StaleReason) -> None:
        raise AssertionError("not for the cache to say")

    def hedged(self, upstream: str, winner: str) -> None:
        raise AssertionError("not for the cache to say")

    def wrong_content(self, upstream: str, replica: str) -> None:
        raise AssertionError("not for the cache to say")

    def scrubbed(self, size_bytes: int) -> None:
        self.bytes["scrubbed"] = self.bytes.get("scrubbed", 0) + size_bytes

    def policy_current(self, at: float) -> None: ...
    def scrub_ended(self, ended_at: float) -> None:
        self.rounds.append(ended_at)

    def connection_ended(self, listener: str, reason: str) -> None: ...
    def audit_dropped(self, sink: str, count: int) -> None: ...

    def login(self, outcome: str) -> None:
        raise AssertionError("not for the cache to say")


@dataclass
class Answer:
    """What a source does with one request. The defaults send the whole content from the offset asked for."""

    body: bytes
    announce: bool = True  # whether the size is known before the end
    size_bytes: int | None = None  # announced instead of the true size
    ignore_offset: bool = False  # start at 0 whatever was asked for
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
        """There is nothing to close."""


class Source:
    """An ``OpenSource`` that gives one answer after the other, the last one again and again.

    ``offsets`` are those it was opened at; ``raised`` what went through its contexts; ``open`` how many are open.
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
    """Read as the web does: what is available, then wait; closes the reader."""
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
