"""TLS listeners: connections before and during their handshake."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from registry_proxy.files.certificate import CertificateError, TlsFiles
from registry_proxy.http.certificate import Certificate
from registry_proxy.http.connections import ConnectionLimits, Connections
from registry_proxy.http.listening import Listening, listen
from tests.support.fakes.listeners import any_connections
from tests.support.fakes.memory import RecordingObserver
from tests.support.waiting import until


class Echo(asyncio.Protocol):
    """Sends its input back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer."""
        self.transport.write(data)  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def listening(
    files: TlsFiles, limits: ConnectionLimits | None = None
) -> AsyncIterator[tuple[int, Connections, Listening]]:
    """Serve an echo over TLS; give port, counts and listener."""
    connections = any_connections(limits)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        listener = await listen(Echo, bound, connections, Certificate("public", files, RecordingObserver()))
        try:
            yield port, connections, listener
        finally:
            listener.close()
            await listener.wait_closed()


@pytest.fixture
def files(certificate: Path) -> TlsFiles:
    """A certificate of 127.0.0.1."""
    return TlsFiles(str(certificate), str(certificate.with_name("key.pem")))


async def test_a_silent_client_is_counted_and_cut(files: TlsFiles) -> None:
    """A silent connection counts as unfinished from its first moment, and ends after the time for a head."""
    async with listening(files, ConnectionLimits(header_seconds=0.2)) as (port, connections, listener):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: connections.total == 1)
        assert listener.has_handshakes
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        await until(lambda: connections.total == 0)
        assert not listener.has_handshakes
        writer.close()


async def test_a_client_that_stops_in_the_handshake_is_cut(files: TlsFiles) -> None:
    """The beginning of a hello alone keeps a connection for no longer than a head may take."""
    async with listening(files, ConnectionLimits(header_seconds=0.2)) as (port, connections, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01")
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        await until(lambda: connections.total == 0)
        writer.close()


async def test_one_address_has_its_share_of_handshakes(files: TlsFiles) -> None:
    """Beyond an eighth of all connections the next silent one of an address is closed, and others are served."""
    async with listening(files, ConnectionLimits(connections_max=64)) as (port, connections, _):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
        await until(lambda: connections.total == 8)
        for _, writer in silent:
            writer.close()
        await until(lambda: connections.total == 0)


async def test_plain_http_is_answered_in_plain_http(files: TlsFiles) -> None:
    """A client that writes http for https gets an answer with the right scheme, and its connection ends."""
    async with listening(files) as (port, connections, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(10):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert "https://" in json.loads(body)["errors"][0]["message"]
        writer.close()
        await until(lambda: connections.total == 0)


async def test_tls_is_served_and_counted_by_its_protocol(files: TlsFiles) -> None:
    """After the handshake the count of the connection passes to the protocol behind it."""
    context = ssl.create_default_context(cafile=files.cert_file)
    async with listening(files) as (port, connections, listener):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert (connections.total, listener.has_handshakes) == (0, False)
        writer.close()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_older_versions_are_refused(files: TlsFiles, version: str) -> None:
    """`min_version: "1.3"` refuses TLS 1.2, and "1.2" accepts it."""
    context = ssl.create_default_context(cafile=files.cert_file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    chosen = TlsFiles(files.cert_file, files.key_file, "1.3" if version == "1.3" else "1.2")
    async with listening(chosen) as (port, _, _):
        opening = asyncio.open_connection("127.0.0.1", port, ssl=context)
        if version == "1.3":
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await opening
        else:
            (await opening)[1].close()


def test_files_that_cannot_be_used_are_named(files: TlsFiles, tmp_path: Path) -> None:
    """A missing file, a key of another certificate and a key with a password are refused in words."""
    broken = tmp_path / "broken.pem"
    broken.write_text("no PEM")
    for cert_file, key_file, words in (
        (files.cert_file, str(tmp_path / "absent.pem"), "absent.pem: No such file"),
        (str(broken), files.key_file, "expected a certificate and its key as PEM"),
    ):
        with pytest.raises(CertificateError, match=words):
            TlsFiles(cert_file, key_file).load()
