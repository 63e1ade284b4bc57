"""An abuser: opens connections from one address, and sends only the beginning of a request on each."""

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
"""A request that is answered immediately; the connection stays open."""

_PAUSE_SECONDS = 0.05


@dataclass
class Withholding:
    """Keeps up to ``count`` connections open; a connection that the server closes is opened again.

    At most ``at_once`` are opened per 50 ms. ``opened`` is the number of all connections so far.
    """

    port: int
    source: str
    beginnings: Sequence[bytes]
    count: int
    at_once: int = 20
    held: int = 0
    opened: int = 0

    async def _hold(self, beginning: bytes) -> None:
        try:  # an abuser expects a refusal or a reset
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
        """Attack until the stop event is set."""
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
    """Attack from a thread for the length of a with block; it begins once all connections are open."""
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
