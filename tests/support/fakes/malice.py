"""A server that answers with any bytes, by itself or before a real server: for malicious registries."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from registry_proxy.tasks import spawn

_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Asked:
    """The head of a request; names of headers are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]


class Silence:
    """No answer, for as long as the server lives."""


SILENCE = Silence()

Said = bytes | Silence | Iterable[bytes] | AsyncIterator[bytes] | None
"""One answer: its bytes, at once or in pieces. None passes the request on to the real server."""

Answers = Callable[[Asked], Said]


def answer(
    status: int, headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None, body: bytes = b""
) -> bytes:
    """Return the bytes of an answer; its Content-Length is right unless ``headers`` say otherwise."""
    fields = list(headers.items() if isinstance(headers, Mapping) else headers or ())
    if not any(name.lower() in {"content-length", "transfer-encoding"} for name, _ in fields):
        fields.append(("Content-Length", str(len(body))))
    lines = [f"HTTP/1.1 {status} As scripted", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def challenge(realm: str) -> bytes:
    """Return a 401 that names a token endpoint."""
    return answer(401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="x"'})


class Malice:
    """A server on a free port, in a thread: a test, or the loop of a test, may block beside it.

    A connection is kept as long as whole answers are sent on it. Bytes that are no HTTP, and answers in pieces, end it.

    Args:
        answers: receives each request, in the thread of the server.
        host: the address on which it listens.
        behind: the port of 127.0.0.1 of the real server for requests that ``answers`` passes on.
    """

    def __init__(self, answers: Answers, behind: int | None = None, host: str = "127.0.0.1") -> None:
        self.answers = answers
        self.requests: list[Asked] = []
        self.port = 0
        self._behind = behind
        self._host = host
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._ended: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="malice", daemon=True)

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://{self._host}:{self.port}"

    def count(self, target: str = "", method: str = "") -> int:
        """Return the number of requests with this method and a target that matches the regular expression."""
        asked = list(self.requests)
        return sum(1 for one in asked if method in {"", one.method} and re.search(target, one.target))

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        if self._ended is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._ended = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = spawn(self._talk(reader, writer), "malice")
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(take, self._host, 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._ended.wait()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, OSError):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    asked = _parse(head)
                    self.requests.append(asked)
                    said = self.answers(asked)
                    if said is None:
                        await self._pass_on(head, reader, writer)
                        return
                    if not await _say(said, writer):
                        return
                    await reader.readexactly(int(asked.headers.get("content-length", "0")))
        finally:
            writer.close()

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one request to the real server; the connection ends with its answer."""
        there, back = await asyncio.open_connection("127.0.0.1", self._behind)
        try:
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            back.write(b"\r\n".join([lines[0], b"Connection: close", *lines[1:]]))
            sending = spawn(_pump(reader, back), "malice forth")
            try:
                await _pump(there, writer)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        finally:
            back.close()


def _parse(head: bytes) -> Asked:
    request, *lines = head.decode("latin-1").split("\r\n")
    method, target = request.split(" ")[:2]
    pairs = (line.partition(":") for line in lines if line)
    return Asked(method, target, {name.lower(): value.strip() for name, _, value in pairs})


async def _say(said: bytes | Silence | Iterable[bytes] | AsyncIterator[bytes], writer: asyncio.StreamWriter) -> bool:
    """Send an answer; return whether another one may follow on the connection."""
    if isinstance(said, Silence):
        await asyncio.Event().wait()
    if isinstance(said, bytes):
        writer.write(said)
        await writer.drain()
        return said.startswith(b"HTTP/1.1") and b"\r\n\r\n" in said
    if isinstance(said, AsyncIterator):
        async for piece in said:
            writer.write(piece)
            await writer.drain()
    elif not isinstance(said, Silence):
        for piece in said:
            writer.write(piece)
            await writer.drain()
    return False


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await source.read(_CHUNK_BYTES):
            target.write(chunk)
            await target.drain()
