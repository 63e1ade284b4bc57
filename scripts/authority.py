"""A private authority and a certificate of this machine, for `make run TLS=1`. For trials: keep its key to yourself."""

import ipaddress
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_AUTHORITY_DAYS, _SERVER_DAYS = 3650, 365
_RENEWED_WITHIN = timedelta(days=30)
_Key = ec.EllipticCurvePrivateKey


def make_certificate(folder: Path, address: str) -> tuple[Path, Path, Path]:
    """Make an authority once, and a certificate when there is no valid one; return authority, certificate, key.

    Args:
        folder: the directory of the files.
        address: of the listener; the certificate also has the names of this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ca_file, ca_key_file = folder / "ca.pem", folder / "ca-key.pem"
    cert_file, key_file = folder / "server.pem", folder / "server-key.pem"
    if ca_file.exists() and ca_key_file.exists():
        authority = x509.load_pem_x509_certificate(ca_file.read_bytes())
        authority_key = serialization.load_pem_private_key(ca_key_file.read_bytes(), None)
        assert isinstance(authority_key, _Key)
    else:
        authority_key = ec.generate_private_key(ec.SECP256R1())
        authority = _authority(authority_key)
        _write(ca_key_file, _private(authority_key), 0o600)
        _write(ca_file, authority.public_bytes(serialization.Encoding.PEM))
        cert_file.unlink(missing_ok=True)
    _write(folder / "ca.crt", ca_file.read_bytes())  # podman looks for authorities by this ending
    names = _names(address)
    if not _lasts(cert_file, names):
        key = ec.generate_private_key(ec.SECP256R1())
        _write(key_file, _private(key), 0o600)
        _write(cert_file, _server(key, names, authority, authority_key).public_bytes(serialization.Encoding.PEM))
    return ca_file, cert_file, key_file


def _names(address: str) -> list[x509.GeneralName]:
    addresses = dict.fromkeys([address, "127.0.0.1", "::1"])
    hosts = dict.fromkeys(["localhost", socket.gethostname().lower()])
    return [
        *(x509.IPAddress(ipaddress.ip_address(each)) for each in addresses),
        *(x509.DNSName(each) for each in hosts),
    ]


def _lasts(cert_file: Path, names: list[x509.GeneralName]) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(cert_file.read_bytes())
        known = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    return list(known) == names and certificate.not_valid_after_utc > datetime.now(UTC) + _RENEWED_WITHIN


def _begin(subject: str, issuer: x509.Name | None, key: _Key, days: int) -> x509.CertificateBuilder:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer or name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _authority(key: _Key) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    begun = _begin("registry-proxy trial authority", None, key, _AUTHORITY_DAYS)
    begun = begun.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return begun.add_extension(usage, critical=True).sign(key, hashes.SHA256())


def _server(
    key: _Key, names: list[x509.GeneralName], authority: x509.Certificate, authority_key: _Key
) -> x509.Certificate:
    begun = _begin("registry-proxy", authority.subject, key, _SERVER_DAYS)
    begun = begun.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    begun = begun.add_extension(x509.SubjectAlternativeName(names), critical=False)
    begun = begun.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return begun.add_extension(issuer, critical=False).sign(authority_key, hashes.SHA256())


def _private(key: _Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
