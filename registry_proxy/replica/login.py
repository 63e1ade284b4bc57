"""Logging in to a replica: Basic, and Bearer tokens by its challenge (token-spec, token.md).

A refusal belongs to the scopes it was met with: it never changes what is sent for others.
"""

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

import aiohttp
from cachetools import FIFOCache
from yarl import URL

from registry_proxy.protocol.addresses import is_loopback
from registry_proxy.protocol.challenge import Challenge
from registry_proxy.replica.connections import REDIRECTS, REDIRECTS_MAX, ReplicaAddress, ReplicaConnections, Timeouts
from registry_proxy.replica.failure import AccessRefusedError, ReplicaFailedError, limit_error, outcome_of, translated

REFUSED_SECONDS = 5.0
"""Time for which a refusal of the token endpoint is remembered, and a token that was just replaced is kept."""

NO_SCOPE = ("",)
_REMEMBERED = 1000
_TOKEN_ANSWER_MAX_BYTES = 256 * 1024
_TOKEN_MAX_LENGTH = 16 * 1024  # more than any server takes in a header; a thousand are remembered for each replica
_DEFAULT_LIFETIME_SECONDS = 60.0  # token-spec: when expires_in is absent


@dataclass(frozen=True, slots=True)
class _TokenRequest:
    """The source of a token, at a realm that was checked, and its scopes."""

    realm: URL
    service: str | None
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Way:
    """The authorization of requests of some scopes: by a token, or by Basic where there is none to ask for."""

    token: _TokenRequest | None


@dataclass(frozen=True, slots=True)
class _Token:
    header: str
    expires_at: float
    replaced_at: float = float("-inf")  # when it took the place of one that was rejected


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str
    status: int | None
    until: float


