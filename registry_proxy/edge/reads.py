"""The operations that read: contents, and lists."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from urllib.parse import urlencode

from registry_proxy.edge.answer import Answer, FilePart, Stream, json_answer
from registry_proxy.edge.authenticate import Authenticator
from registry_proxy.edge.call import Call, actor_of
from registry_proxy.edge.exchange import unless_left
from registry_proxy.operations.ask import Ask, answer_of, then
from registry_proxy.operations.discover import Discover, Page
from registry_proxy.operations.passthrough import PassThrough
from registry_proxy.operations.pull import ManifestAnswer, ManifestHead, Pull
from registry_proxy.operations.pull_blobs import BlobAnswer, BlobHead
from registry_proxy.operations.push import Push
from registry_proxy.operations.referrers import Referrers
from registry_proxy.operations.warm import Prefetch
from registry_proxy.ports.names import CacheResult, ContentKind
from registry_proxy.ports.outbox import PullLog
from registry_proxy.protocol.byterange import ByteRange, format_content_range
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.endpoints import (
    PAGE_SIZE_MAX,
    BlobRequest,
    ListRequest,
    ManifestRequest,
    Ping,
    ReferrersRequest,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest
from registry_proxy.protocol.scope import Action

_T = TypeVar("_T")
ABSENT = {ContentKind.BLOB: ErrorCode.BLOB_UNKNOWN, ContentKind.MANIFEST: ErrorCode.MANIFEST_UNKNOWN}
_RANGES_TAKEN = {"Accept-Ranges": "bytes"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """The handlers of the operations that read; each is named as its operation.

    A handler returns the answer where nobody has to be waited for, else the way to it.

    Args:
        authenticator: knows whether a caller comes to push.
        pull: the verbs of pulling.
        push: knows whether a pusher may leave out a content.
        discover: the lists of tags and repositories.
        referrers: the lists of referrers.
        prefetch: fetches ahead; None for not at all.
        pulls: receives the manifests that are sent, where that is wanted.
    """

    authenticator: Authenticator
    pull: Pull
    push: Push
    discover: Discover
    referrers: Referrers
    prefetch: Prefetch | None
    pulls: PullLog

    def ping(self, call: Call[Ping]) -> Answer:  # noqa: ARG002 - every handler is a method that takes the call
        return json_answer({})

    # ------------------------------------------------------------ contents

    def get_manifest(self, call: Call[ManifestRequest]) -> Answer | Ask[Answer]:
        found = self.pull.find_manifest(call.routed, call.request.tag_or_digest)
        return then(found, partial(self._manifest, call))

    def _manifest(self, call: Call[ManifestRequest], found: ManifestAnswer) -> Answer:
        descriptor = found.manifest.descriptor
        if call.has_already(descriptor.digest):
            return _not_modified(descriptor)
        if self.prefetch is not None:
            self.prefetch.manifest_sent(call.subject, call.routed, descriptor.digest)
        if self.pulls.is_wanted:
            reference = call.request.tag_or_digest
            tag = "" if isinstance(reference, Digest) else reference
            self.pulls.note(call.routed, tag, descriptor, actor_of(call, self.authenticator.origins))
        headers = _content_headers(descriptor, found.result, found.warning)
        return Answer(200, headers, found.manifest.body, "upstream" if found.result is CacheResult.MISS else "cache")

    def head_manifest(self, call: Call[ManifestRequest]) -> Answer | Ask[Answer]:
        reference = call.request.tag_or_digest
        found = self.pull.find_manifest_head(call.routed, reference)
        if isinstance(reference, Digest) and self.authenticator.comes_to_push(call.authorized, call.request):
            found = Ask(partial(self._checked, call, ContentKind.MANIFEST, reference, found))
        return then(found, partial(_manifest_head, call))

    def head_blob(self, call: Call[BlobRequest]) -> Answer | Ask[Answer]:
        digest = call.request.digest
        found = self.pull.blobs.find_blob_head(call.routed, digest)
        if self.authenticator.comes_to_push(call.authorized, call.request):
            found = Ask(partial(self._checked, call, ContentKind.BLOB, digest, found))
        return then(found, partial(_blob_head, call))

    async def _checked(
        self, call: Call[BlobRequest | ManifestRequest], kind: ContentKind, digest: Digest, found: _T | Ask[_T]
    ) -> _T:
        """Return the answer to a pusher, who leaves contents out of the push that are said to be there.

        Raises:
            RegistryError: 404 for a content that a replica misses.
        """
        answer = await answer_of(found)
        if not await self.push.is_everywhere(call.routed, kind, digest):
            message = "a replica does not hold it any more: push it"
            raise RegistryError(ABSENT[kind], message, detail={"digest": str(digest)})
        return answer

    def get_blob(self, call: Call[BlobRequest]) -> Answer | Ask[Answer]:
        digest = call.request.digest
        if call.has_already(digest):
            return then(
                self.pull.blobs.find_blob_head(call.routed, digest), lambda head: _not_modified(head.descriptor)
            )
        if self.prefetch is not None:
            self.prefetch.blob_asked(call.subject, call.routed, digest)
        return then(self.pull.blobs.find_blob(call.routed, digest, call.range_header(digest)), _blob)

    # ------------------------------------------------------------ lists

    def list_tags(self, call: Call[ListRequest]) -> Ask[Answer]:
        return Ask(partial(self._list_tags, call))

    async def _list_tags(self, call: Call[ListRequest]) -> Answer:
        request, authorized = call.request, call.authorized
        may_pull = (
            None
            if authorized.question is None
            else authorized.policy.tags_to_pull(call.subject, authorized.question[1])
        )
        listing = self.discover.list_tags(call.routed, request.page_size, request.last, may_pull)
        page = await unless_left(call.exchange, listing)
        return json_answer(
            {"name": request.repository, "tags": list(page.items)}, _next_page(call, f"{call.base}/tags/list", page)
        )

    def list_repositories(self, call: Call[ListRequest]) -> Ask[Answer]:
        return Ask(partial(self._list_repositories, call))

    async def _list_repositories(self, call: Call[ListRequest]) -> Answer:
        request, policy, subject = call.request, call.authorized.policy, call.subject
        listing = self.discover.list_repositories(
            policy.patterns(subject, Action.PULL),
            lambda name: policy.decide(subject, name, Action.PULL).allowed,
            request.page_size,
            request.last,
        )
        page = await unless_left(call.exchange, listing)
        headers = _next_page(call, "/v2/_catalog", page) | ({"Warning": page.warning} if page.warning else {})
        return json_answer({"repositories": list(page.items)}, headers)

    def list_referrers(self, call: Call[ReferrersRequest]) -> Ask[Answer]:
        return Ask(partial(self._list_referrers, call))

    async def _list_referrers(self, call: Call[ReferrersRequest]) -> Answer:
        request, artifact_type = call.request, call.request.artifact_type
        listing = self.referrers.list_page(
            call.routed, request.digest, artifact_type, last=request.last, page_size=request.page_size
        )
        page = await unless_left(call.exchange, listing)
        headers = {"Content-Type": page.index.descriptor.media_type}
        filters = {}
        if artifact_type is not None:
            headers["OCI-Filters-Applied"] = "artifactType"
            filters = {"artifactType": artifact_type}
        if page.last is not None:
            headers |= _link(call, f"{call.base}/referrers/{request.digest}", page.last, filters)
        return Answer(200, headers, page.index.body)


def _next_page(call: Call[ListRequest], path: str, page: Page) -> dict[str, str]:
    return _link(call, path, page.items[-1], {}) if page.more else {}


def _link(call: Call[ListRequest], path: str, last: str, filters: Mapping[str, str]) -> dict[str, str]:
    """Return the Link to the next page, relative, named after the last item that was shown."""
    size = PAGE_SIZE_MAX if call.request.page_size is None else call.request.page_size
    query = urlencode({"last": last, "n": size, **filters} | call.source_query())
    return {"Link": f'<{path}?{query}>; rel="next"'}


def _content_headers(descriptor: Descriptor, result: CacheResult, warning: str | None = None) -> dict[str, str]:
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


def _not_modified(descriptor: Descriptor) -> Answer:
    digest = str(descriptor.digest)
    return Answer(304, {"Docker-Content-Digest": digest, "ETag": f'"{digest}"'})


def _manifest_head(call: Call[ManifestRequest], head: ManifestHead) -> Answer:
    if call.has_already(head.descriptor.digest):
        return _not_modified(head.descriptor)
    headers = _content_headers(head.descriptor, head.result, head.warning)
    return Answer(200, headers | {"Content-Length": str(head.descriptor.size_bytes)})


def _blob_head(call: Call[BlobRequest], head: BlobHead) -> Answer:
    descriptor, result = head
    if call.has_already(descriptor.digest):
        return _not_modified(descriptor)
    headers = _content_headers(descriptor, result) | _RANGES_TAKEN
    return Answer(200, headers | {"Content-Length": str(descriptor.size_bytes)})


def _blob(found: BlobAnswer) -> Answer:
    size_bytes, content = found.descriptor.size_bytes, found.content
    headers = _content_headers(found.descriptor, found.result) | _RANGES_TAKEN
    part, status = found.byte_range, 206
    if part is None:
        part, status = ByteRange(0, size_bytes - 1), 200
    else:
        headers["Content-Range"] = format_content_range(part, size_bytes)
    body: bytes | FilePart | Stream
    if isinstance(content, bytes):
        body = content if status == 200 else content[part.first : part.last + 1]
    elif isinstance(content, PassThrough):
        body = Stream(content, part.size_bytes)
    else:
        body = FilePart(content, part, found.rest)
    return Answer(status, headers, body, "upstream" if found.result is CacheResult.MISS else "cache")
