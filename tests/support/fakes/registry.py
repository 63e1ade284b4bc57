"""A registry in memory on a real socket: records its requests, and misbehaves as a test says."""

import asyncio
import base64
import gzip
import json
import re
import ssl
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

from registry_proxy.protocol.descriptor import OCI_MANIFEST
from registry_proxy.protocol.reference import Digest, digest_of, parse_digest

_ROUTES = re.compile(
    r"/v2/(?:(?P<name>.+)/(?P<kind>manifests|blobs/uploads|blobs|tags)/(?P<slot>[^/]*)|(?P<catalog>_catalog)?)"
)


@dataclass(frozen=True)
class Recorded:
    """A request as it came in; ``target`` is the raw path with its query, header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]


@dataclass
class Fault:
    """A fault for requests whose method and target match, ``times`` times (None: always).

    ``target`` is searched as a regular expression. The first matching
    fault applies; all that it leaves open is done right.
    """

    target: str = ""
    method: str | None = None
    times: int | None = None
    status: int | None = None  # answer this, with body and headers below
    body: bytes | None = None  # with no status: the bytes of the right answer are replaced, a lie
    headers: Mapping[str, str] = field(default_factory=dict)  # set on the answer
    omit: tuple[str, ...] = ()  # headers left out of the answer
    is_raw: bool = False  # headers are sent as they are, with characters that aiohttp refuses to send
    delay_seconds: float = 0
    stall: bool = False  # no answer until the registry is stopped or released
    stall_after: int | None = None  # the same after this many bytes of the body
    cut_after: int | None = None  # close the connection after this many bytes of the body
    ignore_range: bool = False
    redirect_to: str | None = None  # 307 to this base URL, same path and query
    only_found: bool = False  # redirect only existing objects, for callers with the right
    gzip: bool = False
    html: bool = False  # 200 with a page of HTML

    def applies_to(self, request: Recorded) -> bool:
        """Tell whether the fault is for the request."""
        return (
            self.times != 0
            and self.method in {None, request.method}
            and re.search(self.target, request.target) is not None
        )


def _scope(repository: str | None, actions: str) -> str | None:
    return f"repository:{repository}:{actions}" if repository else None


@dataclass(frozen=True)
class TokenService:
    """A registry's token service: at a separate path, for the ``bearer`` pair or, without one, for anybody.

    ``scope`` makes the scope of a challenge of the requested repository, None for /v2/ and the catalog;
    ``refused`` is the status for tokens whose scopes match the regular expression.
    """

    path: str = "/token"
    service: str = "fake"
    scope: Callable[[str | None, str], str | None] = _scope
    refused: tuple[str, int] | None = None


@dataclass
class _Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def _error(status: int, code: str) -> _Answer:
    body = json.dumps({"errors": [{"code": code, "message": code.lower(), "detail": None}]}).encode()
    return _Answer(status, body, {"Content-Type": "application/json"})


def _redirect(base_url: str, request: web.Request) -> _Answer:
    return _Answer(307, b"", {"Location": base_url + request.raw_path})


@dataclass
class _Contents:
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    manifests: dict[Digest, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)


class FakeRegistry:
    """An async context manager around a server on a free port of 127.0.0.1.

    ``basic`` (user, password) demands Basic; with ``bearer`` the same pair buys tokens at ``/token``, or as ``tokens``
    says, which alone gives them to anybody. ``page_size`` limits lists and makes Link headers. ``mixes`` are the kinds,
    "blobs" and "manifests", that it answers for in any repository. With one it does as zot with its dedupe: a blob that
    is requested is in the repository from then on, and a manifest without its blobs is MANIFEST_INVALID. ``stop`` and
    ``start`` keep port and contents.
    """

    def __init__(
        self,
        *,
        basic: tuple[str, str] | None = None,
        bearer: tuple[str, str] | None = None,
        tokens: TokenService | None = None,
        page_size: int | None = None,
        tls: ssl.SSLContext | None = None,
        mixes: Collection[str] = (),
    ) -> None:
        self.mixes = mixes
        self.requests: list[Recorded] = []
        self.faults: list[Fault] = []
        self.repositories: dict[str, _Contents] = {}
        self.uploads: dict[str, bytearray] = {}
        self.realm: str | None = None  # the challenge's realm when it is not our own /token
        self.tokens: set[str] = set()
        self._service = tokens or TokenService()
        self._demands_token = bearer is not None or tokens is not None
        self.port = 0
        self._basic, self._bearer, self._page_size, self._tls = basic, bearer, page_size, tls
        self._released = asyncio.Event()
        self._arrived = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    # ------------------------------------------------------------ life

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, on its earlier port if it had one."""
        self._released = asyncio.Event()
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{tail:.*}", self._handle)
        application.on_response_prepare.append(_leave_out)
        self._runner = web.AppRunner(application, access_log=None, auto_decompress=False, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and close every connection; stalled requests end."""
        self._released.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def release(self) -> None:
        """Let the stalled requests continue normally."""
        self._released.set()
        self._released = asyncio.Event()

    # ------------------------------------------------------------ contents and records

    def of(self, repository: str) -> _Contents:
        """Return its contents of a repository, made when absent."""
        return self.repositories.setdefault(repository, _Contents())

    def add_blob(self, repository: str, content: bytes) -> Digest:
        """Put a blob into a repository."""
        digest = digest_of(content)
        self.of(repository).blobs[digest] = content
        return digest

    def add_manifest(self, repository: str, body: bytes, *tags: str, media_type: str = OCI_MANIFEST) -> Digest:
        """Put a manifest into a repository, with the given tags on it."""
        digest = digest_of(body)
        self.of(repository).manifests[digest] = (media_type, body)
        self.of(repository).tags.update(dict.fromkeys(tags, digest))
        return digest

    def _find_anywhere(self, kind: str, name: str, digest: Digest) -> None:
        """Copy a content into a repository from any other, where this registry mixes repositories."""
        for contents in list(self.repositories.values()) if kind in self.mixes else ():
            if kind == "blobs" and digest in contents.blobs:
                self.of(name).blobs[digest] = contents.blobs[digest]
            if kind == "manifests" and digest in contents.manifests:
                self.of(name).manifests[digest] = contents.manifests[digest]

    def _misses_blobs(self, name: str, body: bytes) -> bool:
        document = json.loads(body)
        descriptors = [document[key] for key in ("config",) if key in document] + (document.get("layers") or [])
        return any(parse_digest(each["digest"]) not in self.of(name).blobs for each in descriptors)

    def inject(self, fault: Fault) -> Fault:
        """Add a fault; the newest is tried first."""
        self.faults.insert(0, fault)
        return fault

    def count(self, method: str, target: str = "") -> int:
        """Return the number of requests with this method that matched the regular expression."""
        return sum(1 for r in self.requests if r.method == method and re.search(target, r.target))

    async def wait_for(self, method: str, target: str = "", count: int = 1) -> None:
        """Return once that many such requests have arrived."""
        async with asyncio.timeout(30), self._arrived:
            await self._arrived.wait_for(lambda: self.count(method, target) >= count)

    # ------------------------------------------------------------ answering

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        recorded = Recorded(
            request.method, request.raw_path, {key.lower(): value for key, value in request.headers.items()}
        )
        self.requests.append(recorded)
        async with self._arrived:
            self._arrived.notify_all()
        fault = next((fault for fault in self.faults if fault.applies_to(recorded)), Fault())
        if fault.times is not None:
            fault.times -= 1
        released = self._released
        await asyncio.sleep(fault.delay_seconds)
        if fault.stall:
            await released.wait()
        if fault.status is not None:
            answer = _Answer(fault.status, fault.body or b"")
        elif fault.html:
            answer = _Answer(200, b"<html><body>Sign in</body></html>", {"Content-Type": "text/html"})
        elif fault.redirect_to is not None and not fault.only_found:
            answer = _redirect(fault.redirect_to, request)
        else:
            answer = await self._answer(request, ignore_range=fault.ignore_range)
            answer.body = answer.body if fault.body is None else fault.body
            if fault.redirect_to is not None and answer.status < 300:
                answer = _redirect(fault.redirect_to, request)
        return await self._send(request, answer, fault, released)

    @staticmethod
    async def _send(request: web.Request, answer: _Answer, fault: Fault, released: asyncio.Event) -> web.StreamResponse:
        if fault.gzip:
            answer.body = gzip.compress(answer.body)
            answer.headers["Content-Encoding"] = "gzip"
        answer.headers |= fault.headers
        if fault.is_raw:
            return _send_raw(request, answer)
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.headers.update(fault.headers)  # several of one name stay several
        if "Content-Length" not in fault.omit:
            response.content_length = len(answer.body)
        request[_OMIT] = fault.omit
        await response.prepare(request)
        if request.method != "HEAD":
            stop = fault.cut_after if fault.cut_after is not None else fault.stall_after
            await response.write(answer.body[:stop])
            if fault.cut_after is not None and request.transport is not None:
                request.transport.close()
                return response
            if stop is not None:
                await released.wait()
                await response.write(answer.body[stop:])
        return response

    async def _answer(self, request: web.Request, *, ignore_range: bool) -> _Answer:
        if request.path == self._service.path:
            return self._token(request)
        match = _ROUTES.fullmatch(request.path)
        if (refusal := self._refusal(request, match)) is not None:
            return refusal
        if match is None:
            return _error(404, "NAME_UNKNOWN")
        if match["kind"] is None:
            return self._catalog(request) if match["catalog"] else _Answer(200, b"{}", _API)
        answers: dict[str, Callable[[], _Answer]] = {
            "manifests": lambda: self._manifest(request, match["name"], match["slot"], body),
            "blobs": lambda: self._blob(request, match["name"], match["slot"], ignore_range=ignore_range),
            "blobs/uploads": lambda: self._upload(request, match["name"], match["slot"], body),
            "tags": lambda: self._tags(request, match["name"]),
        }
        body = await request.read()
        return answers[match["kind"]]()

    # ------------------------------------------------------------ credentials

    def _token(self, request: web.Request) -> _Answer:
        if self._bearer is not None and request.headers.get("Authorization") != _basic(self._bearer):
            return _error(401, "UNAUTHORIZED")
        pattern, status = self._service.refused or ("^$", 0)
        if any(re.search(pattern, scope) for scope in request.query.getall("scope", [])):
            return _error(status, "DENIED")
        token = uuid.uuid4().hex
        self.tokens.add(token)
        return _Answer(200, json.dumps({"token": token, "expires_in": 300}).encode(), _JSON.copy())

    def _refusal(self, request: web.Request, match: re.Match[str] | None) -> _Answer | None:
        sent = request.headers.get("Authorization", "")
        if self._basic is not None and sent != _basic(self._basic):
            challenge = 'Basic realm="fake"'
        elif self._demands_token and sent.removeprefix("Bearer ") not in self.tokens:
            realm = self.realm or f"{self.url}{self._service.path}"
            actions = "pull" if request.method in {"GET", "HEAD"} else "pull,push"
            scope = self._service.scope(match["name"] if match else None, actions)
            challenge = f'Bearer realm="{realm}",service="{self._service.service}"'
            challenge += f',scope="{scope}"' if scope else ""
        else:
            return None
        answer = _error(401, "UNAUTHORIZED")
        answer.headers |= {"WWW-Authenticate": challenge} | _API
        return answer

    # ------------------------------------------------------------ contents

    def _manifest(self, request: web.Request, name: str, slot: str, body: bytes) -> _Answer:
        if ":" in slot and request.method != "PUT":
            self._find_anywhere("manifests", name, parse_digest(slot))
        contents = self.repositories.get(name, _Contents())
        if request.method == "PUT":
            if self.mixes and self._misses_blobs(name, body):
                return _error(400, "MANIFEST_INVALID")
            tags = () if ":" in slot else (slot,)
            digest = self.add_manifest(name, body, *tags, media_type=request.headers["Content-Type"])
            return _Answer(201, b"", {"Docker-Content-Digest": str(digest), "Location": request.path})
        wanted = parse_digest(slot) if ":" in slot else contents.tags.get(slot)
        if wanted is None or wanted not in contents.manifests:
            return _error(404, "MANIFEST_UNKNOWN")
        if request.method == "DELETE" and ":" not in slot:
            del contents.tags[slot]
            return _Answer(202)
        if request.method == "DELETE":
            del contents.manifests[wanted]
            contents.tags = {tag: digest for tag, digest in contents.tags.items() if digest != wanted}
            return _Answer(202)
        media_type, content = contents.manifests[wanted]
        return _Answer(200, content, {"Content-Type": media_type, "Docker-Content-Digest": str(wanted)})

    def _blob(self, request: web.Request, name: str, slot: str, *, ignore_range: bool) -> _Answer:
        digest = parse_digest(slot)
        self._find_anywhere("blobs", name, digest)
        blobs = self.repositories.get(name, _Contents()).blobs
        if digest not in blobs:
            return _error(404, "BLOB_UNKNOWN")
        if request.method == "DELETE":
            del blobs[digest]
            return _Answer(202)
        content = blobs[digest]
        answer = _Answer(200, content, {"Docker-Content-Digest": str(digest)})
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if wanted and not ignore_range:
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            if first >= len(content):
                return _Answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            answer.status, answer.body = 206, content[first : last + 1]
            answer.headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return answer

    def _upload(self, request: web.Request, name: str, session_id: str, body: bytes) -> _Answer:
        if request.method == "POST":
            mount, source = request.query.get("mount"), request.query.get("from", "")
            if mount:
                self._find_anywhere("blobs", source, parse_digest(mount))
            if mount and source in self.repositories and parse_digest(mount) in self.of(source).blobs:
                self.add_blob(name, self.of(source).blobs[parse_digest(mount)])
                return _Answer(201, b"", {"Location": f"/v2/{name}/blobs/{mount}"})
            session_id = uuid.uuid4().hex
            self.uploads[session_id] = bytearray()
        elif session_id not in self.uploads:
            return _error(404, "BLOB_UPLOAD_UNKNOWN")
        self.uploads[session_id] += body
        if request.method == "DELETE":
            del self.uploads[session_id]
            return _Answer(204)
        if request.method == "PUT":
            content = bytes(self.uploads[session_id])
            if str(digest_of(content)) != request.query.get("digest"):
                return _error(400, "DIGEST_INVALID")
            del self.uploads[session_id]
            digest = self.add_blob(name, content)
            return _Answer(201, b"", {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": str(digest)})
        location = f"{self.url}/v2/{name}/blobs/uploads/{session_id}?_state=a%2Fb%3D%3d+{len(self.uploads[session_id])}"
        end = max(len(self.uploads[session_id]) - 1, 0)
        return _Answer(202, b"", {"Location": location, "Range": f"0-{end}", "Docker-Upload-UUID": session_id})

    def _tags(self, request: web.Request, name: str) -> _Answer:
        if name not in self.repositories:
            return _error(404, "NAME_UNKNOWN")
        return self._page(request, "tags", sorted(self.of(name).tags), {"name": name})

    def _catalog(self, request: web.Request) -> _Answer:
        return self._page(request, "repositories", sorted(self.repositories), {})

    def _page(self, request: web.Request, key: str, names: list[str], document: dict[str, object]) -> _Answer:
        left = [name for name in names if name > request.query.get("last", "")]
        asked = int(request.query.get("n", len(left)))
        page = left[: asked if self._page_size is None else min(asked, self._page_size)]
        answer = _Answer(200, json.dumps(document | {key: page}).encode(), _JSON.copy())
        if len(page) < len(left):
            answer.headers["Link"] = f'<{request.path}?n={len(page)}&last={page[-1]}>; rel="next"'
        return answer


def _send_raw(request: web.Request, answer: _Answer) -> web.StreamResponse:
    assert request.transport is not None
    headers = answer.headers | {"Content-Length": str(len(answer.body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {answer.status} As scripted", *(f"{key}: {value}" for key, value in headers.items())]
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    request.transport.write(head if request.method == "HEAD" else head + answer.body)
    request.transport.close()
    return web.StreamResponse()


_OMIT = web.RequestKey("omit", tuple[str, ...])


async def _leave_out(request: web.Request, response: web.StreamResponse) -> None:
    """Remove headers, also those that aiohttp adds by itself."""
    for header in request.get(_OMIT, ()):
        response.headers.popall(header, None)


_API = {"Docker-Distribution-API-Version": "registry/2.0", "Content-Type": "application/json"}
_JSON = {"Content-Type": "application/json"}


def _basic(pair: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(":".join(pair).encode()).decode()
