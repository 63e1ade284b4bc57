"""The endpoints of /v2/: one row an operation, one parser; an operation without a row is refused (spec, "Endpoints").

The parser reads the raw path. A repository is taken only as the plain characters of its grammar, so the name that is
authorized is, byte for byte, the name that is forwarded: there is nothing left to decode or to normalise.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypedDict
from urllib.parse import parse_qsl

from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import (
    Digest,
    Repository,
    Tag,
    is_tag,
    parse_digest,
    parse_repository,
    parse_tag,
    parse_tag_or_digest,
)
from registry_proxy.protocol.scope import Action

PAGE_SIZE_MAX = 1000
TAGS_MAX = 20
"""Tags that one push by digest may set."""

_BASE = r"/v2/?"
_CATALOG = r"/v2/_catalog"
_TAGS = r"/v2/(?P<name>.+)/tags/list"
_UPLOADS = r"/v2/(?P<name>.+)/blobs/uploads/?"
_UPLOAD = r"/v2/(?P<name>.+)/blobs/uploads/(?P<session>[a-zA-Z0-9_-]{1,64})"
_BLOB = r"/v2/(?P<name>.+)/blobs/(?P<digest>[^/]+)"
_MANIFEST = r"/v2/(?P<name>.+)/manifests/(?P<tag_or_digest>[^/]+)"
_REFERRERS = r"/v2/(?P<name>.+)/referrers/(?P<digest>[^/]+)"


class Operation(Enum):
    """The operations, one row each: methods, path, and the action on the repository that it takes a right to.

    Where two paths match, the first one counts. The comment gives the row of spec "Endpoints". The handler of an
    operation is the method of ``edge.registry`` that has its ``label`` as its name.
    """

    PING = ("GET", "HEAD"), _BASE, None  # end-1; for every valid token
    LIST_REPOSITORIES = ("GET",), _CATALOG, None  # distribution's _catalog; shows only what its caller may pull
    LIST_TAGS = ("GET",), _TAGS, Action.PULL  # end-8a, end-8b
    START_UPLOAD = ("POST",), _UPLOADS, Action.PUSH  # end-4a, end-4b (with digest), end-11 (with mount)
    UPLOAD_STATUS = ("GET",), _UPLOAD, Action.PUSH  # end-13
    APPEND_UPLOAD = ("PATCH",), _UPLOAD, Action.PUSH  # end-5
    COMMIT_UPLOAD = ("PUT",), _UPLOAD, Action.PUSH  # end-6
    CANCEL_UPLOAD = ("DELETE",), _UPLOAD, Action.PUSH  # distribution's own; of one's own upload, so to push is enough
    GET_BLOB = ("GET",), _BLOB, Action.PULL  # end-2
    HEAD_BLOB = ("HEAD",), _BLOB, Action.PULL  # end-2
    DELETE_BLOB = ("DELETE",), _BLOB, Action.DELETE  # end-10
    GET_MANIFEST = ("GET",), _MANIFEST, Action.PULL  # end-3
    HEAD_MANIFEST = ("HEAD",), _MANIFEST, Action.PULL  # end-3
    PUT_MANIFEST = ("PUT",), _MANIFEST, Action.PUSH  # end-7
    DELETE_MANIFEST = ("DELETE",), _MANIFEST, Action.DELETE  # end-9
    LIST_REFERRERS = ("GET",), _REFERRERS, Action.PULL  # end-12a, end-12b

    def __init__(self, methods: tuple[str, ...], path: str, action: Action | None) -> None:
        self.methods = methods
        self.path = path
        self.action = action
        self.label = self.name.lower()

    __hash__ = object.__hash__  # that of Enum is written in Python


_READS_OF_MANIFESTS = frozenset({Operation.GET_MANIFEST, Operation.HEAD_MANIFEST})
_ROUTES: tuple[tuple[re.Pattern[str], dict[str, Operation]], ...] = tuple(
    (re.compile(path), {method: each for each in Operation if each.path == path for method in each.methods})
    for path in dict.fromkeys(operation.path for operation in Operation)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryRequest:
    """A parsed request.

    ``repository`` is the name in the path, ``source_host`` the ``ns`` parameter (spec, "Registry Proxying").
    """

    operation: Operation
    repository: Repository | None = None
    source_host: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping(RegistryRequest):
    """A request for the base of the API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRequest(RegistryRequest):
    """A request for, or with, a manifest; ``tags`` are set to a manifest that is pushed by its digest (OCI-Tag)."""

    repository: Repository
    tag_or_digest: Tag | Digest
    tags: tuple[Tag, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRequest(RegistryRequest):
    """A request for a blob."""

    repository: Repository
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUploadRequest(RegistryRequest):
    """A request for a new upload, or for one that ends with it where there is a ``digest``, or a ``mount``.

    ``from_repository`` only goes with ``mount``.
    """

    repository: Repository
    digest: Digest | None = None
    mount: Digest | None = None
    from_repository: Repository | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRequest(RegistryRequest):
    """A request for an upload that was started; ``state`` is the one that we signed."""

    repository: Repository
    session_id: str
    state: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitUploadRequest(UploadRequest):
    """A request that ends an upload."""

    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ListRequest(RegistryRequest):
    """A request for a page of a list; ``page_size`` is clamped to 1000."""

    page_size: int | None = None
    last: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferrersRequest(ListRequest):
    """A request for a page of the manifests that refer to ``digest``; ``artifact_type`` leaves out all others."""

    repository: Repository
    digest: Digest
    artifact_type: str | None = None


def _parse_pairs(raw_query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(raw_query, keep_blank_values=True, max_num_fields=50, errors="strict")
    except (ValueError, UnicodeDecodeError) as error:
        raise RegistryError(ErrorCode.NAME_INVALID, "the query string cannot be read") from error


def _parse_query(raw_query: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for key, value in _parse_pairs(raw_query):
        # Two values would let one be authorized and the other forwarded.
        if key in query and key in {"mount", "from", "digest", "ns", "_state", "n", "last"}:
            raise RegistryError(
                ErrorCode.NAME_INVALID, f"the query parameter {key} is given twice", detail={"parameter": key}
            )
        query.setdefault(key, value)
    return query


def _parse_page_size(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise RegistryError(
            ErrorCode.PAGINATION_NUMBER_INVALID, "n is not a whole number from 0", detail={"n": text[:50]}
        )
    return min(int(text), PAGE_SIZE_MAX)


def _decode_colon(text: str) -> str:
    """Return a path slot with ``%3A`` as a colon: some clients escape the one in a digest."""
    return text.replace("%3A", ":").replace("%3a", ":")


class _Page(TypedDict):
    page_size: int | None
    last: str | None


def _parse_page(query: Mapping[str, str]) -> _Page:
    return _Page(page_size=_parse_page_size(query.get("n")), last=query.get("last"))


class _Common(TypedDict):
    """The fields that requests about a repository share."""

    operation: Operation
    repository: Repository
    source_host: str | None


def _parse_reference(operation: Operation, text: str) -> Tag | Digest:
    """Return the tag or digest of a manifest; a text that can be no tag is absent to readers, and else invalid."""
    reference = _decode_colon(text)
    if operation in _READS_OF_MANIFESTS and ":" not in reference and not is_tag(reference):
        message = "there is no manifest with this tag, which no tag can have as its name"
        raise RegistryError(ErrorCode.MANIFEST_UNKNOWN, message, detail={"tag": text[:300]})
    return parse_tag_or_digest(reference)


def _parse_manifest(common: _Common, text: str, raw_query: str) -> ManifestRequest:
    reference = _parse_reference(common["operation"], text)
    tags: tuple[Tag, ...] = ()
    if common["operation"] is Operation.PUT_MANIFEST and isinstance(reference, Digest):
        tags = tuple(dict.fromkeys(parse_tag(value) for key, value in _parse_pairs(raw_query) if key == "tag"))
        if len(tags) > TAGS_MAX:
            message = f"a push sets at most {TAGS_MAX} tags"
            raise RegistryError(ErrorCode.TAG_INVALID, message, detail={"tags": len(tags)}, status=414)
    return ManifestRequest(**common, tag_or_digest=reference, tags=tags)


def _parse_start(common: _Common, query: Mapping[str, str]) -> StartUploadRequest:
    mount = query.get("mount")
    source = query.get("from") if mount else None
    return StartUploadRequest(
        **common,
        digest=parse_digest(query["digest"]) if "digest" in query else None,
        mount=None if mount is None else parse_digest(mount),
        from_repository=parse_repository(source) if source else None,
    )


def _parse_upload(common: _Common, session_id: str, query: Mapping[str, str]) -> UploadRequest:
    state = query.get("_state")
    if common["operation"] is not Operation.COMMIT_UPLOAD:
        return UploadRequest(**common, session_id=session_id, state=state)
    digest = parse_digest(query.get("digest", ""))
    return CommitUploadRequest(**common, session_id=session_id, state=state, digest=digest)


def parse_request(method: str, raw_path: str, raw_query: str) -> RegistryRequest:
    """Return the request that a request line means.

    Args:
        method: as in the request line.
        raw_path: the path exactly as received, still percent-encoded.
        raw_query: the text behind ``?``, still percent-encoded; unknown parameters are ignored.

    Raises:
        RegistryError: NAME_INVALID, DIGEST_INVALID, TAG_INVALID, PAGINATION_NUMBER_INVALID (400);
            MANIFEST_UNKNOWN (404) for a read of what can be no tag;
            NAME_UNKNOWN (404) for a path that is no endpoint; UNSUPPORTED (405) for a method it has not.
    """
    found = next(((match, table) for pattern, table in _ROUTES if (match := pattern.fullmatch(raw_path))), None)
    if found is None:
        raise RegistryError(ErrorCode.NAME_UNKNOWN, "there is no such endpoint in the registry API")
    match, operations = found
    operation = operations.get(method)
    if operation is None:
        raise RegistryError(
            ErrorCode.UNSUPPORTED,
            f"this endpoint takes {', '.join(operations)}",
            headers={"Allow": ", ".join(operations)},
        )
    slots, query = match.groupdict(), _parse_query(raw_query)
    name, source_host = slots.get("name"), query.get("ns")
    if operation is Operation.PING:
        return Ping(operation=operation, source_host=source_host)
    if name is None:
        return ListRequest(operation=operation, source_host=source_host, **_parse_page(query))
    common = _Common(operation=operation, repository=parse_repository(name), source_host=source_host)
    if operation is Operation.START_UPLOAD:
        return _parse_start(common, query)
    if operation is Operation.LIST_TAGS:
        return ListRequest(**common, **_parse_page(query))
    if operation is Operation.LIST_REFERRERS:
        subject, artifact_type = parse_digest(_decode_colon(slots["digest"])), query.get("artifactType") or None
        return ReferrersRequest(**common, **_parse_page(query), digest=subject, artifact_type=artifact_type)
    if "session" in slots:
        return _parse_upload(common, slots["session"], query)
    if "digest" in slots:
        return BlobRequest(**common, digest=parse_digest(_decode_colon(slots["digest"])))
    return _parse_manifest(common, slots["tag_or_digest"], raw_query)
