"""The endpoints of /v2/: one table, one parser; what is not in the table is refused (spec, "Endpoints").

The parser reads the raw path. A repository is taken only as the plain characters of its grammar, so the name that is
authorized is, byte for byte, the name that is forwarded: there is nothing left to decode or to normalise.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import parse_qsl

from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import (
    Digest,
    Repository,
    Tag,
    is_tag,
    parse_digest,
    parse_repository,
    parse_tag_or_digest,
)

PAGE_SIZE_MAX = 1000


class Operation(Enum):
    """The operation of a request; the comment gives the row of spec "Endpoints"."""

    PING = auto()  # end-1
    GET_BLOB = auto()  # end-2
    HEAD_BLOB = auto()  # end-2
    GET_MANIFEST = auto()  # end-3
    HEAD_MANIFEST = auto()  # end-3
    START_UPLOAD = auto()  # end-4a, end-4b (with digest), end-11 (with mount)
    APPEND_UPLOAD = auto()  # end-5
    COMMIT_UPLOAD = auto()  # end-6
    PUT_MANIFEST = auto()  # end-7
    LIST_TAGS = auto()  # end-8a, end-8b
    DELETE_MANIFEST = auto()  # end-9
    DELETE_BLOB = auto()  # end-10
    LIST_REFERRERS = auto()  # end-12a, end-12b
    UPLOAD_STATUS = auto()  # end-13
    CANCEL_UPLOAD = auto()  # distribution's DELETE of an upload, used by docker, podman and skopeo
    LIST_REPOSITORIES = auto()  # distribution's _catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryRequest:
    """A parsed request; the fields that its operation does not use are None.

    ``repository`` is the name in the path (None for PING and LIST_REPOSITORIES); ``source_host`` the ``ns`` parameter
    (spec, "Registry Proxying"); ``state`` our signed upload state; ``page_size`` is clamped to 1000. COMMIT_UPLOAD
    always has a ``digest``, START_UPLOAD where it pushes in one request; ``from_repository`` only goes with ``mount``.
    """

    operation: Operation
    repository: Repository | None = None
    tag_or_digest: Tag | Digest | None = None
    digest: Digest | None = None
    session_id: str | None = None
    state: str | None = None
    mount: Digest | None = None
    from_repository: Repository | None = None
    page_size: int | None = None
    last: str | None = None
    source_host: str | None = None


_LISTS = frozenset({Operation.LIST_TAGS, Operation.LIST_REPOSITORIES})
_READS_OF_MANIFESTS = frozenset({Operation.GET_MANIFEST, Operation.HEAD_MANIFEST})
_OPEN_UPLOADS = frozenset(
    {Operation.APPEND_UPLOAD, Operation.COMMIT_UPLOAD, Operation.UPLOAD_STATUS, Operation.CANCEL_UPLOAD}
)

_ROUTES: tuple[tuple[re.Pattern[str], dict[str, Operation]], ...] = tuple(
    (re.compile(pattern), operations)
    for pattern, operations in (
        (r"/v2/?", {"GET": Operation.PING, "HEAD": Operation.PING}),
        (r"/v2/_catalog", {"GET": Operation.LIST_REPOSITORIES}),
        (r"/v2/(?P<name>.+)/tags/list", {"GET": Operation.LIST_TAGS}),
        (r"/v2/(?P<name>.+)/blobs/uploads/?", {"POST": Operation.START_UPLOAD}),
        (
            r"/v2/(?P<name>.+)/blobs/uploads/(?P<session>[a-zA-Z0-9_-]{1,64})",
            {
                "GET": Operation.UPLOAD_STATUS,
                "PATCH": Operation.APPEND_UPLOAD,
                "PUT": Operation.COMMIT_UPLOAD,
                "DELETE": Operation.CANCEL_UPLOAD,
            },
        ),
        (
            r"/v2/(?P<name>.+)/blobs/(?P<digest>[^/]+)",
            {"GET": Operation.GET_BLOB, "HEAD": Operation.HEAD_BLOB, "DELETE": Operation.DELETE_BLOB},
        ),
        (
            r"/v2/(?P<name>.+)/manifests/(?P<tag_or_digest>[^/]+)",
            {
                "GET": Operation.GET_MANIFEST,
                "HEAD": Operation.HEAD_MANIFEST,
                "PUT": Operation.PUT_MANIFEST,
                "DELETE": Operation.DELETE_MANIFEST,
            },
        ),
        (r"/v2/(?P<name>.+)/referrers/(?P<digest>[^/]+)", {"GET": Operation.LIST_REFERRERS}),
    )
)


def operations() -> Iterator[tuple[str, Operation]]:
    """Give each method with the operation that it asks for at some endpoint; in no order, some twice."""
    for _, table in _ROUTES:
        yield from table.items()


def _parse_query(raw_query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(raw_query, keep_blank_values=True, max_num_fields=50, errors="strict")
    except (ValueError, UnicodeDecodeError) as error:
        raise RegistryError(ErrorCode.NAME_INVALID, "the query string cannot be read") from error
    query: dict[str, str] = {}
    for key, value in pairs:
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


def _parse_reference(operation: Operation, text: str) -> Tag | Digest:
    """Return the tag or digest of a manifest; what can be no tag is absent to those who read, and invalid otherwise."""
    reference = _decode_colon(text)
    if operation in _READS_OF_MANIFESTS and ":" not in reference and not is_tag(reference):
        message = "there is no manifest with this tag, which no tag can have as its name"
        raise RegistryError(ErrorCode.MANIFEST_UNKNOWN, message, detail={"tag": text[:300]})
    return parse_tag_or_digest(reference)


def _parse_digest_of(operation: Operation, slots: Mapping[str, str | None], query: Mapping[str, str]) -> Digest | None:
    """Return the digest from the path, or from the query where an upload is closed; refuse to close one without."""
    in_path = slots.get("digest")
    if in_path is not None:
        return parse_digest(_decode_colon(in_path))
    if operation is Operation.COMMIT_UPLOAD:
        return parse_digest(query.get("digest", ""))
    if operation is Operation.START_UPLOAD and "digest" in query:
        return parse_digest(query["digest"])
    return None


def parse_request(method: str, raw_path: str, raw_query: str) -> RegistryRequest:
    """Return the request that a request line means.

    Args:
        method: as in the request line.
        raw_path: the path exactly as received, still percent-encoded.
        raw_query: what follows ``?``, still percent-encoded; unknown parameters are ignored.

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
    slots = match.groupdict()
    query = _parse_query(raw_query)
    name, tag_or_digest = slots.get("name"), slots.get("tag_or_digest")
    mount = query.get("mount") if operation is Operation.START_UPLOAD else None
    from_repository = query.get("from") if mount else None
    is_list = operation in _LISTS
    return RegistryRequest(
        operation=operation,
        repository=None if name is None else parse_repository(name),
        tag_or_digest=None if tag_or_digest is None else _parse_reference(operation, tag_or_digest),
        digest=_parse_digest_of(operation, slots, query),
        session_id=slots.get("session"),
        state=query.get("_state") if operation in _OPEN_UPLOADS else None,
        mount=None if mount is None else parse_digest(mount),
        from_repository=None if not from_repository else parse_repository(from_repository),
        page_size=_parse_page_size(query.get("n")) if is_list else None,
        last=query.get("last") if is_list else None,
        source_host=query.get("ns"),
    )
