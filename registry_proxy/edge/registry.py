"""The registry API: one table from operation to method, one method for each (spec, "Endpoints")."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote, urlencode

from aiohttp.web import Response, StreamResponse

from registry_proxy.edge.authenticate import Authenticator, Authorized
from registry_proxy.edge.exchange import (
    Exchange,
    as_registry_error,
    json_response,
    read_body,
    read_small_body,
    unless_left,
)
from registry_proxy.edge.send import send_file, send_stream
from registry_proxy.operations.discover import Discover, Page
from registry_proxy.operations.manage import Manage
from registry_proxy.operations.passthrough import PassThrough
from registry_proxy.operations.pull import BlobAnswer, Pull
from registry_proxy.operations.push import Push, UploadAnswer
from registry_proxy.operations.warm import Prefetch
from registry_proxy.ports.content import BlobReader
from registry_proxy.ports.errors import AbsenceUnknownError
from registry_proxy.ports.events import AuditEvent, AuditLog
from registry_proxy.ports.metrics import Observer, SentBytes
from registry_proxy.ports.names import CacheResult, ContentKind, RoutedRepository, Router
from registry_proxy.ports.uploads import Uploader
from registry_proxy.protocol.byterange import ByteRange, format_content_range, parse_chunk_range
from registry_proxy.protocol.descriptor import MANIFEST_MAX_BYTES, Descriptor
from registry_proxy.protocol.endpoints import PAGE_SIZE_MAX, Operation, RegistryRequest, parse_request
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import RESERVED_TAG_PREFIX, Digest, Tag
from registry_proxy.protocol.scope import Action

_ASKED_BEFORE_PUSH = {
    Operation.HEAD_BLOB: ErrorCode.BLOB_UNKNOWN,
    Operation.HEAD_MANIFEST: ErrorCode.MANIFEST_UNKNOWN,
}

RANGES_TAKEN = {"Accept-Ranges": "bytes"}
API_VERSION = {"Docker-Distribution-API-Version": "registry/2.0"}


class Registry:
    """Answers requests to /v2/: parses, authorizes, hands to the verb, and puts what it says into headers.

    Args:
        authenticator: decides.
        router: names under which rights are judged, and where they lie.
        pull: the verbs of pulling.
        push: the verbs of pushing.
        discover: the lists.
        manage: deletes.
        observer: is told what was sent.
        audit: is told what was pushed and deleted, or could not be.
        prefetch: fetches ahead; None for not at all.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        router: Router,
        pull: Pull,
        push: Push,
        discover: Discover,
        manage: Manage,
        observer: Observer,
        audit: AuditLog,
        prefetch: Prefetch | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._router = router
        self._pull = pull
        self._push = push
        self._discover = discover
        self._manage = manage
        self._observer = observer
        self._audit = audit
        self._prefetch = prefetch
        self._methods: Mapping[Operation, Callable[[_Call], Awaitable[StreamResponse]]] = {
            Operation.PING: self._ping,
            Operation.GET_BLOB: self._get_blob,
            Operation.HEAD_BLOB: self._head_blob,
            Operation.GET_MANIFEST: self._get_manifest,
            Operation.HEAD_MANIFEST: self._head_manifest,
            Operation.START_UPLOAD: self._start_upload,
            Operation.APPEND_UPLOAD: self._append_upload,
            Operation.COMMIT_UPLOAD: self._commit_upload,
            Operation.UPLOAD_STATUS: self._upload_status,
            Operation.CANCEL_UPLOAD: self._cancel_upload,
            Operation.PUT_MANIFEST: self._put_manifest,
            Operation.DELETE_MANIFEST: self._delete_manifest,
            Operation.DELETE_BLOB: self._delete_blob,
            Operation.LIST_TAGS: self._list_tags,
            Operation.LIST_REPOSITORIES: self._list_repositories,
            Operation.LIST_REFERRERS: self._list_referrers,
        }

    async def handle(self, exchange: Exchange) -> StreamResponse:
        """Answer a request.

        Raises:
            RegistryError, and the errors of the ports: what the client is told instead.
            ConnectionError: there is nobody to answer.
        """
        try:
            wanted = parse_request(exchange.request.method, exchange.path, exchange.raw_query)
        except RegistryError:
            # What is wrong with a request is told only to those who may ask at all.
            await self._authenticator.authenticate(exchange, None)
            raise
        exchange.route = wanted.operation.name.lower()
        authorized = await self._authenticator.authorize(exchange, wanted)
        if exchange.request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise RegistryError(ErrorCode.UNSUPPORTED, "a body with a Content-Encoding is not taken", status=415)
        call = _Call(exchange, wanted, authorized)
        self._check_tag(call)
        if wanted.source_host is not None and authorized.routed is not None:
            # spec, "Registry Proxying": names the source that answers.
            exchange.answer_headers["OCI-Namespace"] = wanted.source_host
        try:
            return await self._methods[wanted.operation](call)
        except AbsenceUnknownError as error:
            if wanted.operation not in _ASKED_BEFORE_PUSH or not self._authenticator.may_push(authorized, wanted):
                raise
            # Whoever is about to push asks first. A false "absent" costs him an upload, a 503 would cost him the push.
            raise RegistryError(_ASKED_BEFORE_PUSH[wanted.operation], str(error)) from error

    def _check_tag(self, call: "_Call") -> None:
        """Refuse a tag that is reserved for our own use: it is absent to those who read."""
        tag, routed = call.wanted.tag_or_digest, call.authorized.routed
        if tag is None or isinstance(tag, Digest) or not tag.startswith(RESERVED_TAG_PREFIX):
            return
        if routed is None or not self._router.reserves_names(routed.upstream):
            return
        if call.wanted.operation in {Operation.GET_MANIFEST, Operation.HEAD_MANIFEST}:
            raise RegistryError(ErrorCode.MANIFEST_UNKNOWN, "the tag is reserved", detail={"tag": tag})
        message = f"tags that begin with {RESERVED_TAG_PREFIX} are reserved: use another name"
        raise RegistryError(ErrorCode.DENIED, message, detail={"tag": tag}, status=403)

    @contextmanager
    def _audited(self, call: "_Call", action: Action) -> Iterator[None]:
        """Tell the audit log how a push or delete ended; what it names is in the call by then."""
        outcome, rule, answered = "failed", call.authorized.rule, {}
        try:
            yield
            outcome = "ok"
        except ConnectionError:  # of the client, who is answered nothing
            raise
        except Exception as error:
            told = as_registry_error(error)
            outcome, rule = "denied" if told.code is ErrorCode.DENIED else "failed", told.message
            answered = {"status": told.status}
            if told is error:
                raise
            raise told from error
        finally:
            tag_or_digest, digest = call.wanted.tag_or_digest, call.made or call.wanted.digest
            if isinstance(tag_or_digest, Digest):
                digest = digest or tag_or_digest
            repository = call.wanted.repository if call.authorized.asked is None else call.authorized.asked[1]
            event = AuditEvent(
                action.value,
                outcome,
                subject=call.subject,
                address=call.exchange.address,
                repository=repository or "",
                tag=tag_or_digest if tag_or_digest is not None and not isinstance(tag_or_digest, Digest) else "",
                digest="" if digest is None else str(digest),
                rule=rule,
                detail={"operation": call.wanted.operation.name.lower(), **answered},
            )
            self._audit.record(event)

    # ------------------------------------------------------------ pull

    async def _ping(self, call: "_Call") -> StreamResponse:  # noqa: ARG002 - every method of the table takes the call
        return json_response({})

    async def _get_manifest(self, call: "_Call") -> StreamResponse:
        answer = await self._pull.get_manifest(call.routed, call.tag_or_digest)
        descriptor, body = answer.manifest.descriptor, answer.manifest.body
        headers = content_headers(descriptor, answer.result, answer.warning)
        if call.has_already(descriptor.digest):
            return _not_modified(descriptor)
        if self._prefetch is not None:
            self._prefetch.manifest_sent(call.subject, call.routed, descriptor.digest)
        self._count_sent(answer.result, len(body))
        call.exchange.sent_bytes += len(body)
        return Response(body=body, headers=headers)

    async def _head_manifest(self, call: "_Call") -> StreamResponse:
        head = await self._pull.head_manifest(call.routed, call.tag_or_digest)
        if isinstance(call.tag_or_digest, Digest):
            await self._check_for_pusher(call, ContentKind.MANIFEST, call.tag_or_digest)
        if call.has_already(head.descriptor.digest):
            return _not_modified(head.descriptor)
        headers = content_headers(head.descriptor, head.result, head.warning)
        return Response(headers={**headers, "Content-Length": str(head.descriptor.size_bytes)})

    async def _head_blob(self, call: "_Call") -> StreamResponse:
        descriptor, result = await self._pull.head_blob(call.routed, call.digest)
        await self._check_for_pusher(call, ContentKind.BLOB, call.digest)
        if call.has_already(descriptor.digest):
            return _not_modified(descriptor)
        headers = content_headers(descriptor, result) | RANGES_TAKEN
        return Response(headers={**headers, "Content-Length": str(descriptor.size_bytes)})

    async def _get_blob(self, call: "_Call") -> StreamResponse:
        if call.has_already(call.digest):
            descriptor, _ = await self._pull.head_blob(call.routed, call.digest)
            return _not_modified(descriptor)
        if self._prefetch is not None:
            self._prefetch.blob_asked(call.subject, call.routed, call.digest)
        answer = await self._pull.open_blob(call.routed, call.digest, call.range_header())
        before = call.exchange.sent_bytes
        try:
            return await _send_blob(call.exchange, answer)
        finally:
            self._count_sent(answer.result, call.exchange.sent_bytes - before)
            await _close(answer.content)

    def _count_sent(self, result: CacheResult, size_bytes: int) -> None:
        self._observer.observe(SentBytes("upstream" if result is CacheResult.MISS else "cache", size_bytes))

    async def _check_for_pusher(self, call: "_Call", kind: ContentKind, digest: Digest) -> None:
        """Raise the 404 of a content that a replica lacks, for a caller who would leave it out of a push otherwise."""
        if self._authenticator.comes_to_push(call.authorized, call.wanted) and not await self._push.is_everywhere(
            call.routed, kind, digest
        ):
            code = _ASKED_BEFORE_PUSH[call.wanted.operation]
            raise RegistryError(code, "a replica does not hold it any more: push it", detail={"digest": str(digest)})

    # ------------------------------------------------------------ push

    async def _start_upload(self, call: "_Call") -> StreamResponse:
        wanted, routed = call.wanted, call.routed
        if wanted.mount is not None:
            mounted = await self._mount(call, wanted.mount)
            if mounted is not None:
                with self._audited(call, Action.PUSH):
                    call.made = mounted.digest
                return _created(f"{call.base}/blobs/{mounted.digest}", mounted)
        elif wanted.digest is not None:
            body = read_body(call.exchange)
            size_bytes = call.exchange.request.content_length
            with self._audited(call, Action.PUSH):
                pushed = await self._push.push_blob(routed, call.uploader, wanted.digest, body, size_bytes)
            return _created(f"{call.base}/blobs/{pushed.digest}", pushed)
        return call.upload_response(202, await self._push.start_upload(routed, call.uploader))

    async def _mount(self, call: "_Call", digest: Digest) -> Descriptor | None:
        """Mount where the caller may read the source; what it may not read is, to it, not there."""
        if call.wanted.from_repository is None:
            return None
        try:
            source = self._router.canonical(call.wanted.from_repository, call.wanted.source_host)
            if not self._authenticator.may_read_source(call.authorized, source):
                return None
            routed_source = self._router.route(source)
        except RegistryError:
            return None
        return await self._push.mount_blob(call.routed, digest, routed_source)

    async def _append_upload(self, call: "_Call") -> StreamResponse:
        upload = await self._push.append_upload(
            call.routed,
            call.uploader,
            call.session_id,
            call.wanted.state,
            read_body(call.exchange),
            call.exchange.request.content_length,
            call.chunk(),
        )
        return call.upload_response(202, upload)

    async def _commit_upload(self, call: "_Call") -> StreamResponse:
        with self._audited(call, Action.PUSH):
            descriptor = await self._push.commit_upload(
                call.routed,
                call.uploader,
                call.session_id,
                call.wanted.state,
                call.digest,
                read_body(call.exchange),
                call.exchange.request.content_length,
                call.chunk(),
            )
        return _created(f"{call.base}/blobs/{descriptor.digest}", descriptor)

    async def _upload_status(self, call: "_Call") -> StreamResponse:
        upload = await self._push.upload_status(call.routed, call.uploader, call.session_id, call.wanted.state)
        return call.upload_response(204, upload)

    async def _cancel_upload(self, call: "_Call") -> StreamResponse:
        await self._push.cancel_upload(call.routed, call.uploader, call.session_id, call.wanted.state)
        return Response(status=204)

    async def _put_manifest(self, call: "_Call") -> StreamResponse:
        body = await read_small_body(call.exchange, MANIFEST_MAX_BYTES)
        media_type = call.exchange.request.headers.get("Content-Type", "").partition(";")[0].strip()
        with self._audited(call, Action.PUSH):
            descriptor = await self._push.put_manifest(
                call.routed, call.tag_or_digest, media_type, body, may_move_tags=call.authorized.may_move_tags
            )
            call.made = descriptor.digest
        return _created(f"{call.base}/manifests/{descriptor.digest}", descriptor)

    # ------------------------------------------------------------ management and lists

    async def _delete_manifest(self, call: "_Call") -> StreamResponse:
        with self._audited(call, Action.DELETE):
            call.made = await self._manage.delete_manifest(call.routed, call.tag_or_digest)
        return Response(status=202)

    async def _delete_blob(self, call: "_Call") -> StreamResponse:
        with self._audited(call, Action.DELETE):
            await self._manage.delete_blob(call.routed, call.digest)
        return Response(status=202)

    async def _list_tags(self, call: "_Call") -> StreamResponse:
        may_pull = call.authorized.policy.tags_to_pull(call.subject, call.canonical)
        listing = self._discover.list_tags(call.routed, call.wanted.page_size, call.wanted.last, may_pull)
        page = await unless_left(call.exchange, listing)
        body = {"name": call.wanted.repository, "tags": list(page.items)}
        return json_response(body, call.link(f"{call.base}/tags/list", page))

    async def _list_repositories(self, call: "_Call") -> StreamResponse:
        policy, subject = call.authorized.policy, call.subject
        listing = self._discover.list_repositories(
            policy.patterns(subject, Action.PULL),
            lambda name: policy.decide(subject, name, Action.PULL).allowed,
            call.wanted.page_size,
            call.wanted.last,
        )
        page = await unless_left(call.exchange, listing)
        headers = call.link("/v2/_catalog", page) | ({"Warning": page.warning} if page.warning else {})
        return json_response({"repositories": list(page.items)}, headers)

    async def _list_referrers(self, call: "_Call") -> StreamResponse:  # noqa: ARG002 - as all of the table
        # A 404 sends clients to the tag that stands in for the list (spec, "Unavailable Referrers API"). An empty
        # list would be believed: an image would seem to have no signatures.
        message = "the referrers API is not offered: use the tag that stands in for it"
        raise RegistryError(ErrorCode.UNSUPPORTED, message, status=404)


