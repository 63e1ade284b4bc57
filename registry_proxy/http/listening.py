"""The sockets of a listener: over plain HTTP, or over TLS, where each connection begins with a handshake."""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from registry_proxy.http.certificate import Certificate
from registry_proxy.http.connections import Connections, Owner, Patience
from registry_proxy.http.limits import scattered
from registry_proxy.http.plain_port import TLS_HANDSHAKE, TlsPort, plain_port
from registry_proxy.tasks import end_all, spawn

_BACKLOG: Final = 1024
_ACCEPTED_AT_ONCE: Final = 64
_PAUSE_SECONDS: Final = 1.0
_NO_ROOM: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_log = logging.getLogger(__name__)


class Listening(Protocol):
    """A socket whose connections are served."""

    @property
    def has_handshakes(self) -> bool:
        """Whether connections were accepted that no handler knows yet."""
        ...

    def close(self) -> None:
        """Accept no more connections."""
        ...

    async def wait_closed(self) -> None:
        """Wait until it is closed; handshakes that are not over are cut."""
        ...


async def listen(
    make: Callable[[], asyncio.Protocol],
    bound: socket.socket,
    connections: Connections,
    certificate: Certificate | None,
) -> Listening:
    """Serve the connections of a bound socket.

    Args:
        make: returns the protocol of a connection.
        bound: the socket.
        connections: count those whose handshake is not over.
        certificate: for TLS; None for plain HTTP.
    """
    if certificate is not None:
        return TlsListening(make, bound, connections, certificate)
    loop = asyncio.get_running_loop()
    return _PlainListening(await loop.create_server(plain_port(make), sock=bound, backlog=_BACKLOG))


class _PlainListening:
    def __init__(self, server: asyncio.Server) -> None:
        self.close = server.close
        self.wait_closed = server.wait_closed

    @property
    def has_handshakes(self) -> bool:
        return False


class TlsListening:
    """Looks at the first byte of each connection: TLS is served, plain HTTP gets an answer that says so."""

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        bound: socket.socket,
        connections: Connections,
        certificate: Certificate,
    ) -> None:
        self._make = make
        self._bound = bound
        self._connections = connections
        self._certificate = certificate
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[_Handshake] = set()
        self._pause: asyncio.TimerHandle | None = None
        bound.listen(_BACKLOG)
        bound.settimeout(0)
        self._go_on()

    @property
    def has_handshakes(self) -> bool:
        """Whether connections were accepted that no handler knows yet."""
        return bool(self._handshakes)

    def close(self) -> None:
        """Accept no more connections."""
        if self._pause is not None:
            self._pause.cancel()
        if self._bound.fileno() >= 0:
            self._loop.remove_reader(self._bound.fileno())
            self._bound.close()

    async def wait_closed(self) -> None:
        """Cut the handshakes that are not over."""
        await end_all([each.task for each in self._handshakes])

    def _go_on(self) -> None:
        self._loop.add_reader(self._bound.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                accepted, address = self._bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                _log.warning("no connection is accepted for %.0f s: %s", _PAUSE_SECONDS, error.strerror)
                self._loop.remove_reader(self._bound.fileno())
                self._pause = self._loop.call_later(_PAUSE_SECONDS, self._go_on)
                return
            accepted.settimeout(0)
            handshake = _Handshake(accepted, str(address[0]), self._connections)
            self._handshakes.add(handshake)
            handshake.task = spawn(self._serve(handshake), "TLS handshake")

    async def _serve(self, handshake: "_Handshake") -> None:
        """Bring one connection to the protocol that serves it."""
        seconds = scattered(self._connections.limits.header_seconds)
        try:
            async with asyncio.timeout(seconds):
                if await handshake.begins_with_tls():
                    context = self._certificate.context
                    await self._loop.connect_accepted_socket(
                        self._make, handshake.accepted, ssl=context, ssl_handshake_timeout=seconds
                    )
                else:
                    _, port = await self._loop.connect_accepted_socket(TlsPort, handshake.accepted)
                    await port.ended.wait()
        except (OSError, TimeoutError, ssl.SSLError) as error:
            # A port scan, a client that does not trust the certificate: ordinary, and not ours to repair.
            _log.debug("no TLS with %s: %s", handshake.address, error)
            handshake.accepted.close()
        except BaseException:
            handshake.accepted.close()
            raise
        finally:
            self._handshakes.discard(handshake)
            handshake.end()


class _Handshake:
    """A connection until its handshake is over, as the ``Connections`` of its listener know it."""

    task: "asyncio.Task[None]"

    def __init__(self, accepted: socket.socket, address: str, connections: Connections) -> None:
        self.accepted = accepted
        self.address = address
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._owner = connections.open(self, address)
        self._unfinished_of: Owner | None = None
        self._unfinished_of = connections.begin(self, address)  # may call ``abort``

    async def begins_with_tls(self) -> bool:
        """Wait for the first byte, which stays where it is; return whether it begins TLS.

        Raises:
            OSError: the client left.
        """
        readable = self._loop.create_future()
        self._loop.add_reader(self.accepted.fileno(), _set_done, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(self.accepted.fileno())
        first = self.accepted.recv(1, socket.MSG_PEEK)
        if not first:
            raise ConnectionResetError("the client left")
        return first[0] == TLS_HANDSHAKE

    def end(self) -> None:
        """Count it no more: the protocol behind it counts itself, or it has ended."""
        if self._unfinished_of is not None:
            self._connections.end(self, self._unfinished_of)
        self._connections.close(self, self._owner)

    def is_late(self, now: float, patience: Patience) -> bool:
        """Tell whether the handshake has been on its way for too long."""
        return now > self._since + patience.head

    def rests(self, now: float, seconds: float) -> bool:  # noqa: ARG002 - it is unfinished
        """Tell that it does not rest."""
        return False

    def stalls(self, now: float, seconds: float) -> bool:  # noqa: ARG002 - there is no answer yet
        """Tell that no answer waits."""
        return False

    def abort(self) -> None:
        """End it at once."""
        self.end()
        with contextlib.suppress(OSError):
            self.accepted.shutdown(socket.SHUT_RDWR)


def _set_done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
