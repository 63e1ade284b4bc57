"""The keys of an issuer: discovery, cache, renewal after a change, and trusted sources alone."""

import asyncio
import json
import threading
from collections.abc import Iterator

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from registry_proxy.access import issuer_keys
from registry_proxy.access.issuer_keys import IssuerKeys, IssuerUnavailableError
from tests.support.fakes.issuer import DISCOVERY, FakeIssuer, running_issuer
from tests.support.waiting import until


@pytest.fixture
def issuer() -> Iterator[FakeIssuer]:
    """Serve an issuer."""
    with running_issuer() as issuer:
        yield issuer


class Clock:
    """A clock that is moved by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def is_there(keys: IssuerKeys, kid: str) -> bool:
    """Tell whether a key is found."""
    return await keys.find(kid) is not None


async def test_keys_are_discovered_once_for_all_who_ask(issuer: FakeIssuer) -> None:
    """A hundred logins at once cost the issuer two requests, and later ones none."""
    keys = IssuerKeys(issuer.url)
    assert await asyncio.gather(*(is_there(keys, "first") for _ in range(100))) == [True] * 100
    assert await is_there(keys, "first")
    assert issuer.asked == [DISCOVERY, "/keys"]


async def test_a_given_url_is_asked_without_discovery(issuer: FakeIssuer) -> None:
    """With ``jwks_url`` the issuer itself is never asked: it may be out of reach."""
    keys = IssuerKeys("https://issuer.invalid", f"{issuer.url}/keys")
    assert await is_there(keys, "first")
    assert issuer.asked == ["/keys"]


async def test_a_rotated_key_is_fetched_and_an_unknown_one_costs_little(issuer: FakeIssuer) -> None:
    """An unknown key is asked for at most once in five seconds; a key that is no longer published is removed."""
    clock = Clock()
    keys = IssuerKeys(issuer.url, clock=clock)
    assert await is_there(keys, "first")
    issuer.rotate()
    assert not await is_there(keys, "second")
    clock.now += 5
    assert [await is_there(keys, kid) for kid in ("second", "first", "no", "never")] == [True, False, False, False]
    assert issuer.asked.count("/keys") == 2


async def test_a_withdrawn_key_is_forgotten_within_ten_minutes(issuer: FakeIssuer) -> None:
    """Known keys are fetched again, so that a stolen one does not stay good."""
    clock = Clock()
    keys = IssuerKeys(issuer.url, clock=clock)
    assert await is_there(keys, "first")
    issuer.rotate()
    clock.now += 599
    assert await is_there(keys, "first")
    clock.now += 1
    assert not await is_there(keys, "first")


async def test_an_issuer_that_goes_away_is_missed_after_an_hour(issuer: FakeIssuer) -> None:
    """Known keys stay good for an hour, unknown ones are unavailable immediately; requests are five seconds apart."""
    clock = Clock()
    keys = IssuerKeys(issuer.url, clock=clock)
    assert await is_there(keys, "first")
    issuer.answers["/keys"] = (500, {}, b"")
    clock.now += 3600
    assert await is_there(keys, "first")
    asked = len(issuer.asked)
    with pytest.raises(IssuerUnavailableError, match=f"the keys of {issuer.url} cannot be fetched: .* answered 500"):
        await keys.find("other")
    assert len(issuer.asked) == asked
    clock.now += 1
    with pytest.raises(IssuerUnavailableError):
        await keys.find("first")
    del issuer.answers["/keys"]
    clock.now += 5
    assert await is_there(keys, "first")


async def test_nobody_listening_is_unavailable(issuer: FakeIssuer) -> None:
    """A refused connection is reported with the name of the issuer."""
    with running_issuer() as other:
        url = other.url
    keys = IssuerKeys(url)
    with pytest.raises(IssuerUnavailableError, match=f"the keys of {url} cannot be fetched: .*Connect call failed"):
        await keys.find("first")
    assert issuer.asked == []


async def test_an_issuer_that_is_silent_does_not_hold_up_logins(
    issuer: FakeIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is given up after a time limit, and all logins that wait for it get the same error."""
    monkeypatch.setattr(issuer_keys, "_TIMEOUT_SECONDS", 0.5)
    issuer.hold = threading.Event()
    keys = IssuerKeys(issuer.url)
    outcomes = await asyncio.gather(*(keys.find("first") for _ in range(5)), return_exceptions=True)
    assert [str(outcome).rpartition(": ")[2] for outcome in outcomes] == ["no answer within 0.5 s"] * 5
    assert issuer.asked == [DISCOVERY]


