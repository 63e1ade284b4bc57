"""Tokens: only those that this registry signed, for itself and for now, are accepted. Each attack has a test."""

import base64
import hashlib
import hmac
import json
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.access import tokens as module
from registry_proxy.access.tokens import (
    InvalidTokenError,
    TokenSigner,
    TokenVerifier,
    UnknownKeyError,
    create_key_file,
    public_key_of,
)
from registry_proxy.protocol.scope import CATALOG, Access, Action, repository_access
from tests.support.fakes.issuer import part

SERVICE = "registry-proxy"
NOW = 1_700_000_000.0


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The key file of a node."""
    path = str(tmp_path_factory.mktemp("keys") / "key.pem")
    create_key_file(path)
    return path


@pytest.fixture(scope="module")
def signer(key_file: str) -> TokenSigner:
    """A signer with the key of the fixture."""
    return TokenSigner(key_file, SERVICE, 300)


@pytest.fixture
def verifier(signer: TokenSigner) -> TokenVerifier:
    """A verifier that knows the signer's key."""
    verifier = TokenVerifier(SERVICE)
    verifier.set_keys({signer.key_id: public_key_of(signer.public_jwk)})
    return verifier


def private_key(key_file: str) -> ec.EllipticCurvePrivateKey:
    """Return the key of a file."""
    key = serialization.load_pem_private_key(Path(key_file).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def claims(**changes: Any) -> dict[str, Any]:
    """Return good claims with some changed; ``...`` removes one."""
    good = {"iss": SERVICE, "aud": SERVICE, "sub": "user:ann", "jti": "id", "generation": 0, "access": []}
    times = {"iat": int(NOW), "nbf": int(NOW), "exp": int(NOW) + 300}
    return {name: value for name, value in {**good, **times, **changes}.items() if value is not ...}


def sign(signer: TokenSigner, key_file: str, payload: Any, **headers: Any) -> str:
    """Return a token signed with the right key over any payload."""
    header = {"kid": signer.key_id, **headers}
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return jwt.PyJWS().encode(raw, private_key(key_file), "ES256", headers=header)


def test_issued_tokens_are_verified(signer: TokenSigner, verifier: TokenVerifier) -> None:
    """Each verification returns everything that was put into the token."""
    access = [repository_access("team/a", Action.PULL, Action.PUSH), CATALOG]
    issued = signer.issue("user:ann", 7, access, NOW + 0.9)
    assert (issued.issued_at, issued.expires_at) == (NOW, NOW + 300)
    for _ in range(2):
        token = verifier.verify(issued.token, NOW)
        assert (token.subject, token.generation, token.expires_at) == ("user:ann", 7, NOW + 300)
        assert token.token_id == issued.token_id
        assert all(token.allows(each.type, each.name, action) for each in access for action in each.actions)
    assert signer.issue("user:ann", 7, access, NOW).token_id != issued.token_id


def test_allows_what_the_access_claim_holds(signer: TokenSigner, verifier: TokenVerifier) -> None:
    """Access is allowed only where type, name and action are in one entry."""
    entries = [repository_access("a", Action.PULL), repository_access("b", Action.PUSH), CATALOG]
    token = verifier.verify(signer.issue("anonymous", 0, entries, NOW).token, NOW)
    assert token.allows("repository", "a", "pull")
    assert token.allows("registry", "catalog", "*")
    for refused in [("repository", "a", "push"), ("repository", "b", "pull"), ("registry", "a", "pull")]:
        assert not token.allows(*refused)
    assert not token.allows("repository", "a/b", "pull")
    assert not token.allows("repository", "", "")


def test_the_header_names_the_thumbprint(signer: TokenSigner) -> None:
    """``kid`` is the RFC 7638 thumbprint, the algorithm ES256, and the public key holds no private part."""
    header = jwt.get_unverified_header(signer.issue("user:ann", 0, [], NOW).token)
    assert header == {"alg": "ES256", "typ": "JWT", "kid": signer.key_id}
    assert set(signer.public_jwk) == {"kty", "crv", "x", "y", "kid", "alg", "use"}
    members = {name: signer.public_jwk[name] for name in ("crv", "kty", "x", "y")}
    canonical = json.dumps(members, separators=(",", ":"), sort_keys=True).encode()
    assert signer.key_id == part(hashlib.sha256(canonical).digest())


@pytest.mark.parametrize(
    ("offset", "valid"),
    [(-61, False), (-60, True), (0, True), (300, True), (360, True), (360.5, False), (361, False), (1e9, False)],
)
def test_clock_skew_of_a_minute(signer: TokenSigner, verifier: TokenVerifier, offset: float, *, valid: bool) -> None:
    """A token is good from 60 s before its nbf to 60 s after its exp, seen before or not."""
    token = signer.issue("user:ann", 0, [], NOW).token
    for _ in range(2):
        if valid:
            verifier.verify(token, NOW + offset)
        else:
            with pytest.raises(InvalidTokenError, match=r"expired|not valid yet"):
                verifier.verify(token, NOW + offset)
        # The second verification uses the memory.
        verifier.verify(token, NOW)


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "no iss": {"iss": ...},
    "another iss": {"iss": "registry-prox"},
    "iss as a list": {"iss": [SERVICE]},
    "no aud": {"aud": ...},
    "another aud": {"aud": "registry-proxy2"},
    "aud as a list": {"aud": [SERVICE, "other"]},
    "no exp": {"exp": ...},
    "exp as text": {"exp": "9999999999"},
    "exp true": {"exp": True},
    "digests as a list": {"access_digests": ["pull"]},
    "digests that are none": {"access_digests": {"pull": 5}},
    "exp infinite": {"exp": float("inf")},
    "exp not a number": {"exp": float("nan")},
    "exp enormous": {"exp": 10**400},
    "exp before iat": {"exp": int(NOW) - 1},
    "no nbf": {"nbf": ...},
    "nbf null": {"nbf": None},
    "no iat": {"iat": ...},
    "no sub": {"sub": ...},
    "sub without kind": {"sub": "ann"},
    "sub a number": {"sub": 1},
    "no jti": {"jti": ...},
    "empty jti": {"jti": ""},
    "no generation": {"generation": ...},
    "generation true": {"generation": True},
    "generation text": {"generation": "0"},
    "no access": {"access": ...},
    "access null": {"access": None},
    "access of numbers": {"access": [1]},
    "access without actions": {"access": [{"type": "repository", "name": "a"}]},
    "access with actions null": {"access": [{"type": "repository", "name": "a", "actions": None}]},
}