class _Call:
    """An authorized request with its fields as the operation needs them."""

    __slots__ = ("authorized", "exchange", "made", "subject", "wanted")

    def __init__(self, exchange: Exchange, wanted: RegistryRequest, authorized: Authorized) -> None:
        self.exchange = exchange
        self.wanted = wanted
        self.authorized = authorized
        self.subject = authorized.subject
        self.made: Digest | None = None

    @property
    def uploader(self) -> Uploader:
        return Uploader(self.subject, self.authorized.token.generation)

    @property
    def routed(self) -> RoutedRepository:
        if self.authorized.routed is None:
            raise _nothing_named()
        return self.authorized.routed

    @property
    def canonical(self) -> str:
        """The name under which rights are judged."""
        if self.authorized.asked is None:
            raise _nothing_named()
        return self.authorized.asked[1]

    @property
    def digest(self) -> Digest:
        if self.wanted.digest is None:
            raise RegistryError(ErrorCode.DIGEST_INVALID, "the request lacks the parameter digest")
        return self.wanted.digest

    @property
    def tag_or_digest(self) -> Tag | Digest:
        if self.wanted.tag_or_digest is None:
            raise _nothing_named()
        return self.wanted.tag_or_digest

    @property
    def session_id(self) -> str:
        if self.wanted.session_id is None:
            raise _nothing_named()
        return self.wanted.session_id

    @property
    def base(self) -> str:
        return f"/v2/{self.wanted.repository}"

    def has_already(self, digest: Digest) -> bool:
        """Tell whether If-None-Match names the digest (RFC 9110, 13.1.2)."""
        header = self.exchange.request.headers.get("If-None-Match")
        if header is None:
            return False
        return any(_strip_weak(tag) in {"*", f'"{digest}"'} for tag in header.split(","))

    def range_header(self) -> str | None:
        """Return Range unless If-Range names something else (RFC 9110, 13.1.5)."""
        headers = self.exchange.request.headers
        condition = headers.get("If-Range")
        if condition is not None and condition.strip() != f'"{self.digest}"':
            return None
        return headers.get("Range")

    def chunk(self) -> ByteRange | None:
        header = self.exchange.request.headers.get("Content-Range")
        return None if header is None else parse_chunk_range(header)

    def upload_response(self, status: int, upload: UploadAnswer) -> StreamResponse:
        query = {"_state": upload.state} | self._source_query()
        location = f"{self.base}/blobs/uploads/{quote(upload.session_id, safe='')}?{urlencode(query)}"
        headers = {
            "Location": location,
            "Docker-Upload-UUID": upload.session_id,
            "Range": f"0-{max(upload.offset - 1, 0)}",
        }
        return Response(status=status, headers=headers)

    def link(self, path: str, page: Page) -> dict[str, str]:
        """Return the Link to the next page, relative, named after the last item that was shown."""
        if not page.more:
            return {}
        size = PAGE_SIZE_MAX if self.wanted.page_size is None else self.wanted.page_size
        query = urlencode({"last": page.items[-1], "n": size} | self._source_query())
        return {"Link": f'<{path}?{query}>; rel="next"'}

    def _source_query(self) -> dict[str, str]:
        return {} if self.wanted.source_host is None else {"ns": self.wanted.source_host}