class ReplicaLogin:
    """The ``Authorization`` for one replica. Tokens are kept by scope until they expire."""

    def __init__(
        self,
        address: ReplicaAddress,
        connections: ReplicaConnections,
        timeouts: Timeouts,
        *,
        tls: ssl.SSLContext | bool,
    ) -> None:
        self._address = address
        self._connections = connections
        self._timeouts = timeouts
        self._tls = tls
        self._url = URL(address.url)
        self._ways: FIFOCache[tuple[str, ...], _Way] = FIFOCache(_REMEMBERED)
        self._usual_way: _Way | None = None
        self._tokens: FIFOCache[_TokenRequest, _Token] = FIFOCache(_REMEMBERED)
        self._refusals: FIFOCache[_TokenRequest, _Refusal] = FIFOCache(_REMEMBERED)
        self._locks: WeakValueDictionary[_TokenRequest, asyncio.Lock] = WeakValueDictionary()

    async def authorization(self, scopes: tuple[str, ...]) -> str | None:
        """Return what to send without waiting for a challenge: what was demanded before, for other scopes maybe.

        None has the replica say by its challenge what it wants.

        Raises:
            AccessRefusedError: its challenge for these scopes led to a refusal a moment ago.
            ReplicaFailedError, UpstreamLimitError: the token endpoint does not answer, asks us to wait.
        """
        way = self._ways.get(scopes)
        if way is not None and way.token is not None:
            self._check_not_refused(way.token)
        if way is None and (way := self._usual_way) is not None and way.token is not None:
            way = _Way(replace(way.token, scopes=scopes))
        try:
            return None if way is None else await self._header(way, rejected=None)
        except AccessRefusedError:
            return None

    async def answer(self, challenges: Sequence[Challenge], scopes: tuple[str, ...], rejected: str | None) -> str:
        """Return what to send after a 401: a token where one can be had, else Basic.

        Args:
            challenges: of its WWW-Authenticate.
            scopes: what the request needs; the challenge's own scope goes before them.
            rejected: what had been sent.

        Raises:
            AccessRefusedError: there is nothing better to send.
            ReplicaFailedError, UpstreamLimitError: the token endpoint does not answer, asks us to wait.
        """
        refusal: AccessRefusedError | None = None
        for challenge in sorted(challenges, key=lambda one: one.scheme != "bearer"):
            if challenge.scheme not in {"bearer", "basic"}:
                continue
            try:
                way = self._way(challenge, scopes)
                header = await self._header(way, rejected)
            except AccessRefusedError as error:
                refusal = refusal or error
                continue
            self._ways[scopes] = way
            self._usual_way = way
            return header
        raise refusal or self._not_met(challenges)

    async def introduce(self, challenges: Sequence[Challenge], rejected: str | None) -> str | None:
        """Return what to send after a 401 to ``/v2/``; None when that says nothing about our credentials.

        The scope in the challenge of ``/v2/`` may be a placeholder (Quay, GitLab, GHCR), for which nobody gets a token.

        Args:
            challenges: of its WWW-Authenticate.
            rejected: what had been sent.

        Raises:
            AccessRefusedError: the credentials are refused.
            ReplicaFailedError, UpstreamLimitError: the token endpoint does not answer, asks us to wait.
        """
        has_scope = any("scope" in one.parameters for one in challenges)
        if has_scope and rejected and any(one.parameters.get("error") == "insufficient_scope" for one in challenges):
            return None
        try:
            return await self.answer(challenges, NO_SCOPE, rejected)
        except AccessRefusedError:
            if not has_scope:
                raise
            if rejected is not None:
                return None
        try:
            return await self.answer([_without_scope(one) for one in challenges], NO_SCOPE, rejected)
        except AccessRefusedError as error:
            if error.answered is None or (error.answered == 401 and self._address.username is not None):
                raise
            return None

    def _way(self, challenge: Challenge, scopes: tuple[str, ...]) -> _Way:
        if challenge.scheme == "basic":
            return _Way(None)
        realm = self._check_url(challenge.parameters.get("realm", ""), "the realm of its challenge")
        scope = challenge.parameters.get("scope")
        way = _Way(_TokenRequest(realm, challenge.parameters.get("service"), (scope, *scopes[1:]) if scope else scopes))
        self._ways[scopes] = way
        return way

    async def _header(self, way: _Way, rejected: str | None) -> str:
        if way.token is not None:
            return await self._token(way.token, rejected)
        header = self._basic(self._url)
        if header == rejected:
            raise self._refused("it refuses the configured user name and password", 401)
        return header

    # ------------------------------------------------------------ tokens

    async def _token(self, request: _TokenRequest, rejected: str | None) -> str:
        lock = self._locks.get(request)
        if lock is None:
            lock = self._locks[request] = asyncio.Lock()
        async with lock:
            self._check_not_refused(request)
            now, kept = time.monotonic(), self._tokens.get(request)
            is_rejected = kept is not None and kept.header == rejected
            if kept is not None and kept.expires_at > now and not is_rejected:
                return kept.header
            if kept is not None and is_rejected and now < kept.replaced_at + REFUSED_SECONDS:
                raise self._refused("it refuses the tokens that it has us fetch", 401)
            try:
                token = await self._fetch(request)
            except AccessRefusedError as error:
                self._refusals[request] = _Refusal(error.reason, error.answered, now + REFUSED_SECONDS)
                raise
            self._tokens[request] = replace(token, replaced_at=now) if is_rejected else token
            return token.header

    def _check_not_refused(self, request: _TokenRequest) -> None:
        refusal = self._refusals.get(request)
        if refusal is not None and time.monotonic() < refusal.until:
            raise self._refused(refusal.reason, refusal.status)

    async def _fetch(self, request: _TokenRequest) -> _Token:
        name = f"{self._address.name} (token endpoint)"
        started_at = time.monotonic()
        with translated(name, is_elsewhere=True):
            async with asyncio.timeout(self._timeouts.connect + self._timeouts.first_byte):
                status, headers, body = await self._ask(request)
        if status in {400, 401, 403}:
            whose = "a request without credentials" if self._address.username is None else "the configured credentials"
            raise self._refused(f"its token endpoint answers {status} to {whose}", status)
        if status == 429:
            raise limit_error(name, headers, body)
        if status != 200:
            raise ReplicaFailedError(f"{name}: it answers {status}", outcome_of(status))
        return self._parse_token(body, started_at)

    async def _ask(self, request: _TokenRequest) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body of the token endpoint's answer, after redirects on its own host."""
        query = [("service", request.service)] if request.service else []
        query += [("scope", scope) for scope in request.scopes if scope]
        url = request.realm.extend_query(query)
        for _ in range(REDIRECTS_MAX + 1):
            headers = {} if self._address.username is None else {"Authorization": self._basic(url)}
            session = self._session(url)
            async with session.get(url, headers=headers, allow_redirects=False, ssl=self._tls) as response:
                if response.status not in REDIRECTS:
                    return response.status, response.headers, await _read_some(response.content)
                url = self._next_hop(url, response.headers.get("Location", ""))
        raise self._refused(f"its token endpoint redirects more than {REDIRECTS_MAX} times")

    def _session(self, url: URL) -> aiohttp.ClientSession:
        """Return the pool for a URL; at another port of the replica's host its name may mean another address."""
        is_listed = url.host in self._address.realm_hosts
        if is_listed or url.origin() == self._url.origin():
            return self._connections.tokens
        return self._connections.elsewhere(is_listed=False)

    def _next_hop(self, url: URL, location: str) -> URL:
        what = "a redirect of its token endpoint"
        try:
            hop = self._check_url(str(url.join(URL(location))), what)
        except ValueError as error:
            raise self._refused(f"{what} is to what is no URL") from error
        if url.scheme == "https" and hop.scheme != "https":
            raise self._refused(f"{what} goes back to plain HTTP")
        return hop

    def _parse_token(self, body: bytes, started_at: float) -> _Token:
        try:
            answer = json.loads(body)
            token = answer.get("token") or answer["access_token"]
            lifetime = float(answer.get("expires_in") or _DEFAULT_LIFETIME_SECONDS)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ReplicaFailedError(f"{self._address.name}: its token endpoint gives no token", "5xx") from error
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise ReplicaFailedError(f"{self._address.name}: its token endpoint gives no token", "5xx")
        if len(token) > _TOKEN_MAX_LENGTH:
            raise ReplicaFailedError(f"{self._address.name}: its token is longer than {_TOKEN_MAX_LENGTH} bytes", "5xx")
        margin = min(10.0, lifetime / 4)  # on its way a token must not expire
        return _Token(f"Bearer {token}", started_at + lifetime - margin)

    # ------------------------------------------------------------ who gets the password

    def _check_url(self, text: str, what: str) -> URL:
        """Return a URL at which a token may be asked for. Raises AccessRefusedError; ``what`` it is, for the reason."""
        try:
            url = URL(text)
        except ValueError as error:
            raise self._refused(f"{what} is not a URL") from error
        allowed = {self._url.host, *self._address.realm_hosts}
        if url.scheme not in {"http", "https"} or url.host not in allowed or url.user is not None:
            raise self._refused(f"{what} is on another host, {(url.host or text)[:100]!r}")
        if self._url.scheme == "https" and url.scheme != "https":
            raise self._refused(f"{what} goes back to plain HTTP")
        return url

    def _basic(self, url: URL) -> str:
        """Return the Basic credentials for a URL, if they may be sent there."""
        address = self._address
        if address.username is None:
            raise self._refused("it demands credentials and none are configured")
        if url.scheme != "https" and not is_loopback(url.host or "") and not address.allow_plain_credentials:
            raise self._refused("credentials are not sent over plain HTTP beyond loopback")
        pair = f"{address.username}:{address.password or ''}".encode()
        return "Basic " + base64.b64encode(pair).decode()

    def _not_met(self, challenges: Sequence[Challenge]) -> AccessRefusedError:
        if not challenges:
            return self._refused("it answers 401 without a challenge")
        return self._refused(f"it demands the scheme {', '.join(one.scheme[:20] for one in challenges[:3])}")

    def _refused(self, reason: str, answered: int | None = None) -> AccessRefusedError:
        return AccessRefusedError(self._address.name, reason, answered)


def _without_scope(challenge: Challenge) -> Challenge:
    return Challenge(challenge.scheme, {key: text for key, text in challenge.parameters.items() if key != "scope"})


async def _read_some(content: aiohttp.StreamReader) -> bytes:
    body = await content.read(_TOKEN_ANSWER_MAX_BYTES)
    while len(body) < _TOKEN_ANSWER_MAX_BYTES and (more := await content.readany()):
        body += more
    return body