@pytest.mark.parametrize("changes", BAD_CLAIMS.values(), ids=BAD_CLAIMS.keys())
def test_claims_must_be_there_and_right(
    signer: TokenSigner, key_file: str, verifier: TokenVerifier, changes: dict[str, Any]
) -> None:
    """Even under the right key, a token without exactly our claims is refused."""
    verifier.verify(sign(signer, key_file, claims()), NOW)
    with pytest.raises(InvalidTokenError):
        verifier.verify(sign(signer, key_file, claims(**changes)), NOW)


@pytest.mark.parametrize("payload", [b"", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 9000, b"{", b"1" * 5000])
def test_a_payload_that_is_no_object(
    signer: TokenSigner, key_file: str, verifier: TokenVerifier, payload: bytes
) -> None:
    """A rightly signed payload that is no JSON object is refused."""
    with pytest.raises(InvalidTokenError):
        verifier.verify(sign(signer, key_file, payload), NOW)


def test_attack_alg_none(signer: TokenSigner, verifier: TokenVerifier) -> None:
    """Unsigned tokens are refused, whatever the case of ``none``."""
    for alg in ("none", "None", "NONE", "nOnE", ""):
        for signature in ("", "AA"):
            token = f"{part({'alg': alg, 'typ': 'JWT', 'kid': signer.key_id})}.{part(claims())}.{signature}"
            with pytest.raises(InvalidTokenError):
                verifier.verify(token, NOW)


def test_attack_hmac_with_the_public_key(signer: TokenSigner, key_file: str, verifier: TokenVerifier) -> None:
    """CVE-2022-29217: HS256 with the public key as its secret, in every form it is published in."""
    public = private_key(key_file).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, pem.strip(), der, json.dumps(dict(signer.public_jwk)).encode(), b""):
        for algorithm, digest in (("HS256", "sha256"), ("HS512", "sha512")):
            signed = f"{part({'alg': algorithm, 'typ': 'JWT', 'kid': signer.key_id})}.{part(claims())}"
            token = f"{signed}.{part(hmac.digest(secret, signed.encode(), digest))}"
            with pytest.raises(InvalidTokenError, match="not signed with ES256"):
                verifier.verify(token, NOW)


def test_attack_embedded_key(signer: TokenSigner, verifier: TokenVerifier) -> None:
    """CVE-2025-24976: a token that brings its own key, under our kid or another, is not verified with that key."""
    theirs = ec.generate_private_key(ec.SECP256R1())
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(theirs.public_key()))
    for kid in (signer.key_id, "theirs"):
        for extra in (
            {"jwk": jwk},
            {"jku": "http://127.0.0.1/keys"},
            {"x5c": ["AA"]},
            {"x5u": "http://127.0.0.1/"},
            {},
        ):
            token = jwt.encode(claims(), theirs, "ES256", headers={"kid": kid, **extra})
            with pytest.raises(InvalidTokenError):
                verifier.verify(token, NOW)


