"""Tokens: JSON Web Tokens as distribution's token specification asks for, signed by ES256 (RFC 7515, 7518, 7519)."""

import base64
import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import cryptography.hazmat.backends.openssl.backend  # noqa: F401 - else each worker loads it, to sign for the first time
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from registry_proxy.access.carried import CarriedAccess, carries, format_carried, read_carried, size_of
from registry_proxy.access.subject import parse_subject
from registry_proxy.files.atomic import write_file, write_new_file
from registry_proxy.protocol.scope import Access

LEEWAY_SECONDS = 60
"""How far two clocks may be apart."""

_ALGORITHM = "ES256"
_TOKEN_MAX_LENGTH = 16_384
_HEADERS_THAT_CHOOSE_A_KEY = frozenset({"jwk", "jku", "x5c", "x5u", "x5t", "x5t#S256", "crit"})
_REMEMBERED_BYTES = 16 * 1024 * 1024
_ENTRY_BYTES = 700  # of a token that is remembered, besides its text and its access
_KEY_CHECK_SECONDS = 0.5

_log = logging.getLogger(__name__)


class InvalidTokenError(Exception):
    """The token is no good; the message says why, without any part of the token."""


class UnknownKeyError(InvalidTokenError):
    """It is signed with a key that is not known here; another node may have published it a moment ago."""


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """The content of a token whose signature and times were right; ``expires_at`` is its ``exp`` in Unix seconds.

    ``secret_id`` names the secret that it was issued for and is revoked with; None for one issued for a password.
    ``is_scoped``: it was requested with a scope; ``access`` has the allowed part of that, perhaps nothing.
    """

    subject: str
    token_id: str
    generation: int
    expires_at: float
    access: CarriedAccess
    secret_id: str | None = None
    is_scoped: bool = False

    def allows(self, type: str, name: str, action: str) -> bool:  # noqa: A002 - the claim's name in the specification
        """Tell whether the ``access`` claim holds the action; the grants decide as well."""
        return carries(self.access, type, name, action)


class IssuedToken(NamedTuple):
    """A new token; the times are Unix seconds."""

    token: str
    token_id: str
    issued_at: int
    expires_at: int


