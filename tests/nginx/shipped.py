"""An nginx with a shipped configuration, in which only places on this machine are changed."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import require_program
from tests.support.servers import Server, free_port

CONFIGURATIONS = Path(__file__).parents[2] / "nginx"
CONFIGURATION = CONFIGURATIONS / "tls.conf"
TWO_NODES = CONFIGURATIONS / "two-nodes.conf"


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate of 127.0.0.1; ``folder`` also holds it as ca.crt, as skopeo wants it."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """The certificate, which is its own authority."""
        return self.folder / "ca.crt"

    @property
    def key(self) -> Path:
        """Its private key."""
        return self.folder / "private.pem"

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of a client that trusts it."""
        return ssl.create_default_context(cafile=str(self.certificate))


def nginx_server(root: Path, certificate: Certificate | None, *backend_ports: int) -> Server:
    """Describe an nginx with the shipped configuration for a number of nodes; only places on this machine are changed.

    Without a certificate it speaks plain HTTP.
    """
    root.mkdir(parents=True, exist_ok=True)
    port = free_port()
    text = (CONFIGURATION if len(backend_ports) == 1 else TWO_NODES).read_text()
    addresses = ["127.0.0.1:5000"] if len(backend_ports) == 1 else ["10.0.0.11:5000", "10.0.0.12:5000"]
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {root}/{kind};" for kind in kinds)
    for shipped, here in (
        ("user www-data;", ""),
        ("/run/nginx.pid", f"{root}/pid"),
        ("/var/log/nginx/error.log", f"{root}/error.log"),
        ("/var/log/nginx/registry.log", f"{root}/access.log"),
        ("http {", f"http {{ {temporary}"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port}{' ssl' if certificate else ''};"),
        *_tls(certificate),
    ):
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, here)
    for shipped, port_here in zip(addresses, backend_ports, strict=True):
        assert f"server {shipped}" in text
        text = text.replace(f"server {shipped}", f"server 127.0.0.1:{port_here}")
    config = root / "nginx.conf"
    config.write_text(text)
    return Server(
        [require_program("nginx"), "-e", "stderr", "-c", str(config), "-g", "daemon off;"], port, root / "log"
    )


def _tls(certificate: Certificate | None) -> list[tuple[str, str]]:
    if certificate is None:
        return [
            (f"ssl_certificate{name};", "")
            for name in (" /etc/ssl/certs/registry.pem", "_key /etc/ssl/private/registry.key")
        ]
    return [
        ("/etc/ssl/certs/registry.pem", str(certificate.certificate)),
        ("/etc/ssl/private/registry.key", str(certificate.key)),
    ]
