"""One port, two protocols: a plain HTTP port answers a TLS hello in plain HTTP, a TLS port answers plain HTTP."""

import asyncio
from collections.abc import Callable
from typing import Final, cast

from registry_proxy.http.whole_answer import whole_answer
from registry_proxy.protocol.errors import ErrorCode, format_errors

TLS_HANDSHAKE: Final = 0x16
"""The first byte of a client that begins TLS."""

_DRAIN_SECONDS = 2.0


_NOT_TLS = "this is a plain HTTP port and the client began TLS: use http:// for it"
_NOT_PLAIN = "this port speaks TLS and the client began plain HTTP: use https:// for it"


class _Refusal:
    """Answers a connection of the wrong protocol, and reads on for a moment.

    To close with bytes unread would reset the connection under the answer.
    """

    def __init__(self, transport: asyncio.Transport, message: str) -> None:
        body = format_errors(ErrorCode.UNSUPPORTED.value, message, None)
        transport.write(whole_answer(400, "application/json", body))
        transport.write_eof()
        self._timer = asyncio.get_running_loop().call_later(_DRAIN_SECONDS, transport.abort)

    def end(self) -> None:
        """Wait no more."""
        self._timer.cancel()


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
        self._refusal: _Refusal | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's transports are no subclass of asyncio's, so the type cannot be asserted.
        self._transport = cast("asyncio.Transport", transport)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Answer a hello, of which a byte is enough; pass on all else."""
        assert self._transport is not None  # noqa: S101 - asyncio's order of calls
        if self._refusal is not None:
            return  # the rest of the hello
        if data[0] == TLS_HANDSHAKE:
            self._refusal = _Refusal(self._transport, _NOT_TLS)
            return
        self._transport.set_protocol(self._inner)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """End a connection on which nothing came, or whose hello has its answer."""
        return None if self._refusal is not None else self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._refusal is not None:
            self._refusal.end()
        self._inner.connection_lost(exc)


class TlsPort(asyncio.Protocol):
    """Answers plain HTTP on a TLS port; ``ended`` is set when the connection has ended."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._refusal: _Refusal | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - whatever it is
        """Answer once."""
        assert self._transport is not None  # noqa: S101 - asyncio's order of calls
        if self._refusal is None:
            self._refusal = _Refusal(self._transport, _NOT_PLAIN)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - it has ended in any case
        """End."""
        if self._refusal is not None:
            self._refusal.end()
        self.ended.set()


def plain_port(make_inner: Callable[[], asyncio.Protocol]) -> Callable[[], PlainPort]:
    """Return the protocol factory of a plain HTTP listener whose requests ``make_inner``'s protocols serve."""
    return lambda: PlainPort(make_inner())
