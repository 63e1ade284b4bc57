"""Logging in to a replica: Basic, and Bearer tokens by its challenge (token-spec, token.md)."""

import asyncio
import base64
import ipaddress
import json
import ssl
import time
from collections import OrderedDict
from dataclasses import dataclass
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from registry_proxy.spec.challenge import parse_challenge
from registry_proxy.upstream.failure import AccessRefusedError, ReplicaFailedError, translated
from registry_proxy.upstream.sessions import ReplicaAddress, Timeouts

_TOKENS_MAX = 1000
_TOKEN_ANSWER_MAX_BYTES = 256 * 1024
_DEFAULT_LIFETIME_SECONDS = 60.0  # token-spec: when expires_in is absent


@dataclass(frozen=True, slots=True)
class _Source:
    """Where tokens are had, from a challenge whose realm was checked."""

    realm: URL
    service: str | None


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    source: _Source
    scopes: tuple[str, ...]
    expires_at: float


def is_loopback(host: str | None) -> bool:
    """Tell whether a host of a URL is this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


class Login:
    """What one replica is shown as ``Authorization``. Tokens are kept by scope until they expire."""

    def __init__(
        self, address: ReplicaAddress, session: aiohttp.ClientSession, timeouts: Timeouts, *, tls: ssl.SSLContext | bool
    ) -> None:
        self._address = address
        self._session = session
        self._timeouts = timeouts
        self._tls = tls
        self._url = URL(address.url)
        self._demands_basic = False
        self._source: _Source | None = None
        self._tokens: OrderedDict[tuple[str, ...], _Token] = OrderedDict()
        self._locks: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = WeakValueDictionary()

    async def authorization(self, scopes: tuple[str, ...]) -> str | None:
        """Return what to send without waiting for a challenge: what the replica demanded before, else None.

        Raises:
            AccessRefusedError, ReplicaFailedError: its token endpoint refuses us, does not answer.
        """
        if self._demands_basic:
            return self._basic(self._url)
        if self._source is None:
            return None
        return await self._token(scopes, rejected=None)

    async def answer(self, challenge_header: str | None, scopes: tuple[str, ...], rejected: str | None) -> str:
        """Return what to send after a 401.

        Args:
            challenge_header: its WWW-Authenticate.
            scopes: what the request needs; the challenge's own scope goes before them.
            rejected: what had been sent.

        Raises:
            AccessRefusedError: there is nothing better to send.
            ReplicaFailedError: the token endpoint does not answer.
        """
        challenge = parse_challenge(challenge_header or "")
        if challenge is None:
            raise self._refused("it answers 401 without a challenge")
        if challenge.scheme == "basic":
            header = self._basic(self._url)
            if header == rejected:
                raise self._refused("it refuses the configured user name and password")
            self._demands_basic = True
            return header
        if challenge.scheme != "bearer":
            raise self._refused(f"it demands the scheme {challenge.scheme[:20]}")
        self._demands_basic = False
        self._source = _Source(
            self._check_realm(challenge.parameters.get("realm", "")), challenge.parameters.get("service")
        )
        asked = challenge.parameters.get("scope")
        return await self._token(scopes, rejected=rejected, asked=(asked, *scopes[1:]) if asked else None)

    # ------------------------------------------------------------ tokens

    async def _token(
        self, scopes: tuple[str, ...], *, rejected: str | None, asked: tuple[str, ...] | None = None
    ) -> str:
        lock = self._locks.get(scopes)
        if lock is None:
            lock = self._locks[scopes] = asyncio.Lock()
        async with lock:
            kept = self._tokens.get(scopes)
            if kept is not None and kept.expires_at > time.monotonic() and kept.header != rejected:
                self._tokens.move_to_end(scopes)
                return kept.header
            source = self._source
            if source is None:
                raise self._refused("it has not said where its tokens are had")
            token = await self._fetch_token(source, asked or (kept.scopes if kept else scopes))
            self._tokens[scopes] = token
            while len(self._tokens) > _TOKENS_MAX:
                self._tokens.popitem(last=False)
            return token.header

    async def _fetch_token(self, source: _Source, scopes: tuple[str, ...]) -> _Token:
        query = [("service", source.service)] if source.service else []
        query += [("scope", scope) for scope in scopes if scope]
        headers = {} if self._address.username is None else {"Authorization": self._basic(source.realm)}
        name = f"{self._address.name} (token endpoint)"
        started_at = time.monotonic()
        with translated(name):
            async with (
                asyncio.timeout(self._timeouts.connect + self._timeouts.first_byte),
                self._session.get(
                    source.realm.extend_query(query), headers=headers, allow_redirects=False, ssl=self._tls
                ) as response,
            ):
                body = await response.content.read(_TOKEN_ANSWER_MAX_BYTES)
                while len(body) < _TOKEN_ANSWER_MAX_BYTES and (more := await response.content.readany()):
                    body += more
        if response.status in {400, 401, 403}:
            raise self._refused(f"its token endpoint answers {response.status} to the configured credentials")
        if response.status != 200:
            raise ReplicaFailedError(f"{name}: it answers {response.status}", f"{response.status // 100}xx")
        return self._parse_token(body, source, scopes, started_at)

    def _parse_token(self, body: bytes, source: _Source, scopes: tuple[str, ...], started_at: float) -> _Token:
        try:
            answer = json.loads(body)
            token = answer.get("token") or answer["access_token"]
            lifetime = float(answer.get("expires_in") or _DEFAULT_LIFETIME_SECONDS)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ReplicaFailedError(f"{self._address.name}: its token endpoint gives no token", "5xx") from error
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise ReplicaFailedError(f"{self._address.name}: its token endpoint gives no token", "5xx")
        margin = min(10.0, lifetime / 4)  # on its way a token must not expire
        return _Token(f"Bearer {token}", source, scopes, started_at + lifetime - margin)

    # ------------------------------------------------------------ who gets the password

    def _check_realm(self, realm: str) -> URL:
        try:
            url = URL(realm)
        except ValueError as error:
            raise self._refused("the realm of its challenge is not a URL") from error
        allowed = {self._url.host, *self._address.realm_hosts}
        if url.scheme not in {"http", "https"} or url.host not in allowed or url.user is not None:
            raise self._refused(f"the realm of its challenge is on another host, {(url.host or realm)[:100]!r}")
        if self._url.scheme == "https" and url.scheme != "https":
            raise self._refused("the realm of its challenge goes back to plain HTTP")
        return url

    def _basic(self, url: URL) -> str:
        """Return the Basic credentials for a URL, if they may be sent there."""
        address = self._address
        if address.username is None:
            raise self._refused("it demands credentials and none are configured")
        if url.scheme != "https" and not is_loopback(url.host) and not address.allow_plain_credentials:
            raise self._refused("credentials are not sent over plain HTTP beyond loopback")
        pair = f"{address.username}:{address.password or ''}".encode()
        return "Basic " + base64.b64encode(pair).decode()

    def _refused(self, reason: str) -> AccessRefusedError:
        return AccessRefusedError(self._address.name, reason, is_login=True)
