"""Redirects, TLS and probes: the target of a request and its headers."""

import datetime as dt
import errno
import ipaddress
import re
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import digest_of
from registry_proxy.replica.failure import AccessRefusedError, BadUpstreamError, ReplicaFailedError, translated
from registry_proxy.tasks import request_id
from tests.conftest import StartRegistry
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import HASTY, REPOSITORY, open_client, read_all
from tests.support.servers import free_port

ANN: dict[str, Any] = {"username": "ann", "password": "secret"}


async def test_bytes_on_another_host_are_fetched_without_our_credentials() -> None:
    """The storage gets neither Authorization nor our request id, but the Range."""
    async with FakeRegistry(basic=("ann", "secret")) as registry, FakeRegistry() as storage:
        digest = storage.add_blob(REPOSITORY, b"0123456789")
        registry.inject(Fault("blobs", redirect_to=storage.url))
        async with open_client(registry.url, **ANN) as client:
            registry.faults.clear()
            with pytest.raises(RegistryError):
                await client.stat_blob(REPOSITORY, digest)
            registry.inject(Fault("blobs", redirect_to=storage.url))
            token = request_id.set("abc-1")
            try:
                async with client.open_blob(REPOSITORY, digest, 4) as stream:
                    assert (stream.offset, await read_all(stream)) == (4, b"456789")
                assert (await client.stat_blob(REPOSITORY, digest)).size_bytes == 10
            finally:
                request_id.reset(token)
    assert registry.requests[-1].headers["authorization"].startswith("Basic ")
    for request in storage.requests:
        assert not {"authorization", "cookie", "x-request-id"} & set(request.headers)
    assert storage.requests[0].headers["range"] == "bytes=4-"


async def test_a_signed_location_is_asked_for_byte_for_byte() -> None:
    """The query of a redirect is not decoded and encoded again: its signature would break."""
    target = "/bucket/a%2Fb?X-Amz-Signature=a%2Bb%3D&x=~%7E+%20'"
    async with FakeRegistry() as registry, FakeRegistry() as storage, open_client(registry.url) as client:
        registry.inject(Fault("blobs", status=307, headers={"Location": storage.url + target}))
        storage.inject(Fault(status=200, body=b"x"))
        async with client.open_blob(REPOSITORY, digest_of(b"x")) as stream:
            assert await read_all(stream) == b"x"
    assert [request.target for request in storage.requests] == [target]


@pytest.mark.parametrize(
    "location",
    [
        *("", "ftp://127.0.0.1/x", "file:///etc/passwd", "http:///x", "http://host:99999/x", "http://[::1/x"),
        *("http://169.254.169.254/latest", "http://[fe80::1]/x", "http://0xa9fea9fe/", "http://169.254.43518/"),
        *("http://0251.0376.0251.0376/", "http://2852039166/", "http://[::ffff:169.254.169.254]/"),
    ],
)
async def test_a_redirect_to_nowhere_good_is_a_502(location: str) -> None:
    """Other schemes, no host, no URL, and link-local addresses in any notation are not followed."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.inject(Fault(status=307, headers={"Location": location}))
        with pytest.raises(BadUpstreamError):
            await client.stat_blob(REPOSITORY, digest_of(b"x"))


async def test_redirects_end_after_five_hops() -> None:
    """A loop of redirects is left, with a 502."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.inject(Fault(redirect_to=""))
        with pytest.raises(BadUpstreamError):
            await client.fetch_manifest(REPOSITORY, digest_of(b"x"))
    assert len(registry.requests) == 6


async def test_a_write_is_not_redirected() -> None:
    """A redirected POST is a 502: its body is sent to no other place."""
    async with FakeRegistry() as registry, FakeRegistry() as other, open_client(registry.url) as client:
        registry.inject(Fault(redirect_to=other.url))
        with pytest.raises(BadUpstreamError):
            await client.start_upload(REPOSITORY)
    assert other.requests == []


