"""The public keys of an OIDC issuer: found by discovery or at a given URL, kept, and fetched again when they change."""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from registry_proxy.access.credentials import LoginUnavailableError

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""Those with a private and a public key. With any other an issuer's public key could be the secret of a forger."""

_FRESH_SECONDS = 600.0
_MAX_AGE_SECONDS = 3600.0
_PAUSE_SECONDS = 5.0  # anybody can name keys that are not there: they cost the issuer no more than this
_TIMEOUT_SECONDS = 5.0
_DOCUMENT_MAX_BYTES = 512 * 1024
_RSA_MIN_BITS = 2048
_DISCOVERY = "/.well-known/openid-configuration"

_log = logging.getLogger(__name__)


class IssuerUnavailableError(LoginUnavailableError):
    """The keys of an issuer cannot be known now; the message says which issuer, and why."""


class IssuerKeys:
    """The keys of one issuer, as this worker knows them.

    Keys are asked for again after ten minutes, and for a key that is not known, but never more often than every five
    seconds. While the issuer does not answer those known stay good for an hour.

    Args:
        issuer: its URL, exactly as its tokens have it.
        jwks_url: where the keys are; None to ask the issuer (OpenID Connect Discovery 1.0, section 4).
        ca_file: certificate authority of an https issuer; None for the system's.
        clock: in seconds, monotonic.

    Raises:
        OSError: ``ca_file`` cannot be read, or holds no certificate.
    """

    def __init__(
        self,
        issuer: str,
        jwks_url: str | None = None,
        ca_file: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._tls: ssl.SSLContext | bool = True if ca_file is None else ssl.create_default_context(cafile=ca_file)
        self._clock = clock
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._fetched_at = self._asked_at = float("-inf")
        self._failure = ""
        self._fetching = asyncio.Lock()

    async def find(self, kid: str) -> jwt.PyJWK | None:
        """Return a key; None when the issuer has none of that name.

        Raises:
            IssuerUnavailableError: it cannot be known.
        """
        if not self._knows(kid):
            async with self._fetching:
                if not self._knows(kid) and self._clock() - self._asked_at >= _PAUSE_SECONDS:
                    await self._renew()
        key = self._keys.get(kid)
        if self._clock() - self._fetched_at > _MAX_AGE_SECONDS or (key is None and self._failure):
            raise IssuerUnavailableError(f"the keys of {self._issuer} cannot be fetched: {self._failure}")
        return key

    def _knows(self, kid: str) -> bool:
        return kid in self._keys and self._clock() - self._fetched_at < _FRESH_SECONDS

    async def _renew(self) -> None:
        try:
            self._keys = await self._fetch()
            self._failure, self._fetched_at = "", self._clock()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._failure = str(error) or type(error).__name__
            _log.warning("the keys of %s cannot be fetched: %s", self._issuer, self._failure)
        self._asked_at = self._clock()

    async def _fetch(self) -> Mapping[str, jwt.PyJWK]:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            try:
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    url = self._jwks_url or await self._discover(session)
                    return _keys_of(await self._get(session, url), url)
            except TimeoutError:
                raise ValueError(f"no answer within {_TIMEOUT_SECONDS:g} s") from None

    async def _discover(self, session: aiohttp.ClientSession) -> str:
        url = self._issuer.rstrip("/") + _DISCOVERY
        document = await self._get(session, url)
        if document.get("issuer") != self._issuer:
            raise ValueError(f"{url} is the document of another issuer")
        jwks_url = document.get("jwks_uri")
        # What proves the keys is TLS, so it may not end here.
        if not isinstance(jwks_url, str) or urlsplit(jwks_url).scheme not in {"https", urlsplit(self._issuer).scheme}:
            raise ValueError(f"{url} has no allowed jwks_uri")
        return jwks_url

    async def _get(self, session: aiohttp.ClientSession, url: str) -> Mapping[str, Any]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with session.get(url, allow_redirects=False, headers=headers, ssl=self._tls) as response:
            if response.status != 200:
                # A redirect as well: keys come from where the configuration or the issuer says, and nowhere else.
                raise ValueError(f"{url} answered {response.status}")
            body = b""
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > _DOCUMENT_MAX_BYTES:
                    raise ValueError(f"{url} sent more than {_DOCUMENT_MAX_BYTES} bytes")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise ValueError(f"{url} sent no JSON") from None
        if not isinstance(document, dict):
            raise ValueError(f"{url} sent no JSON object")  # noqa: TRY004 - the document is wrong, not a type of ours
        return document


def _keys_of(document: Mapping[str, Any], url: str) -> Mapping[str, jwt.PyJWK]:
    """Return the keys that may sign tokens, by ``kid``; what else is in the set is left out (RFC 7517, section 5)."""
    entries = document.get("keys")
    if not isinstance(entries, list):
        raise ValueError(f"{url} sent no key set")  # noqa: TRY004 - as above
    keys = {
        entry["kid"]: key
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("kid"), str) and (key := _key_of(entry)) is not None
    }
    if not keys:
        raise ValueError(f"{url} sent no key that can be used")
    return keys


def _key_of(entry: Mapping[str, Any]) -> jwt.PyJWK | None:
    if entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    try:
        key = jwt.PyJWK(dict(entry))
    except Exception:  # noqa: BLE001 - the entry is foreign: whatever it makes the libraries raise, the others count
        return None
    if isinstance(key.key, rsa.RSAPublicKey) and key.key.key_size < _RSA_MIN_BITS:
        return None
    return key if key.algorithm_name in ALGORITHMS else None