@pytest.mark.parametrize("header", ["jwk", "jku", "x5c", "x5u", "x5t", "x5t#S256"])
def test_attack_headers_that_choose_a_key(
    signer: TokenSigner, key_file: str, verifier: TokenVerifier, header: str
) -> None:
    """A header that chooses a key is refused even on a rightly signed token: we never write one."""
    with pytest.raises(InvalidTokenError, match="brings a key"):
        verifier.verify(sign(signer, key_file, claims(), **{header: {}}), NOW)


def test_attack_unknown_critical_extension(signer: TokenSigner, key_file: str, verifier: TokenVerifier) -> None:
    """RFC 7515 4.1.11: an unknown extension that is marked critical makes the token invalid."""
    for crit in (["exp"], ["b64"], [], "x"):
        header = part({"alg": "ES256", "kid": signer.key_id, "crit": crit, "exp": 1, "b64": False})
        good = sign(signer, key_file, claims())
        with pytest.raises(InvalidTokenError):
            verifier.verify(".".join([header, *good.split(".")[1:]]), NOW)


def test_attack_other_keys(signer: TokenSigner, key_file: str, verifier: TokenVerifier) -> None:
    """A kid that is absent, unknown or no text, and our kid over another key, are refused."""
    good = sign(signer, key_file, claims())
    for kid in (None, "", "unknown", 7, ["x"], {"a": 1}, "../../dev/null"):
        header = part({"alg": "ES256", "typ": "JWT", "kid": kid})
        with pytest.raises(InvalidTokenError):
            verifier.verify(".".join([header, *good.split(".")[1:]]), NOW)
    with pytest.raises(UnknownKeyError):
        verifier.verify(jwt.encode(claims(), private_key(key_file), "ES256"), NOW)
    for theirs, algorithm in (
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ec.generate_private_key(ec.SECP384R1()), "ES384"),
        (rsa.generate_private_key(65537, 2048), "RS256"),
    ):
        with pytest.raises(InvalidTokenError):
            verifier.verify(jwt.encode(claims(), theirs, algorithm, headers={"kid": signer.key_id}), NOW)


def test_attack_changed_bytes(signer: TokenSigner, verifier: TokenVerifier) -> None:
    """A change of any byte of the claims, the header or the signature is detected."""
    token = signer.issue("user:ann", 0, [], NOW).token
    header, payload, signature = token.split(".")
    changed = part({**json.loads(base64.urlsafe_b64decode(payload + "==")), "sub": "user:root"})
    zeros = part(bytes(64))  # CVE-2022-21449: r = s = 0
    tries = [f"{header}.{changed}.{signature}", f"{header}.{payload}.{zeros}", f"{header}.{payload}.", token[:-8]]
    tries += [f"{header}.{payload}", f"{token}.{payload}", f"{token}A", f"{header}..{signature}", token[1:]]
    for bad in tries:
        with pytest.raises(InvalidTokenError):
            verifier.verify(bad, NOW)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "." * 10000,
        "A" * 10000000,
        "\x00",
        "ä.ä.ä",
        "�",
        " " * 100,
        f"{part(b'[' * 8000)}.e30.AA",
        f"{part(b'null')}.e30.AA",
        f"{part(b'[]')}.e30.AA",
        "e30.e30.e30",
    ],
    ids=str.__len__,
)
def test_garbage_is_only_ever_an_invalid_token(verifier: TokenVerifier, token: str) -> None:
    """Garbage of any kind and size raises InvalidTokenError, and is not remembered."""
    with pytest.raises(InvalidTokenError):
        verifier.verify(token, NOW)
    assert not verifier._verified


@given(
    st.one_of(st.text(), st.lists(st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode())).map(".".join))
)
def test_any_text_is_only_ever_an_invalid_token(token: str) -> None:
    """Hypothesis finds no text that raises anything else."""
    with pytest.raises(InvalidTokenError):
        TokenVerifier(SERVICE).verify(token, NOW)


def test_no_message_shows_the_token(signer: TokenSigner, verifier: TokenVerifier) -> None:
    """No message, which may reach a log or an answer, holds a part of the token."""
    token = signer.issue("user:ann", 0, [], NOW).token
    with pytest.raises(InvalidTokenError) as caught:
        verifier.verify(token[:-8], NOW)
    assert not any(part[:12] in str(caught.value) for part in token.split("."))


def test_a_key_that_is_gone_ends_its_tokens(signer: TokenSigner, verifier: TokenVerifier) -> None:
    """Tokens of a removed key are refused, also those verified before; a new key changes nothing for others."""
    token = signer.issue("user:ann", 0, [], NOW).token
    verifier.verify(token, NOW)
    key = public_key_of(signer.public_jwk)
    verifier.set_keys({signer.key_id: key, "another": key})
    assert verifier._verified
    verifier.set_keys({"another": key})
    with pytest.raises(UnknownKeyError):
        verifier.verify(token, NOW)