@pytest.mark.parametrize("status", [403, 404, 503])
async def test_an_object_missing_in_the_storage_is_not_absent(status: int) -> None:
    """The registry has confirmed the content: an error of its storage is a failure, never a 404 of ours."""
    async with FakeRegistry() as registry, FakeRegistry() as storage, open_client(registry.url) as client:
        registry.inject(Fault(redirect_to=storage.url))
        storage.inject(Fault(status=status))
        with pytest.raises(ReplicaFailedError):
            await client.stat_blob(REPOSITORY, digest_of(b"x"))


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """Make a certificate of 127.0.0.1 and registry.test: the server's context, and the file that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("registry.test")]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    directory = tmp_path_factory.mktemp("tls")
    ca_file, key_file = directory / "ca.pem", directory / "key.pem"
    ca_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file, key_file)
    return context, ca_file


async def test_a_private_authority_is_trusted_by_its_file(certificate: tuple[ssl.SSLContext, Path]) -> None:
    """Without ``ca_file`` an unknown certificate is no connection; with it the replica is called, and logs in."""
    context, ca_file = certificate
    async with FakeRegistry(tls=context, bearer=("ann", "secret")) as registry:
        digest = registry.add_blob(REPOSITORY, b"x")
        async with open_client(registry.url, **ANN) as client:
            with pytest.raises(ReplicaFailedError) as refused:
                await client.stat_blob(REPOSITORY, digest)
        async with open_client(registry.url, ca_file=ca_file, **ANN) as client:
            await client.stat_blob(REPOSITORY, digest)
            await client.probe()
    assert refused.value.outcome == "connect"


async def test_the_reason_of_a_failed_connection_is_in_words(certificate: tuple[ssl.SSLContext, Path]) -> None:
    """The reason is that of the operating system or DNS, and for a certificate it names the certificate."""
    async with FakeRegistry(tls=certificate[0]) as registry:
        reasons = {
            f"http://127.0.0.1:{free_port()}": "no connection (Connection refused)",
            registry.url: "no connection (ClientConnectorCertificateError)",
        }
        for url, reason in reasons.items():
            async with open_client(url) as client:
                with pytest.raises(ReplicaFailedError, match=re.escape(reason)):
                    await client.probe()
    for error, text in (
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (ssl.SSLError(1, "wrong version number"), "ClientConnectorError"),
    ):
        key = aiohttp.client_reqrep.ConnectionKey(
            "a", 1, is_ssl=False, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None
        )
        failed = aiohttp.ClientConnectorError(key, error)
        with pytest.raises(ReplicaFailedError, match=re.escape(f"no connection ({text})")), translated("a"):
            raise failed


def test_a_shortage_of_this_machine_is_no_fault_of_the_replica() -> None:
    """Without a descriptor or port left no connection is made: that proves nothing about the replica."""
    key = aiohttp.client_reqrep.ConnectionKey(
        "a", 1, is_ssl=False, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None
    )
    for number, is_ours in ((errno.EMFILE, True), (errno.EADDRNOTAVAIL, True), (errno.ECONNREFUSED, False)):
        error = aiohttp.ClientConnectorError(key, OSError(number, "no"))
        with pytest.raises(ReplicaFailedError) as failed, translated("a"):
            raise error
        assert (failed.value.outcome, failed.value.is_elsewhere) == ("connect", is_ours)


async def test_a_replica_at_an_address_is_called_by_its_name(certificate: tuple[ssl.SSLContext, Path]) -> None:
    """Where a name is given, the certificate must be of that name, not of the address, and so is the Host header."""
    context, ca_file = certificate
    async with FakeRegistry(tls=context) as registry:
        digest = registry.add_blob(REPOSITORY, b"x")
        async with open_client(registry.url, ca_file=ca_file, server_name="registry.test") as client:
            await client.probe()
            await client.stat_blob(REPOSITORY, digest)
        port = registry.url.rpartition(":")[2]
        assert {request.headers["host"] for request in registry.requests} == {f"registry.test:{port}"}
        async with open_client(registry.url, ca_file=ca_file, server_name="other.test") as client:
            with pytest.raises(ReplicaFailedError):
                await client.stat_blob(REPOSITORY, digest)


async def test_no_way_back_from_https_to_http(certificate: tuple[ssl.SSLContext, Path]) -> None:
    """A redirect from https to http is a 502."""
    context, ca_file = certificate
    async with FakeRegistry(tls=context) as registry, FakeRegistry() as storage:
        registry.inject(Fault(redirect_to=storage.url))
        async with open_client(registry.url, ca_file=ca_file) as client:
            with pytest.raises(BadUpstreamError):
                await client.stat_blob(REPOSITORY, digest_of(b"x"))
    assert storage.requests == []


# ---------------------------------------------------------------- probes


async def test_a_real_registry_is_one(start_registry: StartRegistry) -> None:
    """GET /v2/ of a docker-registry is taken for a registry's."""
    async with open_client(start_registry().url) as client:
        await client.probe()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(html=True), BadUpstreamError),
        (Fault(status=404), BadUpstreamError),
        (Fault(redirect_to="https://127.0.0.1"), BadUpstreamError),
        (Fault(status=401), AccessRefusedError),
        (Fault(status=403), AccessRefusedError),
        (Fault(status=500), ReplicaFailedError),
        (Fault(stall=True), ReplicaFailedError),
    ],
    ids=["html", "404", "redirect", "401", "403", "500", "stall"],
)
async def test_answers_that_are_no_good_probe(fault: Fault, error: type[Exception]) -> None:
    """Other answers than a registry's 200 are distinguished: no registry, credentials refused, no answer."""
    async with FakeRegistry() as registry, open_client(registry.url, timeouts=HASTY) as client:
        registry.inject(fault)
        with pytest.raises(error):
            await client.probe()