def _nothing_named() -> RegistryError:
    # The table of endpoints fills the fields of each operation: a defect there must not become a wider right here.
    return RegistryError(ErrorCode.NAME_UNKNOWN, "the request names nothing here")


def _strip_weak(tag: str) -> str:
    return tag.strip().removeprefix("W/")


def content_headers(descriptor: Descriptor, result: CacheResult, warning: str | None = None) -> dict[str, str]:
    """Return the headers of a content."""
    digest = str(descriptor.digest)
    headers = {
        "Content-Type": descriptor.media_type,
        "Docker-Content-Digest": digest,
        "ETag": f'"{digest}"',
        "X-Cache": result.value.upper(),
    }
    if warning is not None:
        headers["Warning"] = warning
    return headers


def _not_modified(descriptor: Descriptor) -> Response:
    digest = str(descriptor.digest)
    return Response(status=304, headers={"Docker-Content-Digest": digest, "ETag": f'"{digest}"'})


def _created(location: str, descriptor: Descriptor) -> Response:
    return Response(status=201, headers={"Location": location, "Docker-Content-Digest": str(descriptor.digest)})


async def _send_blob(exchange: Exchange, answer: BlobAnswer) -> StreamResponse:
    size_bytes = answer.descriptor.size_bytes
    headers = content_headers(answer.descriptor, answer.result) | RANGES_TAKEN
    part, status = answer.byte_range, 206
    if part is None:
        part, status = ByteRange(0, size_bytes - 1), 200
    else:
        headers["Content-Range"] = format_content_range(part, size_bytes)
    if isinstance(answer.content, PassThrough):
        return await send_stream(exchange, status, headers, answer.content, part.size_bytes)
    return await send_file(exchange, status, headers, answer.content, part, rest=answer.rest)


async def _close(content: BlobReader | PassThrough) -> None:
    if isinstance(content, PassThrough):
        await content.aclose()
    else:
        content.close()
