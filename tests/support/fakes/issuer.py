"""An OIDC issuer on a loopback socket, in a thread: keys that can be rotated, and tokens with any content."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "https://registry.example.com"
DISCOVERY = "/.well-known/openid-configuration"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_RSA_KEYS = [rsa.generate_private_key(65537, 2048) for _ in range(2)]  # slow to make


class FakeIssuer:
    """The issuer's state; ``answers`` replaces its answer at a path, by (status, headers, body)."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.started_at = int(time.time())
        self.keys: dict[str, PrivateKey] = {"first": _RSA_KEYS[0]}
        self.extra_keys: list[dict[str, Any]] = []
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[str] = []
        self.hold: threading.Event | None = None

    def rotate(self) -> None:
        """Sign with another key; the old one is no longer published."""
        self.keys = {"second": _RSA_KEYS[1]}

    def jwks(self) -> bytes:
        """Return the published keys."""
        algorithms = jwt.algorithms.get_default_algorithms()
        keys = []
        for kid, key in self.keys.items():
            name = algorithm_of(key)
            jwk = json.loads(algorithms[name].to_jwk(key.public_key()))
            keys.append({**jwk, "kid": kid, "alg": name, "use": "sig"})
        return json.dumps({"keys": [*self.extra_keys, *keys]}).encode()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of an answer."""
        self.asked.append(path)
        if self.hold is not None:
            self.hold.wait(30)
        if path in self.answers:
            return self.answers[path]
        if path == DISCOVERY:
            return 200, {}, json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}/keys"}).encode()
        return (200, {}, self.jwks()) if path == "/keys" else (404, {}, b"")

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return the claims of a job as CI systems give them; a change to None leaves one out."""
        now = self.started_at
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "repo:acme/app:ref:refs/heads/main",
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            "jti": "job-1",
            "repository": "acme/app",
            "ref": "refs/heads/main",
        }
        return {name: value for name, value in {**claims, **changes}.items() if value is not None}

    def token(self, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """Return a token signed with the newest key."""
        kid, key = list(self.keys.items())[-1]
        payload = json.dumps(self.claims(**changes)).encode()
        return jwt.PyJWS().encode(payload, key, algorithm_of(key), headers={"kid": kid, **(headers or {})})

    def public_pem(self) -> bytes:
        """Return the newest public key, which everybody has."""
        key = list(self.keys.values())[-1].public_key()
        return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def algorithm_of(key: PrivateKey) -> str:
    """Return the algorithm of a key."""
    if isinstance(key, rsa.RSAPrivateKey):
        return "RS256"
    return "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "EdDSA"


def part(value: Any) -> str:
    """Return a part of a token, of bytes or of any JSON value."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@contextmanager
def running_issuer() -> Iterator[FakeIssuer]:
    """Serve an issuer for the length of a with block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = issuer.answer(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
            """Keep the output of the tests clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer = FakeIssuer(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield issuer
    finally:
        if issuer.hold is not None:
            issuer.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()
