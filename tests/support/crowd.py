"""Many clients of one body at once, in one thread: each byte is compared with the expected one."""

import contextlib
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_READ_BYTES = 1024 * 1024


@dataclass
class Client:
    """One request and its outcome; times in seconds from the crowd's start."""

    connection: socket.socket
    local_port: int
    head: bytes = b""
    received_bytes: int = 0
    status: int = 0
    is_right: bool = True
    reads_nothing: bool = False  # it asks, and leaves when all others are done
    first_byte_at: float = 0.0
    done_at: float = 0.0

    def is_complete(self, size_bytes: int) -> bool:
        """Tell whether it received a whole body, right or wrong."""
        return self.status == 200 and self.received_bytes == size_bytes


@dataclass
class Crowd:
    """Clients that GET one URL at the same moment.

    Args:
        url: of the body.
        body: the expected bytes.
        headers: lines sent along.
        count: the number of clients.
        compare: whether to compare the bytes; without, the kernel discards them.
    """

    url: str
    body: bytes
    headers: Sequence[str] = ()
    count: int = 200
    compare: bool = True
    clients: list[Client] = field(default_factory=list)

    def connect(self) -> None:
        """Open the connections."""
        parts = urlsplit(self.url)
        for _ in range(self.count):
            connection = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=30)
            connection.setblocking(False)  # noqa: FBT003 - the name of the method says what it is
            self.clients.append(Client(connection, connection.getsockname()[1]))

    def run(self, timeout_seconds: float = 300, leave_after: Sequence[int] = ()) -> None:
        """Send the requests, and return when every client has its body or a broken connection.

        Args:
            timeout_seconds: for all of it.
            leave_after: by client the number of bytes of the body after which it leaves.
        """
        enough = leave_after or [len(self.body)] * len(self.clients)
        parts = urlsplit(self.url)
        lines = [f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close", *self.headers, "", ""]
        request = "\r\n".join(lines).encode()
        buffer = bytearray(_READ_BYTES)
        began = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for client, bytes_wanted in zip(self.clients, enough, strict=True):
                client.connection.send(request)
                if not client.reads_nothing:
                    selector.register(client.connection, selectors.EVENT_READ, (client, bytes_wanted))
            while selector.get_map():
                if time.monotonic() - began > timeout_seconds:
                    raise TimeoutError(f"{len(selector.get_map())} clients wait for their bodies")
                for key, _ in selector.select(1):
                    client, bytes_wanted = key.data
                    if not self._read(client, buffer, began) or client.received_bytes >= bytes_wanted:
                        selector.unregister(client.connection)
                        client.connection.close()
                        client.done_at = time.monotonic() - began
        for client in self.clients:
            client.connection.close()

    def _read(self, client: Client, buffer: bytearray, began: float) -> bool:
        """Read the available bytes; return False at the end."""
        flags = socket.MSG_TRUNC if client.status and not self.compare else 0
        with contextlib.suppress(BlockingIOError):
            try:
                count = client.connection.recv_into(buffer, len(buffer), flags)
            except ConnectionError:
                return False
            if count == 0:
                return False
            if client.status:
                self._take(client, buffer if flags else buffer[:count], count, flags=flags)
            else:
                client.head += buffer[:count]
                head, end, rest = client.head.partition(b"\r\n\r\n")
                if end:
                    client.status = int(head.split(b" ", 2)[1])
                    client.head = head
                    if rest:
                        self._take(client, rest, len(rest), flags=0)
            if client.received_bytes and not client.first_byte_at:
                client.first_byte_at = time.monotonic() - began
        return True

    def _take(self, client: Client, content: bytes | bytearray, count: int, *, flags: int) -> None:
        begin = client.received_bytes
        client.received_bytes += count
        if not flags and content != self.body[begin : begin + count]:
            client.is_right = False
