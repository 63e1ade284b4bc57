"""Hot pulls by digest, answered where their bytes arrive: no task and no parser, at a third of the price.

What is answered here is answered as in ``registry.py``, by the same steps; what is not fully understood, not allowed or
not at hand is left, untouched, to the server. benchmarks/README.md has the figures.
"""

import asyncio
import re
import time
from dataclasses import dataclass
from email.utils import formatdate

from multidict import CIMultiDict, CIMultiDictProxy

from registry_proxy.edge.authenticate import Authenticator
from registry_proxy.edge.middleware import Ended, Measure, RequestIds, answer_headers
from registry_proxy.edge.origin import Origins
from registry_proxy.edge.registry import API_VERSION, RANGES_TAKEN, content_headers
from registry_proxy.edge.send import SMALL_BYTES
from registry_proxy.http.guarded import peer_address
from registry_proxy.operations.pull import Pull
from registry_proxy.operations.warm import Prefetch
from registry_proxy.ports.metrics import CacheRequest, Observer, SentBytes
from registry_proxy.ports.names import CacheResult, ContentKind, RoutedRepository
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.endpoints import Operation, RegistryRequest, parse_request
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest
from registry_proxy.tasks import request_id

_KINDS = {
    Operation.GET_MANIFEST: ContentKind.MANIFEST,
    Operation.HEAD_MANIFEST: ContentKind.MANIFEST,
    Operation.GET_BLOB: ContentKind.BLOB,
    Operation.HEAD_BLOB: ContentKind.BLOB,
}
_HEAD_MAX_BYTES = 8190  # room for any token; below the server's own bounds, which refuse nothing that is taken here
_REMEMBERED_HEADS_BYTES = 4 * 1024 * 1024
_HEAD_BYTES = 1500  # of a head that is remembered, besides its text, which it holds twice
_REQUEST_LINE = re.compile(
    r"(GET|HEAD) (/v2/[a-z0-9._/-]+/(?:manifests|blobs)/sha(?:256|512):[0-9a-f]+)(?:\?([A-Za-z0-9=&._:%-]*))? HTTP/1\.1"
)
_FIELD = re.compile(r"([A-Za-z-]+): ([!-~](?:[ -~]*[!-~])?)")
_FIELDS = frozenset(
    [
        "accept",
        "accept-encoding",
        "accept-language",
        "authorization",
        "cache-control",
        "connection",
        "docker-upload-uuid",
        "host",
        "pragma",
        "traceparent",
        "tracestate",
        "user-agent",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
        "x-request-id",
    ]
)
"""Fields that ask for nothing but the plain answer; any other, a condition or a body, is for the server."""


@dataclass(frozen=True, slots=True)
class _Head:
    method: str
    path: str
    headers: CIMultiDictProxy[str]
    wanted: RegistryRequest
    digest: Digest
    kind: ContentKind


@dataclass(frozen=True, slots=True)
class _Caller:
    headers: CIMultiDictProxy[str]
    remote: str | None