async def test_a_caller_that_leaves_does_not_spoil_it_for_others(issuer: FakeIssuer) -> None:
    """A cancelled caller leaves nothing behind while the keys are fetched; the next caller fetches them."""
    issuer.hold = threading.Event()
    keys = IssuerKeys(issuer.url)
    task = asyncio.get_running_loop().create_task(keys.find("first"))
    await until(lambda: bool(issuer.asked))
    task.cancel()
    issuer.hold.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await is_there(keys, "first")


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        (DISCOVERY, (302, {"Location": "/elsewhere"}, b""), "answered 302"),
        ("/keys", (307, {"Location": "/more"}, b""), "answered 307"),
        (DISCOVERY, (200, {}, b'{"issuer": "https://other", "jwks_uri": "https://other/keys"}'), "of another issuer"),
        (DISCOVERY, (200, {}, b"<html>"), "sent no JSON"),
        (DISCOVERY, (200, {}, b"[]"), "sent no JSON object"),
        ("/keys", (200, {}, b"[" * 100_000), "sent no JSON"),
        ("/keys", (200, {}, b" " * 600_000), "sent more than"),
        ("/keys", (200, {}, b'{"keys": {}}'), "sent no key set"),
        ("/keys", (200, {}, b'{"keys": [1, {}, {"kid": 1}, {"kid": "a", "kty": "RSA"}]}'), "no key that can be used"),
        ("/keys", (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b junk"), "sent no JSON"),
        ("/keys", (200, {"Content-Length": "99"}, b"{"), "payload"),
    ],
)
async def test_an_answer_that_is_no_key_set_is_unavailable(
    issuer: FakeIssuer, path: str, answer: tuple[int, dict[str, str], bytes], reason: str
) -> None:
    """Redirects, documents of other issuers and junk of any size are refused in words; no redirect is followed."""
    issuer.answers[path] = answer
    issuer.answers["/elsewhere"] = issuer.answers["/more"] = (200, {}, issuer.jwks())
    with pytest.raises(IssuerUnavailableError, match=reason):
        await IssuerKeys(issuer.url).find("first")
    assert not {"/elsewhere", "/more"} & set(issuer.asked)


@pytest.mark.parametrize("jwks_uri", [None, 7, "ftp://127.0.0.1/keys", "keys", "file:///etc/passwd"])
async def test_keys_are_not_looked_for_where_nothing_proves_them(issuer: FakeIssuer, jwks_uri: object) -> None:
    """Discovery may name an https URL, or one of the issuer's own scheme on this machine."""
    issuer.answers[DISCOVERY] = (200, {}, json.dumps({"issuer": issuer.url, "jwks_uri": jwks_uri}).encode())
    with pytest.raises(IssuerUnavailableError, match="has no allowed jwks_uri"):
        await IssuerKeys(issuer.url).find("first")


async def test_only_public_keys_that_sign_are_kept(issuer: FakeIssuer) -> None:
    """Shared secrets, private, short and encryption keys are left out; all kinds of signing keys are kept."""
    to_jwk = jwt.algorithms.RSAAlgorithm.to_jwk
    short, private = rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP256R1())
    other = json.loads(to_jwk(next(iter(issuer.keys.values())).public_key()))  # type: ignore[arg-type]  # an RSA key
    issuer.extra_keys = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "shared", "alg": "HS256"},
        {"kty": "oct", "kid": "empty"},
        {"kty": "EC", "crv": [], "kid": "list"},
        {"kty": "OKP", "crv": "Ed25519", "x": {}, "kid": "object"},
        {"kty": "RSA", "n": "AQAB", "e": 7, "kid": "number", "alg": None},
        {**json.loads(to_jwk(short.public_key())), "kid": "short"},
        {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private)), "kid": "private"},
        {**other, "kid": "encryption", "use": "enc"},
        {**other, "kid": "rsa-oaep", "alg": "RSA-OAEP"},
        {**other, "kid": "hmac", "alg": "HS256"},
        {**other, "kid": "plain"},
    ]
    issuer.keys |= {"curve": private, "edwards": ed25519.Ed25519PrivateKey.generate()}
    keys = IssuerKeys(issuer.url, clock=Clock())
    names = ["empty", "list", "object", "number"]
    assert [name for name in names if await is_there(keys, name)] == []
    names = ["shared", "short", "private", "encryption", "rsa-oaep", "hmac", "plain", "first", "curve", "edwards"]
    assert [name for name in names if await is_there(keys, name)] == ["plain", "first", "curve", "edwards"]