def create_key_file(path: str) -> None:
    """Make a private key for signing, unless the file is there. The first process wins, and the others use its key.

    Raises:
        OSError: it cannot be written.
    """
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        write_new_file(path, _pem(ec.generate_private_key(ec.SECP256R1())))


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class NextKey:
    """A key that is to follow the one in a file: published first, then put in its place."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.public_jwk: Mapping[str, str] = _jwk(self._key.public_key())

    def replace(self, path: str) -> None:
        """Put it into the file, at once and whole; every worker signs with it soon after. Raises OSError."""
        write_file(path, _pem(self._key))


class TokenSigner:
    """Issues tokens with the node's own key.

    Args:
        key_file: PEM, an EC key on P-256; see ``create_key_file``.
        service: the name of this registry: ``iss`` and ``aud``.
        lifetime_seconds: from issue to expiry.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no such key.
    """

    def __init__(self, key_file: str, service: str, lifetime_seconds: int) -> None:
        self._key_file = key_file
        self._service = service
        self._lifetime_seconds = lifetime_seconds
        self._checked_at = time.monotonic()
        self._load()

    def _load(self) -> None:
        with open(self._key_file, "rb") as file:
            pem = file.read()
            status = os.fstat(file.fileno())
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self._key_file} holds no private key in PEM without a password") from error
        self._key = _private_key_on_p256(key, self._key_file)
        self._stamp = (status.st_ino, status.st_mtime_ns)
        self._public_jwk = _jwk(self._key.public_key())

    def _reload_if_changed(self) -> None:
        """Sign with the key that another worker has put into the file; a file that is no good changes nothing."""
        now = time.monotonic()
        if now - self._checked_at < _KEY_CHECK_SECONDS:
            return
        self._checked_at = now
        try:
            status = os.stat(self._key_file)
            if (status.st_ino, status.st_mtime_ns) != self._stamp:
                self._load()
        except (OSError, ValueError) as error:
            _log.warning("the signing key is kept as it was: %s", error)

    @property
    def key_file(self) -> str:
        """The path of the private key."""
        return self._key_file

    @property
    def key_id(self) -> str:
        """The RFC 7638 thumbprint of the key, the ``kid`` of its tokens."""
        return str(self._public_jwk["kid"])

    @property
    def public_jwk(self) -> Mapping[str, str]:
        """The public half as a JSON Web Key (RFC 7517)."""
        return self._public_jwk

    def sign(self, payload: bytes, kind: str) -> str:
        """Return a JWS in its compact form (RFC 7515) over something that is no token; ``kind`` is its ``typ``."""
        self._reload_if_changed()
        headers = {"kid": self.key_id, "typ": kind}
        return jwt.PyJWS().encode(payload, self._key, algorithm=_ALGORITHM, headers=headers)

    def issue(
        self,
        subject: str,
        generation: int,
        access: Iterable[Access],
        now: float,
        *,
        secret_id: str | None = None,
        not_after: float | None = None,
        is_scoped: bool = False,
    ) -> IssuedToken:
        """Return a token.

        Args:
            subject: typed, such as ``user:ann``.
            generation: the subject's current one; a later one revokes the token.
            access: what it carries; the grants are asked again at each request.
            now: Unix seconds.
            secret_id: of the secret that was presented, None for a password.
            not_after: when it expires at the latest, Unix seconds: what it is given for is good no longer. One that is
                past already is when it was issued, too, so that it is accepted for no more than the leeway after that.
            is_scoped: whether a scope was requested, also where nothing of it is allowed.
        """
        self._reload_if_changed()
        issued_at = int(now)
        expires_at = issued_at + self._lifetime_seconds
        if not_after is not None:
            expires_at = min(expires_at, int(not_after))
            issued_at = min(issued_at, expires_at)
        token_id = secrets.token_urlsafe(16)
        claims = {
            "iss": self._service,
            "aud": self._service,
            "sub": subject,
            "iat": issued_at,
            "nbf": issued_at,
            "exp": expires_at,
            "jti": token_id,
            "generation": generation,
            **format_carried(access),
        }
        if secret_id is not None:
            claims["secret"] = secret_id
        if is_scoped:
            claims["scoped"] = True
        token = jwt.encode(claims, self._key, algorithm=_ALGORITHM, headers={"kid": self.key_id})
        return IssuedToken(token, token_id, issued_at, expires_at)


class TokenVerifier:
    """Verifies tokens against the published keys, and remembers those that were right until they expire.

    Args:
        service: the name of this registry, which ``iss`` and ``aud`` must be, exactly.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._keys: dict[str, ec.EllipticCurvePublicKey] = {}
        self._verified: dict[str, tuple[VerifiedToken, float]] = {}  # with its nbf; oldest first
        self._verified_bytes = 0

    def set_keys(self, keys: Mapping[str, ec.EllipticCurvePublicKey]) -> None:
        """Replace the keys, by ``kid``; what was verified with one that is gone is forgotten."""
        if not self._keys.keys() <= keys.keys():
            self._verified.clear()
            self._verified_bytes = 0
        self._keys = dict(keys)

    def verify(self, token: str, now: float) -> VerifiedToken:
        """Return what a token says.

        Args:
            token: as it came with the request.
            now: Unix seconds; the token's times are allowed to be 60 s off.

        Raises:
            InvalidTokenError: for any other text, of any size.
        """
        known = self._verified.get(token)
        if known is None:
            known = self._verify(token)
            _check_times(*known, now)
            self._remember(token, known)
        else:
            _check_times(*known, now)
        return known[0]

    def _remember(self, token: str, known: tuple[VerifiedToken, float]) -> None:
        self._verified[token] = known
        self._verified_bytes += _size_of(token, known[0])
        while self._verified_bytes > _REMEMBERED_BYTES:
            oldest = next(iter(self._verified))
            self._verified_bytes -= _size_of(oldest, self._verified.pop(oldest)[0])

    def _verify(self, token: str) -> tuple[VerifiedToken, float]:
        if len(token) > _TOKEN_MAX_LENGTH:
            raise InvalidTokenError("the token is too long")
        try:
            key = self._key_of(jwt.get_unverified_header(token))
            payload = jwt.PyJWS().decode(token, key, algorithms=[_ALGORITHM])
            claims = json.loads(payload)
        except InvalidTokenError:
            raise
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError) as error:
            raise InvalidTokenError("the token is malformed, or its signature is not right") from error
        if not isinstance(claims, dict):
            raise InvalidTokenError("the token holds no claims")
        return _read_claims(claims, self._service)

    def _key_of(self, header: Mapping[str, Any]) -> ec.EllipticCurvePublicKey:
        if header.get("alg") != _ALGORITHM:
            raise InvalidTokenError(f"the token is not signed with {_ALGORITHM}")
        if not _HEADERS_THAT_CHOOSE_A_KEY.isdisjoint(header):
            raise InvalidTokenError("the token brings a key or an extension of its own")
        kid = header.get("kid")
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise UnknownKeyError("the token is signed with a key that is not ours")
        return key


