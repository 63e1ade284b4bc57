"""Forged and stale tokens at the public listener, one test an attack: 401 with ``invalid_token``, and no more."""

import asyncio
import base64
import hmac
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.fakes.issuer import part
from tests.support.fakes.public import SERVICE, PublicBench

PATH = "/v2/team/app/manifests/latest"


class Forger:
    """Makes tokens that differ from good ones in the named claims, and sends them."""

    def __init__(self, public: PublicBench) -> None:
        self.public = public
        self.kid = public.signer.key_id
        with open(public.signer.key_file, "rb") as file:
            key = serialization.load_pem_private_key(file.read(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self.key = key

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        access = [{"type": "repository", "name": "team/app", "actions": ["pull"]}]
        good = {"iss": SERVICE, "aud": SERVICE, "sub": "user:ann", "jti": "id", "generation": 0, "access": access}
        return {**good, "iat": now, "nbf": now, "exp": now + 300, **changes}

    def sign(self, key: Any = None, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """Return a token, signed with the right key unless another is given, under the right ``kid`` unless named."""
        header = {"kid": self.kid, **(headers or {})}
        return jwt.encode(self.claims(**changes), key or self.key, "ES256", headers=header)

    def with_header(self, **header: Any) -> str:
        """Return a token with a signature over exactly the given header, made with the right key."""
        signed = f"{part(header)}.{part(self.claims())}"
        es256 = jwt.get_algorithm_by_name("ES256")
        return f"{signed}.{part(es256.sign(signed.encode(), self.key))}"

    def sign_raw(self, **changes: Any) -> str:
        """Return a rightly signed token with claims that the library would not write."""
        payload = json.dumps(self.claims(**changes)).encode()
        return jwt.PyJWS().encode(payload, self.key, "ES256", headers={"kid": self.kid})

    def accept(self, **keys: ec.EllipticCurvePrivateKey) -> None:
        """Publish more keys by their kid."""
        own = {self.kid: self.key.public_key()}
        self.public.control._verifier.set_keys(own | {kid: key.public_key() for kid, key in keys.items()})

    async def status(self, token: str) -> tuple[int, str]:
        """Return the status of a pull with a token, and its challenge."""
        headers = {"Authorization": f"Bearer {token}"}
        async with self.public.session.get(PATH, headers=headers) as response:
            return response.status, response.headers.get("WWW-Authenticate", "")

    async def refused(self, token: str) -> None:
        """Check that a token is refused, and that a good one is not."""
        status, challenge = await self.status(token)
        assert status == 401
        assert 'error="invalid_token"' in challenge
        assert (await self.status(self.sign()))[0] == 200


@pytest.fixture
def forger(public: PublicBench) -> Forger:
    """Serve a manifest that ann may pull."""
    public.allow("pull")
    public.reader.add_manifest("team/app", b'{"schemaVersion": 2}', "latest")
    return Forger(public)


@pytest.fixture
def stranger() -> ec.EllipticCurvePrivateKey:
    """Return a key that is not published here."""
    return ec.generate_private_key(ec.SECP256R1())


def public_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    """Return the public half of a key as a JSON Web Key."""
    document: dict[str, Any] = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    return document


async def test_attack_alg_none(forger: Forger) -> None:
    """A token that says it is unsigned is refused, in any spelling."""
    for alg in ("none", "None", "NONE"):
        unsigned = f"{part({'alg': alg, 'typ': 'JWT', 'kid': forger.kid})}.{part(forger.claims())}"
        for signature in ("", "AA", forger.sign().rpartition(".")[2]):
            await forger.refused(f"{unsigned}.{signature}")


async def test_attack_hs256_with_the_public_key(forger: Forger) -> None:
    """A token with an HMAC whose secret is our public key, in any published form, is refused."""
    key = forger.key.public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem, der = key.public_bytes(serialization.Encoding.PEM, form), key.public_bytes(serialization.Encoding.DER, form)
    for secret in (pem, der, json.dumps(dict(forger.public.signer.public_jwk)).encode()):
        signed = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': forger.kid})}.{part(forger.claims())}"
        await forger.refused(f"{signed}.{part(hmac.digest(secret, signed.encode(), 'sha256'))}")


async def test_attack_kid_is_a_path(forger: Forger, stranger: ec.EllipticCurvePrivateKey) -> None:
    """A kid that is a path reads no file, neither ours nor one whose content the attacker knows."""
    for kid in (forger.public.signer.key_file, "../../../../dev/null", "/proc/self/environ", "file:///dev/null"):
        await forger.refused(forger.sign(headers={"kid": kid}))
        await forger.refused(forger.sign(stranger, {"kid": kid}))


async def test_attack_kid_is_unknown(forger: Forger, stranger: ec.EllipticCurvePrivateKey) -> None:
    """A kid of no key of ours is refused, also over a right signature."""
    await forger.refused(forger.sign(headers={"kid": "unknown"}))
    await forger.refused(forger.sign(stranger, {"kid": "unknown"}))


async def test_attack_kid_is_empty(forger: Forger) -> None:
    """Without a kid, or with one that is no text, no key is tried: there is no default."""
    header = {"alg": "ES256", "typ": "JWT"}
    await forger.refused(forger.with_header(**header))
    kids: list[Any] = ["", None, 0, [], [forger.kid], {}]
    for kid in kids:
        await forger.refused(forger.with_header(**header, kid=kid))


async def test_attack_kid_is_that_of_another_key(forger: Forger, stranger: ec.EllipticCurvePrivateKey) -> None:
    """A signature counts only under the kid of its own key, also where both keys are published."""
    await forger.refused(forger.sign(stranger))
    forger.accept(second=stranger)
    await forger.refused(forger.sign(stranger))
    await forger.refused(forger.sign(headers={"kid": "second"}))
    assert (await forger.status(forger.sign(stranger, {"kid": "second"})))[0] == 200


async def test_attack_embedded_jwk(forger: Forger, stranger: ec.EllipticCurvePrivateKey) -> None:
    """CVE-2025-24976: a token that brings its key is refused, under our kid or another."""
    for kid in (forger.kid, "theirs"):
        await forger.refused(forger.sign(stranger, {"kid": kid, "jwk": public_jwk(stranger) | {"kid": kid}}))
    await forger.refused(forger.sign(headers={"jwk": dict(forger.public.signer.public_jwk)}))


async def test_attack_x5c(forger: Forger, stranger: ec.EllipticCurvePrivateKey) -> None:
    """A token that brings a certificate of its key is refused."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVICE)])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, stranger.public_key(), x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .sign(stranger, hashes.SHA256())
    )
    x5c = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
    await forger.refused(forger.sign(stranger, {"x5c": x5c}))
    await forger.refused(forger.sign(headers={"x5c": x5c}))


async def test_attack_jku(forger: Forger, stranger: ec.EllipticCurvePrivateKey) -> None:
    """A token that names a URL of its keys is refused, and nothing is fetched."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
        for key in (stranger, forger.key):
            await forger.refused(forger.sign(key, {"jku": url}))
            await forger.refused(forger.sign(key, {"x5u": url}))
        await forger.refused(forger.sign(stranger, {"jku": f"{forger.public.session._base_url}/auth/keys"}))
    assert asked == []


async def test_attack_wrong_iss(forger: Forger) -> None:
    """The issuer must be this service exactly: no part of its name, no longer one, no list."""
    for issuer in ("other", "registry", f"{SERVICE}.example", f"{SERVICE}/", SERVICE.upper(), "", None, [SERVICE]):
        await forger.refused(forger.sign_raw(iss=issuer))


async def test_attack_wrong_aud(forger: Forger) -> None:
    """The audience must be this service exactly, and alone."""
    for audience in ("other", "registry", f"{SERVICE}2", "", "*", None, [], [SERVICE], [SERVICE, "other"]):
        await forger.refused(forger.sign_raw(aud=audience))


async def test_attack_unknown_crit(forger: Forger) -> None:
    """RFC 7515 4.1.11: an unknown critical extension makes a token invalid, over a right signature too."""
    for crit in (["http://example.com/unknown"], ["exp"], ["b64"], [], "exp", None):
        header = {"alg": "ES256", "typ": "JWT", "kid": forger.kid, "crit": crit, "exp": 1}
        await forger.refused(forger.with_header(**header))


async def test_attack_expired_by_61_seconds(forger: Forger) -> None:
    """A token is refused 61 s after its end, seen before or not: clocks may differ by a minute at most."""
    now = int(time.time())
    await forger.refused(forger.sign(iat=now - 400, nbf=now - 400, exp=now - 61))
    assert (await forger.status(forger.sign(iat=now - 400, nbf=now - 400, exp=now - 30)))[0] == 200


async def test_attack_nbf_in_the_future(forger: Forger) -> None:
    """A token before its nbf is refused, beyond the minute by which clocks may differ."""
    now = int(time.time())
    await forger.refused(forger.sign(nbf=now + 90, exp=now + 600))
    assert (await forger.status(forger.sign(nbf=now + 30, exp=now + 600)))[0] == 200