def test_remembers_no_more_than_a_bound(
    signer: TokenSigner, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with the number of tokens."""
    monkeypatch.setattr(module, "_REMEMBERED_BYTES", 6_000)
    for _ in range(12):
        verifier.verify(signer.issue("user:ann", 0, [], NOW).token, NOW)
    assert len(verifier._verified) == 5


def test_remembers_long_tokens_within_the_same_bound(
    signer: TokenSigner, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with the size of tokens: the oldest go, the newest stay, also after the keys changed."""
    monkeypatch.setattr(module, "_REMEMBERED_BYTES", 120_000)
    access = [Access("repository", f"{i:0255}", frozenset({"pull"})) for i in range(200)]
    for _ in range(2):
        tokens = [signer.issue("user:ann", 0, access, NOW).token for _ in range(9)]
        for token in tokens:
            verifier.verify(token, NOW)
        assert [token in verifier._verified for token in tokens] == [False] * 5 + [True] * 4
        verifier.set_keys({})
        verifier.set_keys({signer.key_id: public_key_of(signer.public_jwk)})


@pytest.mark.parametrize("jwk", [{}, {"kty": "EC"}, {"kty": "oct", "k": "AA"}, {"kty": "EC", "crv": "P-384"}])
def test_other_published_keys_are_refused(jwk: dict[str, str]) -> None:
    """The verifier takes only keys on P-256 from the store."""
    with pytest.raises(ValueError, match="P-256"):
        public_key_of(jwk)


def test_a_key_on_another_curve_is_refused(tmp_path: Path) -> None:
    """ES256 is P-256 alone, in a file and in a published key; an unreadable key is refused too."""
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ValueError, match="P-256"):
        public_key_of(json.loads(jwt.algorithms.ECAlgorithm.to_jwk(other.public_key())))
    private = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for content in (private, b"", b"garbage"):
        (tmp_path / "key.pem").write_bytes(content)
        with pytest.raises(ValueError, match=r"key\.pem"):
            TokenSigner(str(tmp_path / "key.pem"), SERVICE, 300)
    with pytest.raises(FileNotFoundError):
        TokenSigner(str(tmp_path / "none.pem"), SERVICE, 300)


def test_the_key_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """The key file has mode 0600 whatever the umask, is never replaced, and leaves no other file beside it."""
    path = tmp_path / "made" / "key.pem"
    mask = os.umask(0)
    try:
        create_key_file(str(path))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    create_key_file(str(path))
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["key.pem"]


def _make_and_read(path: str, barrier: Any, answers: Any) -> None:
    barrier.wait(60)
    create_key_file(path)
    answers.put(TokenSigner(path, SERVICE, 300).key_id)


def test_four_processes_race_for_one_key(tmp_path: Path) -> None:
    """All four processes use the same whole key."""
    path = str(tmp_path / "key.pem")
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_make_and_read, args=(path, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    key_ids = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    answers.close()
    answers.join_thread()
    assert len(key_ids) == 1
    assert os.listdir(tmp_path) == ["key.pem"]


def test_tokens_of_access_survive_any_names(signer: TokenSigner, verifier: TokenVerifier) -> None:
    """The access in a token has the same names as the request of the client."""
    access = Access("repository", "host:5000/\u00e4 b", frozenset({"pull"}))
    token = verifier.verify(signer.issue("anonymous", 0, [access], NOW).token, NOW)
    assert token.allows(access.type, access.name, "pull")


@pytest.mark.parametrize(("left", "lifetime"), [(1000, 300), (300, 300), (299.9, 299), (7, 7), (0, 0)])
def test_a_token_ends_with_what_it_is_given_for(
    signer: TokenSigner, verifier: TokenVerifier, left: float, lifetime: int
) -> None:
    """A token never ends later than ``not_after``."""
    issued = signer.issue("user:ann", 0, [], NOW, not_after=NOW + left)
    assert issued.expires_at - issued.issued_at == lifetime
    assert verifier.verify(issued.token, NOW).expires_at == NOW + lifetime
    with pytest.raises(InvalidTokenError, match="expired"):
        verifier.verify(issued.token, NOW + lifetime + module.LEEWAY_SECONDS + 1)


def test_a_token_for_what_has_just_ended_is_accepted_no_longer(signer: TokenSigner, verifier: TokenVerifier) -> None:
    """The tolerance for clocks counts from the end of the reason for the token, not from its issue."""
    issued = signer.issue("user:ann", 0, [], NOW, not_after=NOW - 9)
    assert (issued.issued_at, issued.expires_at) == (NOW - 9, NOW - 9)
    assert verifier.verify(issued.token, NOW - 9 + module.LEEWAY_SECONDS).subject == "user:ann"
    with pytest.raises(InvalidTokenError, match="expired"):
        verifier.verify(issued.token, NOW - 9 + module.LEEWAY_SECONDS + 1)
