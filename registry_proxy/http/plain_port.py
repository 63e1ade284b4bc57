"""A plain HTTP port that answers a TLS hello in plain HTTP, in front of the protocol that serves requests."""

import asyncio
from collections.abc import Callable
from typing import cast

from registry_proxy.protocol.errors import ErrorCode, format_errors

_TLS_HANDSHAKE = 0x16
_DRAIN_SECONDS = 2.0

_BODY = format_errors(
    ErrorCode.UNSUPPORTED.value, "this is a plain HTTP port and the client began TLS: use http:// for it", None
)
_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


class PlainPort(asyncio.Protocol):
    """Looks at the first bytes of a connection, then leaves it to ``inner``.

    containerd, BuildKit, crane and dockerd try https first. They go on in plain HTTP only when what answers the hello
    is HTTP; a closed connection fails the pull.

    Args:
        inner: the protocol that serves requests; knows the connection from its start, for its limits and time-outs.
    """

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's transports are no subclass of asyncio's, so the type cannot be asserted.
        self._transport = cast("asyncio.Transport", transport)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Answer a hello, of which a byte is enough; pass on all else."""
        assert self._transport is not None  # noqa: S101 - asyncio's order of calls
        if self._timer is not None:
            return  # the rest of the hello
        if data[0] == _TLS_HANDSHAKE:
            self._refuse(self._transport)
            return
        self._transport.set_protocol(self._inner)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """End a connection on which nothing came, or whose hello has its answer."""
        return None if self._timer is not None else self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
        self._inner.connection_lost(exc)

    def _refuse(self, transport: asyncio.Transport) -> None:
        """Answer, and read on for a moment: to close with bytes unread would reset the connection under the answer."""
        transport.write(_ANSWER)
        transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(_DRAIN_SECONDS, transport.abort)


def plain_port(make_inner: Callable[[], asyncio.Protocol]) -> Callable[[], PlainPort]:
    """Return the protocol factory of a plain HTTP listener whose requests ``make_inner``'s protocols serve."""
    return lambda: PlainPort(make_inner())