class HotPulls:
    """Answers GET and HEAD of manifests and small blobs by digest that are allowed and here.

    Args:
        authenticator: decides.
        pull: the verbs of pulling.
        observer: is told what was sent.
        origins: knows who calls.
        ids: names requests.
        measure: counts and logs them.
        prefetch: is told who got which manifest; None where nothing is fetched ahead.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        pull: Pull,
        observer: Observer,
        origins: Origins,
        ids: RequestIds,
        measure: Measure,
        prefetch: Prefetch | None = None,
    ) -> None:
        self._prefetch = prefetch
        self._authenticator = authenticator
        self._pull = pull
        self._observer = observer
        self._origins = origins
        self._ids = ids
        self._measure = measure
        # What bytes mean as a request, which no change of rights can alter. Clients repeat themselves.
        self._heads: dict[bytes, _Head] = {}
        self._heads_bytes = 0
        self._date = (0, "")

    def answer(self, data: bytes, transport: asyncio.Transport) -> bytes | None:
        """Return the whole answer to the bytes of one request; None when it is for the server, and nothing was done."""
        started = time.perf_counter()
        head = self._heads.get(data) or self._read(data)
        if head is None:
            return None
        permitted = self._authenticator.authorize_now(head.headers.getall("Authorization", ()), head.wanted)
        if permitted is None:
            return None
        authorized, decision = permitted
        if head.method == "HEAD" and self._authenticator.comes_to_push(authorized, head.wanted):
            return None  # a pusher leaves out what it is told is there: the replicas are asked
        found = self._find(head, authorized.routed)
        if found is None:
            return None
        # Nothing can fail from here on: now it is counted.
        descriptor, body = found
        if head.method == "GET":
            self._observer.observe(CacheRequest(head.kind, CacheResult.HIT))
            self._observer.observe(SentBytes("cache", len(body)))
            if self._prefetch is not None and head.kind is ContentKind.MANIFEST and authorized.routed is not None:
                self._prefetch.manifest_sent(authorized.subject, authorized.routed, head.digest)
        caller = _Caller(head.headers, peer_address(transport))
        identifier = self._ids.name(caller)
        headers = content_headers(descriptor, CacheResult.HIT) | API_VERSION | answer_headers(identifier)
        if head.kind is ContentKind.BLOB:
            headers |= RANGES_TAKEN
        if head.wanted.source_host is not None:
            headers["OCI-Namespace"] = head.wanted.source_host
        address = self._origins.client_address(caller)
        route = head.wanted.operation.name.lower()
        ended = Ended(head.method, head.path, route, 200, len(body), address, authorized.subject)
        reset_to = request_id.set(identifier)
        if authorized.asked is not None:
            self._authenticator.allowed(authorized.asked, decision, head.wanted, address)
        self._measure.take(ended, time.perf_counter() - started)
        request_id.reset(reset_to)
        fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        size_and_date = f"Content-Length: {descriptor.size_bytes}\r\nDate: {self._http_date()}\r\n\r\n"
        return f"HTTP/1.1 200 OK\r\n{fields}{size_and_date}".encode() + body

    def _find(self, head: _Head, routed: RoutedRepository | None) -> tuple[Descriptor, bytes] | None:
        if routed is None:
            return None
        if head.method == "GET":
            return self._pull.read_now(routed, head.kind, head.digest, SMALL_BYTES)
        descriptor = self._pull.describe_now(routed, head.kind, head.digest)
        return None if descriptor is None else (descriptor, b"")

    def _read(self, data: bytes) -> _Head | None:
        head = _read_head(data)
        if head is not None:
            if self._heads_bytes >= _REMEMBERED_HEADS_BYTES:
                self._heads.clear()
                self._heads_bytes = 0
            self._heads[data] = head
            self._heads_bytes += _HEAD_BYTES + 2 * len(data)
        return head

    def _http_date(self) -> str:
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, formatdate(now, usegmt=True))
        return self._date[1]


def _read_head(data: bytes) -> _Head | None:
    """Return what the bytes ask for; None unless they are one plain request, complete and without a body."""
    if len(data) > _HEAD_MAX_BYTES or not data.endswith(b"\r\n\r\n") or not data.isascii():
        return None
    first, *lines = data[:-4].decode("ascii").split("\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        return None
    headers = CIMultiDict[str]()
    for text in lines:
        field = _FIELD.fullmatch(text)
        if field is None or field[1].lower() not in _FIELDS or field[1] in headers:
            return None
        headers[field[1]] = field[2]
    if headers.get("Connection", "keep-alive").lower() != "keep-alive" or "Host" not in headers:
        return None
    try:
        wanted = parse_request(line[1], line[2], line[3] or "")
    except RegistryError:
        return None
    digest = wanted.digest or wanted.tag_or_digest
    kind = _KINDS.get(wanted.operation)
    if kind is None or not isinstance(digest, Digest):
        return None
    return _Head(line[1], line[2], CIMultiDictProxy(headers), wanted, digest, kind)
