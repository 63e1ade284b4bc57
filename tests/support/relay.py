"""A TCP relay before a server: makes it slow, or lets it pause in the middle of an answer."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from registry_proxy.tasks import spawn

_CHUNK_BYTES = 64 * 1024


class Relay:
    """Passes connections on to a port of 127.0.0.1.

    Args:
        target_port: the port of the server.
        bytes_per_second: of all answers together; 0 for no limit.
        delay_seconds: before each piece of a request is passed on: the round trip of a distant server; may be changed.
        pause_after: bytes of answers after which a connection pauses until ``resume``; 0 for never.
    """

    def __init__(
        self, target_port: int, *, bytes_per_second: int = 0, delay_seconds: float = 0, pause_after: int = 0
    ) -> None:
        self.port = 0
        self.paused = threading.Event()
        self._armed = 0
        self._target_port = target_port
        self._bytes_per_second = bytes_per_second
        self.delay_seconds = delay_seconds
        self._pause_after = pause_after
        self._next_at = 0.0
        self._loop = asyncio.new_event_loop()
        self._resumed: asyncio.Event | None = None
        self._started = threading.Event()
        self._ended: asyncio.Event | None = None

    def resume(self) -> None:
        """Go on after the pause, and never pause again."""
        resumed = self._resumed
        if resumed is not None:
            self._loop.call_soon_threadsafe(resumed.set)

    def pause_next(self, after_bytes: int) -> None:
        """Pause the connection that next passes a number of bytes of answers."""
        self.paused.clear()

        def arm() -> None:
            self._armed += 1
            self._pause_after = after_bytes
            self._resumed = asyncio.Event()

        self._loop.call_soon_threadsafe(arm)

    @contextlib.contextmanager
    def running(self) -> Iterator["Relay"]:
        """Relay, in a thread, while the block runs."""
        thread = threading.Thread(target=self._run)
        thread.start()
        self._started.wait()
        try:
            yield self
        finally:
            if self._ended is not None:
                self._loop.call_soon_threadsafe(self._ended.set)
            thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._resumed, self._ended = asyncio.Event(), asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = spawn(self._pass(reader, writer), "relay")
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._ended.wait()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        try:
            pumps = [self._pump(reader, forth, is_answer=False), self._pump(back, writer, is_answer=True)]
            tasks = [spawn(pump, "pump") for pump in pumps]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            forth.close()
            writer.close()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_answer: bool) -> None:
        passed_bytes, armed = 0, self._armed
        with contextlib.suppress(OSError):
            while chunk := await source.read(_CHUNK_BYTES):
                if is_answer:
                    passed_bytes, armed = (passed_bytes if armed == self._armed else 0), self._armed
                    passed_bytes += len(chunk)
                    await self._hold(len(chunk), passed_bytes)
                else:
                    await asyncio.sleep(self.delay_seconds)
                target.write(chunk)
                await target.drain()

    async def _hold(self, size_bytes: int, passed_bytes: int) -> None:
        if self._bytes_per_second:
            now = self._loop.time()
            self._next_at = max(self._next_at, now) + size_bytes / self._bytes_per_second
            await asyncio.sleep(self._next_at - now)
        if self._resumed is not None and 0 < self._pause_after < passed_bytes:
            self.paused.set()
            await self._resumed.wait()