def open_signed(text: str, kind: str, jwks: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return what ``TokenSigner.sign`` signed.

    Args:
        text: the JWS.
        kind: its ``typ``.
        jwks: the keys that may have signed it, by ``kid``.

    Raises:
        ValueError: it is no such thing, or not signed by one of the keys.
    """
    try:
        header = jwt.get_unverified_header(text)
        jwk = jwks.get(str(header.get("kid")))
        if header.get("typ") != kind or jwk is None:
            raise ValueError("it is not signed with a key of this registry")
        payload: bytes = jwt.PyJWS().decode(text, public_key_of(jwk), algorithms=[_ALGORITHM])
    except jwt.PyJWTError as error:
        raise ValueError("the signature is not right") from error
    return payload


def public_key_of(jwk: Mapping[str, Any]) -> ec.EllipticCurvePublicKey:
    """Return the key of a published JSON Web Key.

    Raises:
        ValueError: it is none on P-256.
    """
    try:
        key = jwt.PyJWK(dict(jwk), algorithm=_ALGORITHM).key
    except jwt.PyJWTError as error:
        raise ValueError("not a JSON Web Key on P-256") from error
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ValueError("not a JSON Web Key on P-256")


def _private_key_on_p256(key: object, key_file: str) -> ec.EllipticCurvePrivateKey:
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise ValueError(f"{key_file} holds a key of another kind than EC P-256")


def _size_of(token: str, verified: VerifiedToken) -> int:
    """Return how many bytes of memory it takes to remember a token."""
    return len(token) + _ENTRY_BYTES + size_of(verified.access)


def _check_times(token: VerifiedToken, not_before: float, now: float) -> None:
    if now > token.expires_at + LEEWAY_SECONDS:
        raise InvalidTokenError("the token has expired")
    if now < not_before - LEEWAY_SECONDS:
        raise InvalidTokenError("the token is not valid yet")


def _read_claims(claims: Mapping[str, Any], service: str) -> tuple[VerifiedToken, float]:
    """Return the token and its ``nbf``. A list of audiences is not ours either: we never write one."""
    if claims.get("iss") != service or claims.get("aud") != service:
        raise InvalidTokenError("the token was issued by or for another service")
    issued_at, not_before, expires_at = (_number(claims, name) for name in ("iat", "nbf", "exp"))
    if not issued_at <= expires_at:
        raise InvalidTokenError("the token expired before it was issued")
    subject, token_id, generation = claims.get("sub"), claims.get("jti"), claims.get("generation")
    secret_id = claims.get("secret")
    if secret_id is not None and not isinstance(secret_id, str):
        raise InvalidTokenError("the token has no proper secret")
    if not isinstance(subject, str) or not isinstance(token_id, str) or not token_id or type(generation) is not int:
        raise InvalidTokenError("sub, jti or generation is missing in the token")
    try:
        parse_subject(subject)
        access = read_carried(claims)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidTokenError("the token has no proper sub or access") from error
    is_scoped = bool(access) or claims.get("scoped") is True
    return VerifiedToken(subject, token_id, generation, expires_at, access, secret_id, is_scoped), not_before


def _number(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    # Infinity and NaN are numbers to Python's JSON, and would never expire.
    if type(value) not in {int, float} or not 0 <= value < 2**53:  # type: ignore[operator]  # the first half decides
        raise InvalidTokenError(f"the token has no proper {name}")
    return float(value)  # type: ignore[arg-type]  # as above


def _jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    numbers = key.public_numbers()
    x, y = (_base64url(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    # RFC 7638: the thumbprint is over the required members alone, in this order, without spaces.
    members = json.dumps({"crv": "P-256", "kty": "EC", "x": x, "y": y}, separators=(",", ":"))
    thumbprint = _base64url(hashlib.sha256(members.encode()).digest())
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": thumbprint, "alg": _ALGORITHM, "use": "sig"}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
