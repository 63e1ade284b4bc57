"""The certificate of a server: its files, and the context that they make."""

import os
import ssl
from dataclasses import dataclass
from typing import Literal

from cryptography import x509

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class CertificateError(Exception):
    """The files of a certificate cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of a TLS listener.

    Args:
        cert_file: the certificate, and those of the authorities between it and the root, as PEM.
        key_file: its private key, as PEM without a password.
        min_version: the oldest version of TLS that is spoken.
        client_ca_file: authorities whose certificates each client needs; None where clients need none.
    """

    cert_file: str
    key_file: str
    min_version: Literal["1.2", "1.3"] = "1.2"
    client_ca_file: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all files."""
        return tuple(filter(None, (self.cert_file, self.key_file, self.client_ca_file)))

    def load(self) -> ssl.SSLContext:
        """Return the context of a server with this certificate. Raises CertificateError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[self.min_version]
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_IGNORE_UNEXPECTED_EOF
        context.set_alpn_protocols(["http/1.1"])
        try:
            for file in self.paths:
                with open(file, "rb"):
                    pass
            context.load_cert_chain(self.cert_file, self.key_file, password=_refuse_password)
            if self.client_ca_file is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self.client_ca_file)
        except ssl.SSLError as error:
            raise CertificateError(self._describe(error)) from None
        except OSError as error:
            raise CertificateError(f"{error.filename}: {error.strerror}") from None
        return context

    def expires_at(self) -> float:
        """Return when the certificate expires, in Unix seconds. Raises CertificateError."""
        try:
            with open(self.cert_file, "rb") as file:
                return x509.load_pem_x509_certificate(file.read()).not_valid_after_utc.timestamp()
        except OSError as error:
            raise CertificateError(f"{error.filename}: {error.strerror}") from None
        except ValueError:
            raise CertificateError(f"{self.cert_file} holds no certificate as PEM") from None

    def _describe(self, error: ssl.SSLError) -> str:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"the key in {self.key_file} is not that of the certificate in {self.cert_file}"
        return (
            f"{' and '.join(self.paths)} cannot be used: expected a certificate and its key as PEM, without a password"
        )

    def stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return a value that changes when a file is written or replaced."""
        return tuple(map(_stamp, self.paths))


def _stamp(path: str) -> tuple[int, int, int] | None:
    """Return what changes when a file is written or replaced, also behind a symbolic link; None for no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _refuse_password() -> str:
    """Answer OpenSSL, which would ask at the terminal for the password of a key."""
    return ""
