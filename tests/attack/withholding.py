"""An abuser: opens connections from one address, sends the beginning of a request on each, and nothing more."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.support.servers import wait_until

TOKEN_FORM = (
    b"POST /auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\n\r\ng"
)
UPLOAD = b"PATCH /v2/a/blobs/uploads/x HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\nx"
ADMIN_DOCUMENT = (
    b"PUT /admin/v1/users/x HTTP/1.1\r\nHost: x\r\nContent-Length: 600\r\nContent-Type: application/json\r\n\r\n{"
)
HALF_A_HEAD = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Y: "
NOTHING = b""
AT_REST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
"""Answered at once; the connection is kept then."""

_PAUSE_SECONDS = 0.05


@dataclass
class Withholding:
    """Keeps up to ``count`` connections open; one that the server ends is opened anew.

    ``at_once`` are opened every 50 ms at most. ``opened`` is how many there were in all.
    """

    port: int
    source: str
    beginnings: Sequence[bytes]
    count: int
    at_once: int = 20
    held: int = 0
    opened: int = 0

    async def _hold(self, beginning: bytes) -> None:
        try:  # a refusal or a reset is what an abuser expects
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(self.source, 0))
            try:
                self.opened += 1
                writer.write(beginning)
                while await reader.read(65536):
                    pass
            finally:
                writer.close()
        except OSError:
            pass
        finally:
            self.held -= 1

    async def run(self, ending: asyncio.Event) -> None:
        """Attack until told to end."""
        held: set[asyncio.Task[None]] = set()
        number = 0
        while not ending.is_set():
            for _ in range(min(self.at_once, self.count - self.held)):
                self.held += 1
                task = asyncio.get_running_loop().create_task(
                    self._hold(self.beginnings[number % len(self.beginnings)])
                )
                number += 1
                held.add(task)
                task.add_done_callback(held.discard)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_SECONDS):
                    await ending.wait()
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


@contextlib.contextmanager
def withholding(attacks: Sequence[Withholding]) -> Iterator[None]:
    """Attack, from a thread, for the length of a with block, which begins once each has opened what it wants."""
    loop = asyncio.new_event_loop()
    ending = asyncio.Event()

    async def run() -> None:
        await asyncio.gather(*(attack.run(ending) for attack in attacks))

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        wait_until(
            lambda: all(each.opened >= each.count for each in attacks), "all attackers are there", timeout_seconds=240
        )
        yield
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()
        loop.close()
