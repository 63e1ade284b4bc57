"""Requests to one replica: login, redirects, deadlines, and what went wrong in our words."""

import logging
import ssl
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from registry_proxy.ports.errors import UpstreamLimitError
from registry_proxy.ports.metrics import Observer, UpstreamOutcome, UpstreamRequest
from registry_proxy.protocol.challenge import Challenge, parse_challenges
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.zones import InsideError
from registry_proxy.replica.connections import (
    REDIRECTS,
    REDIRECTS_MAX,
    Deadline,
    ReplicaAddress,
    ReplicaConnections,
    RequestPace,
    Timeouts,
    tls_context,
)
from registry_proxy.replica.failure import (
    ERROR_BODY_MAX_BYTES,
    AccessRefusedError,
    BadUpstreamError,
    ReplicaFailedError,
    limit_error,
    outcome_of,
    translated,
)
from registry_proxy.replica.login import ReplicaLogin
from registry_proxy.tasks import request_id

_log = logging.getLogger(__name__)

_LOGINS_OF_A_PROBE = 2
"""The second one is for a token that has expired early."""

_CROSS_ORIGIN_HEADERS = frozenset({"Accept", "Range"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request to a replica.

    Args:
        method: GET and HEAD follow redirects, no other does.
        target: path and query on the replica's origin, exactly as they are sent.
        scopes: what a token for it must allow.
        headers: besides those that every request has.
        body: sent once; never repeated.
        size_bytes: of a streamed body; None sends it chunked.
        takes_long: the registry works before it answers: the deadline is ``Timeouts.commit``.
    """

    method: str
    target: str
    scopes: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | AsyncIterable[bytes] | None = None
    size_bytes: int | None = None
    takes_long: bool = False


class _PacedBody:
    """A request's body: no deadline while its source thinks, one for each write, and one for the answer."""

    def __init__(self, body: AsyncIterable[bytes], size_bytes: int | None, deadline: Deadline, pace: Timeouts) -> None:
        self._body = body
        self._size_bytes = size_bytes
        self._deadline = deadline
        self._pace = pace
        self.failure: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        sent = 0
        try:
            self._deadline.move(None)
            async for chunk in self._body:
                sent += len(chunk)
                self._deadline.move(self._pace.stall)
                yield chunk
                self._deadline.move(None)
            self._check_size(sent)
        except Exception as error:
            self.failure = error
            raise
        finally:
            self._deadline.move(self._pace.commit)

    def _check_size(self, sent: int) -> None:
        if self._size_bytes is not None and sent != self._size_bytes:
            raise RegistryError(
                ErrorCode.SIZE_INVALID, "the body is shorter or longer than announced", detail={"received": sent}
            )


class Transport:
    """Sends requests to one replica.

    Args:
        address: where it is and how to log in.
        timeouts: in seconds.
        connections: connections; their opener closes them.
        observer: receives the outcome of each request; a body that is cut later counts once more.

    Raises:
        OSError, ssl.SSLError: ``ca_file`` cannot be used.
    """

    def __init__(
        self, address: ReplicaAddress, timeouts: Timeouts, connections: ReplicaConnections, observer: Observer
    ) -> None:
        self.name = address.name
        self.timeouts = timeouts
        self._address = address
        self._connections = connections
        self._observer = observer
        self._tls: ssl.SSLContext | bool = tls_context(address.ca_file)
        parts = urlsplit(address.url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._base_path = parts.path.rstrip("/")
        self._host = (
            f"{address.server_name}:{parts.port}" if address.server_name and parts.port else address.server_name
        )
        self._login = ReplicaLogin(address, connections, timeouts, tls=self._tls)

    # ------------------------------------------------------------ targets

    def target(self, path: str) -> str:
        """Return the target of a path that starts with ``/v2/``."""
        return self._base_path + path

    def path_of(self, target: str) -> str:
        """Return the path, from ``/v2/`` on, of a target."""
        return target.partition("?")[0].removeprefix(self._base_path)

    def local_target(self, location: str, base: str) -> str:
        """Return path and query of a Location or Link that the replica gave, byte for byte; its host means nothing.

        Args:
            location: absolute or relative.
            base: the target of the request it answers.

        Raises:
            BadUpstreamError: it is no URL.
        """
        is_absolute = "://" in location.split("?", 1)[0]
        absolute = location if is_absolute else self._join(self._origin + base, location)
        path_and_query = absolute.partition("://")[2].partition("/")[2].partition("#")[0]
        target = "/" + path_and_query
        if self._base_path and not target.startswith(self._base_path + "/"):
            target = self._base_path + target
        return target

    # ------------------------------------------------------------ requests

    @asynccontextmanager
    async def request(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; yield an answer of any status but 401, 403, 429 and 5xx; close it at the end.

        Raises:
            AccessRefusedError: 401 or 403 despite the credentials.
            BadUpstreamError: a redirect that is not followed.
            ReplicaFailedError: no answer, or 5xx.
            UpstreamLimitError: 429.
        """
        started_at = time.monotonic()
        try:
            response = await self._send(request)
        except (ReplicaFailedError, UpstreamLimitError, AccessRefusedError, BadUpstreamError) as error:
            self.count(request.method, error.outcome, started_at)
            raise
        try:
            self.count(request.method, outcome_of(response.status), started_at)
            yield response
        finally:
            if response.content.is_eof() or response.method == "HEAD":
                response.release()
            else:
                # What is left of the body is not worth reading: the connection goes with it.
                response.close()

    def count(self, method: str, outcome: UpstreamOutcome, started_at: float) -> None:
        """Tell the observer of one outcome; ``started_at`` is on the monotonic clock."""
        duration = time.monotonic() - started_at
        self._observer.observe(UpstreamRequest(self._address.upstream, self.name, method, outcome, duration))

    async def read_body(self, response: aiohttp.ClientResponse, limit_bytes: int) -> bytes | None:
        """Return the whole body, None when it is longer than the limit."""
        chunks: list[bytes] = []
        size_bytes = 0
        async for chunk in self.chunks(response):
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                return None
            chunks.append(chunk)
        return b"".join(chunks)

    async def chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Yield the body as it comes."""
        is_elsewhere = not self.is_here(response)
        while True:
            with translated(self.name, in_body=True, is_elsewhere=is_elsewhere):
                chunk = await self._read(response)
            if not chunk:
                return
            yield chunk

    def is_here(self, response: aiohttp.ClientResponse) -> bool:
        """Tell whether the replica itself answered, and not the storage to which it redirects."""
        return response.url.origin() == URL(self._origin).origin()

    async def read_error(self, response: aiohttp.ClientResponse) -> bytes:
        """Return the body of a refusal; empty when it is none worth having."""
        return await self.read_body(response, ERROR_BODY_MAX_BYTES) or b""

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        async with Deadline(self.timeouts.stall):
            return await response.content.readany()

    async def _send(self, request: Request) -> aiohttp.ClientResponse:
        authorization = await self._login.authorization(request.scopes)
        response = await self._follow(request, authorization)
        if response.status == 401 and self.is_here(response):
            challenges = _challenges_of(response)
            response.close()
            authorization = await self._login.answer(challenges, request.scopes, rejected=authorization)
            if request.body is not None and not isinstance(request.body, bytes):
                raise ReplicaFailedError(f"{self.name}: it asked for a new token in the middle of an upload", "4xx")
            response = await self._follow(request, authorization)
        if response.status == 429 and self.is_here(response) and request.method == "HEAD":
            # A HEAD has no words; a registry that counts it apart may even answer the GET.
            response.close()
            response = await self._follow(replace(request, method="GET"), authorization)
        try:
            await self._check_status(response, authorization)
        except BaseException:
            response.close()
            raise
        return response

    async def _check_status(self, response: aiohttp.ClientResponse, authorization: str | None) -> None:
        status = response.status
        if status < 400:
            return
        if not self.is_here(response):
            # The registry has it; the storage that it points to does not give it: nothing is known.
            reason = f"{self.name}: the storage it redirects to answers {status}"
            raise ReplicaFailedError(reason, outcome_of(status), is_elsewhere=True)
        if status in {401, 403}:
            whose = "a request without credentials" if authorization is None else "the configured credentials"
            raise AccessRefusedError(self.name, f"it answers {status} to {whose}", status)
        if status == 429:
            raise limit_error(self.name, response.headers, await self.read_error(response))
        if status >= 500 and response.method != "PUT":
            raise ReplicaFailedError(f"{self.name}: it answers {status}", "5xx")

    async def _follow(self, request: Request, authorization: str | None) -> aiohttp.ClientResponse:
        """Send it, and follow redirects of GET and HEAD to where the bytes are."""
        url = self._origin + request.target
        for _ in range(REDIRECTS_MAX + 1):
            headers = dict(request.headers)
            is_here = urlsplit(url)[:2] == urlsplit(self._origin)[:2]
            if is_here:
                if self._host is not None:
                    headers["Host"] = self._host
                if authorization is not None:
                    headers["Authorization"] = authorization
                if identifier := request_id.get():
                    headers["X-Request-ID"] = identifier
            else:
                headers = {key: value for key, value in headers.items() if key in _CROSS_ORIGIN_HEADERS}
            response = await self._exchange(request, url, headers, is_here=is_here)
            if response.status not in REDIRECTS:
                return response
            location = response.headers.get("Location", "")
            response.release()
            if request.method not in {"GET", "HEAD"}:
                raise BadUpstreamError(self.name, f"it redirects a {request.method}")
            url = self._next_hop(url, location)
        raise BadUpstreamError(self.name, f"it redirects more than {REDIRECTS_MAX} times")

    def _next_hop(self, url: str, location: str) -> str:
        hop = self._join(url, location)
        parts = urlsplit(hop)
        if not location or parts.scheme not in {"http", "https"} or not parts.hostname:
            raise BadUpstreamError(self.name, "it redirects to what is no http URL")
        if parts.scheme == "http" and urlsplit(url).scheme == "https":
            raise BadUpstreamError(self.name, "it redirects from https to http")
        return hop

    def _join(self, base: str, location: str) -> str:
        """Return the URL that a Location or Link means. Raises BadUpstreamError where it is none."""
        try:
            joined = urljoin(base, location)
            URL(joined)
        except ValueError as error:
            raise BadUpstreamError(self.name, "it sends us to what is no URL") from error
        return joined

    async def _exchange(
        self, request: Request, url: str, headers: dict[str, str], *, is_here: bool
    ) -> aiohttp.ClientResponse:
        pace = self.timeouts
        wait = pace.commit if request.takes_long else pace.first_byte
        paced: _PacedBody | None = None
        try:
            with translated(self.name, is_elsewhere=not is_here):
                async with Deadline(pace.connect + wait) as deadline:
                    data: bytes | AsyncIterable[bytes] | None = None
                    if isinstance(request.body, bytes) or request.body is None:
                        data = request.body
                    else:
                        data = paced = _PacedBody(request.body, request.size_bytes, deadline, pace)
                    if request.size_bytes is not None:
                        headers["Content-Length"] = str(request.size_bytes)
                    return await self._session(url, is_here=is_here).request(
                        request.method,
                        URL(url, encoded=True),
                        headers=headers,
                        data=data,
                        allow_redirects=False,
                        ssl=self._tls,
                        server_hostname=self._address.server_name if is_here else None,
                        timeout=aiohttp.ClientTimeout(total=None, sock_connect=pace.connect),
                        trace_request_ctx=RequestPace(deadline, wait),
                    )
        except ReplicaFailedError as error:
            if not is_here:
                self._check_hop(url, error)
            if paced is not None and paced.failure is not None:
                # It is the client that failed, not the replica.
                raise paced.failure from None
            raise

    def _session(self, url: str, *, is_here: bool) -> aiohttp.ClientSession:
        if is_here:
            return self._connections.data
        return self._connections.elsewhere(is_listed=urlsplit(url).hostname in self._address.redirect_hosts)

    def _check_hop(self, url: str, error: ReplicaFailedError) -> None:
        """Raise the 502 of a redirect that is not followed; where it led inside is for the log, and not for clients."""
        cause = error.__cause__
        if isinstance(cause, aiohttp.InvalidURL):
            raise BadUpstreamError(self.name, "it redirects to what is no URL") from error
        if not isinstance(cause, aiohttp.ClientConnectorError) or not isinstance(cause.os_error, InsideError):
            return
        _log.warning(
            "replica %s/%s redirects to %s, which is further inside the network than the replica itself. Where this is "
            "its storage, list the host in its redirect_hosts; link-local addresses and metadata services are never "
            "asked",
            self._address.upstream,
            self.name,
            urlsplit(url).netloc[:300],
        )
        raise BadUpstreamError(self.name, "it redirects to an address inside the network") from error

    # ------------------------------------------------------------ probes

    async def probe(self) -> None:
        """Ask ``/v2/`` on a connection of its own; return when it is a registry that takes our credentials.

        Raises:
            AccessRefusedError, BadUpstreamError (no registry), ReplicaFailedError.
        """
        with suppress(UpstreamLimitError), translated(self.name):
            async with Deadline(self.timeouts.probe):
                await self._probe()

    async def _probe(self) -> None:
        authorization = None
        status, challenges, is_registry = await self._ask_version(None)
        for _ in range(_LOGINS_OF_A_PROBE):
            if status != 401:
                break
            authorization = await self._login.introduce(challenges, rejected=authorization)
            if authorization is None:
                return
            status, challenges, is_registry = await self._ask_version(authorization)
        if status in {401, 403}:
            raise AccessRefusedError(self.name, f"it answers {status} to the configured credentials", status)
        if status >= 500:
            raise ReplicaFailedError(f"{self.name}: it answers {status}", "5xx")
        if status == 429:
            return
        if status != 200 or not is_registry:
            raise BadUpstreamError(self.name, f"what answers GET /v2/ with {status} is no registry")

    async def _ask_version(self, authorization: str | None) -> tuple[int, list[Challenge], bool]:
        headers = {} if authorization is None else {"Authorization": authorization}
        if self._host is not None:
            headers["Host"] = self._host
        async with self._connections.probes.get(
            URL(self._origin + self.target("/v2/"), encoded=True),
            headers=headers,
            allow_redirects=False,
            ssl=self._tls,
            server_hostname=self._address.server_name,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.timeouts.connect),
        ) as response:
            is_registry = (
                "Docker-Distribution-API-Version" in response.headers or response.content_type == "application/json"
            )
            return response.status, _challenges_of(response), is_registry


def _challenges_of(response: aiohttp.ClientResponse) -> list[Challenge]:
    return parse_challenges(response.headers.getall("WWW-Authenticate", ()))
