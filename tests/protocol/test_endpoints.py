"""Endpoints: the table of the spec, and the authorized name, which is always the one in the path."""

import dataclasses
import string
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from registry_proxy.protocol.endpoints import (
    ListRequest,
    ManifestRequest,
    Operation,
    RegistryRequest,
    StartUploadRequest,
    parse_request,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import is_repository, parse_digest, parse_repository, parse_tag_or_digest

DIGEST = "sha256:" + "a" * 64
OTHER = "sha512:" + "b" * 128
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", ""]

COMPONENTS = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}", fullmatch=True)
# Names made of the words of the endpoints are where a router goes wrong.
WORDS = st.sampled_from(["tags", "list", "blobs", "uploads", "manifests", "referrers", "v2", "latest"])
NAMES = st.lists(COMPONENTS | WORDS, min_size=1, max_size=6).map("/".join)
PIECES = ["/v2", "/", "a", "B", "..", ".", "%2F", "%252F", "%2e%2e", "%3A", "%", "\0", "\n", "é", "\udcff", ":", DIGEST]
PIECES += [
    "/tags/list",
    "/blobs/",
    "/uploads/",
    "/manifests/",
    "/referrers/",
    "/_catalog",
    "latest",
    "?",
    "#",
    ";",
    " ",
]
PATHS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
QUERIES = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(
            ["n=", "last=", "mount=", "from=", "digest=", "ns=", "_state=", "&", "a", "9", DIGEST, "%", "+"]
        )
    ).map("".join),
)


def fields(request: RegistryRequest) -> dict[str, Any]:
    """Return the fields that are set, besides operation and repository."""
    found = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    return {k: v for k, v in found.items() if v is not None and v != () and k not in {"operation", "repository"}}


# Method, path after the name, query, operation, fields; one line a row of spec "Endpoints", and distribution's own.
TABLE: list[tuple[str, str, str, Operation, dict[str, Any]]] = [
    ("GET", f"/blobs/{DIGEST}", "", Operation.GET_BLOB, {"digest": parse_digest(DIGEST)}),
    ("HEAD", f"/blobs/{DIGEST}", "", Operation.HEAD_BLOB, {"digest": parse_digest(DIGEST)}),
    ("GET", f"/blobs/{quote(OTHER, safe='')}", "", Operation.GET_BLOB, {"digest": parse_digest(OTHER)}),
    ("GET", "/manifests/latest", "", Operation.GET_MANIFEST, {"tag_or_digest": "latest"}),
    ("HEAD", f"/manifests/{DIGEST}", "", Operation.HEAD_MANIFEST, {"tag_or_digest": parse_digest(DIGEST)}),
    ("GET", "/manifests/1", "ns=docker.io", Operation.GET_MANIFEST, {"tag_or_digest": "1", "source_host": "docker.io"}),
    ("POST", "/blobs/uploads/", "", Operation.START_UPLOAD, {}),
    ("POST", "/blobs/uploads", "", Operation.START_UPLOAD, {}),
    ("POST", "/blobs/uploads/", f"digest={DIGEST}", Operation.START_UPLOAD, {"digest": parse_digest(DIGEST)}),
    ("POST", "/blobs/uploads/", f"mount={quote(DIGEST)}&from=t%2Fone&origin=host", Operation.START_UPLOAD,
     {"mount": parse_digest(DIGEST), "from_repository": "t/one"}),
    ("POST", "/blobs/uploads/", f"mount={DIGEST}&from=t/one", Operation.START_UPLOAD,
     {"mount": parse_digest(DIGEST), "from_repository": "t/one"}),
    ("POST", "/blobs/uploads/", f"mount={DIGEST}", Operation.START_UPLOAD, {"mount": parse_digest(DIGEST)}),
    ("POST", "/blobs/uploads/", "from=t/one", Operation.START_UPLOAD, {}),
    ("PATCH", "/blobs/uploads/a-B_9", "_state=x%3D", Operation.APPEND_UPLOAD, {"session_id": "a-B_9", "state": "x="}),
    ("PUT", "/blobs/uploads/s", f"_state=x&digest={quote(DIGEST, safe='')}", Operation.COMMIT_UPLOAD,
     {"session_id": "s", "state": "x", "digest": parse_digest(DIGEST)}),
    ("GET", "/blobs/uploads/s", "_state=x", Operation.UPLOAD_STATUS, {"session_id": "s", "state": "x"}),
    ("DELETE", "/blobs/uploads/s", "_state=x", Operation.CANCEL_UPLOAD, {"session_id": "s", "state": "x"}),
    ("PUT", "/manifests/latest", "", Operation.PUT_MANIFEST, {"tag_or_digest": "latest"}),
    ("PUT", f"/manifests/{DIGEST}", "tag=prod&tag=v1%2E0&tag=prod", Operation.PUT_MANIFEST,
     {"tag_or_digest": parse_digest(DIGEST), "tags": ("prod", "v1.0")}),
    ("PUT", "/manifests/latest", "tag=prod", Operation.PUT_MANIFEST, {"tag_or_digest": "latest"}),
    ("GET", "/tags/list", "", Operation.LIST_TAGS, {}),
    ("GET", "/tags/list", "n=0", Operation.LIST_TAGS, {"page_size": 0}),
    ("GET", "/tags/list", "n=10&last=v1%2B", Operation.LIST_TAGS, {"page_size": 10, "last": "v1+"}),
    ("GET", "/tags/list", "n=1000000000", Operation.LIST_TAGS, {"page_size": 1000}),
    ("DELETE", "/manifests/latest", "", Operation.DELETE_MANIFEST, {"tag_or_digest": "latest"}),
    ("DELETE", f"/blobs/{DIGEST}", "", Operation.DELETE_BLOB, {"digest": parse_digest(DIGEST)}),
    ("GET", f"/referrers/{DIGEST}", "", Operation.LIST_REFERRERS, {"digest": parse_digest(DIGEST)}),
    ("GET", f"/referrers/{quote(OTHER, safe='')}", "artifactType=a%2Fb", Operation.LIST_REFERRERS,
     {"digest": parse_digest(OTHER), "artifact_type": "a/b"}),
    ("GET", f"/referrers/{DIGEST}", f"artifactType=&n=5&last={DIGEST}", Operation.LIST_REFERRERS,
     {"digest": parse_digest(DIGEST), "page_size": 5, "last": DIGEST}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "query", "operation", "expected"), TABLE)
def test_each_row_of_the_spec(
    method: str, path: str, query: str, operation: Operation, expected: dict[str, Any]
) -> None:
    """Each endpoint of the spec, as clients write it, is its operation with exactly the fields that it uses."""
    request = parse_request(method, f"/v2/team/app{path}", query)
    assert request.operation is operation
    assert request.repository == "team/app"
    assert fields(request) == expected


@pytest.mark.parametrize(
    ("path", "operation"),
    [("/v2/", Operation.PING), ("/v2", Operation.PING), ("/v2/_catalog", Operation.LIST_REPOSITORIES)],
)
def test_endpoints_without_a_repository(path: str, operation: Operation) -> None:
    """The base and the catalog have no repository."""
    assert parse_request("GET", path, "").operation is operation
    assert parse_request("GET", path, "").repository is None


@pytest.mark.parametrize(
    ("query", "status"),
    [("tag=", 400), ("tag=-x", 400), ("tag=a%2Fb", 400), ("&".join(f"tag={number}" for number in range(21)), 414)],
)
def test_the_tags_of_a_push_are_tags(query: str, status: int) -> None:
    """A push by digest with an invalid tag, or with more tags than one push may set, is refused."""
    with pytest.raises(RegistryError) as error:
        parse_request("PUT", f"/v2/a/manifests/{DIGEST}", query)
    assert (error.value.code, error.value.status) == (ErrorCode.TAG_INVALID, status)


def test_the_fields_of_other_operations_are_not_read() -> None:
    """A parameter that an operation does not use is ignored, even where it would be invalid elsewhere."""
    query = f"n=x&last=y&_state=z&mount=bad&from=../b&digest=bad&artifactType=q&tag=prod&unknown={'%FF'.lower()[:0]}"
    assert fields(parse_request("GET", "/v2/a/manifests/b", query)) == {"tag_or_digest": "b"}
    assert fields(parse_request("GET", f"/v2/a/blobs/{DIGEST}", query)) == {"digest": parse_digest(DIGEST)}


@given(NAMES, st.sampled_from(TABLE))
def test_the_name_in_the_path_is_the_repository(
    name: str, row: tuple[str, str, str, Operation, dict[str, Any]]
) -> None:
    """With any words in a valid name each endpoint finds exactly that name."""
    method, path, query, operation, _ = row
    assume(is_repository(name))
    request = parse_request(method, f"/v2/{name}{path}", query)
    assert (request.operation, request.repository) == (operation, name)


@given(st.sampled_from(METHODS), PATHS, QUERIES)
def test_any_request_line(method: str, path: str, query: str) -> None:
    """Any request line is an operation whose name stands byte for byte in the path, or a 4xx of the protocol."""
    try:
        request = parse_request(method, path, query)
    except RegistryError as error:
        assert 400 <= error.status < 500 and error.message  # noqa: PT017, PT018 - either outcome is right for some lines
    else:
        if request.repository is not None:
            assert is_repository(request.repository)
            assert path.startswith(f"/v2/{request.repository}/")


@given(st.text(alphabet=string.ascii_lowercase + "./%2Fe-_A\0", min_size=1, max_size=20))
def test_a_name_is_never_normalised(name: str) -> None:
    """An invalid name is never taken for another one."""
    try:
        request = parse_request("GET", f"/v2/{name}/manifests/latest", "")
    except RegistryError as error:
        assert error.code in {ErrorCode.NAME_INVALID, ErrorCode.NAME_UNKNOWN}  # noqa: PT017 - either is a refusal
    else:
        assert request.repository == name


@pytest.mark.parametrize(
    "name",
    ["..", "a/../b", "a//b", "/a", "a/", "a%2Fb", "a%252Fb", "%2e%2e/a", "A", "a/B", "a\0b", "a%00b", "a" * 256,
     "a;b", "a b", "a%20b", "a\\b", "é", "a:b", "."],
)  # fmt: skip
@pytest.mark.parametrize("rest", ["/manifests/latest", f"/blobs/{DIGEST}", "/tags/list", "/blobs/uploads/"])
def test_bad_names_are_name_invalid(name: str, rest: str) -> None:
    """Dots, doubled slashes, escapes, upper case, NUL and long names are NAME_INVALID at every endpoint."""
    method = "POST" if rest.endswith("uploads/") else "GET"
    with pytest.raises(RegistryError) as caught:
        parse_request(method, f"/v2/{name}{rest}", "")
    assert caught.value.code is ErrorCode.NAME_INVALID


@pytest.mark.parametrize(
    "path",
    ["/", "", "/v1/", "/v2/a", "/v2/a/tags", "/v2/a/tags/list/", "/v2/a/manifests/", "/v2/a/blobs/",
     "/v2/a/blobs/uploads/s/x", "/v2/a/blobs/uploads/%2e%2e", f"/v2/a/blobs/uploads/{'s' * 65}", "/v2/_catalog/",
     "/v2//", "/v2/tags/list", "/V2/", "/v2/a/manifests/x/y", "//v2/", "/v2/a/b/c", "/v2/..", "/%762/",
     "/v2/a\n/tags/list"],
)  # fmt: skip
def test_a_path_that_is_no_endpoint_is_unknown(path: str) -> None:
    """A path outside the table is refused, whatever the method: it is never forwarded."""
    for method in METHODS:
        with pytest.raises(RegistryError) as caught:
            parse_request(method, path, "")
        assert caught.value.code is ErrorCode.NAME_UNKNOWN


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("PUT", "/v2/", "GET, HEAD"), ("HEAD", "/v2/a/tags/list", "GET"), ("GET", "/v2/a/blobs/uploads/", "POST"),
     ("POST", "/v2/a/manifests/b", "GET, HEAD, PUT, DELETE"), ("get", "/v2/_catalog", "GET")],
)  # fmt: skip
def test_a_method_that_the_endpoint_does_not_have(method: str, path: str, allowed: str) -> None:
    """A wrong method is a 405 with the right ones."""
    with pytest.raises(RegistryError) as caught:
        parse_request(method, path, "")
    assert (caught.value.code, caught.value.status) == (ErrorCode.UNSUPPORTED, 405)
    assert caught.value.headers["Allow"] == allowed


@pytest.mark.parametrize("parameter", ["mount", "from", "digest", "ns", "_state", "n", "last"])
@pytest.mark.parametrize("second", ["{}=b", "{}=", "{}"])
def test_a_parameter_given_twice_is_refused(parameter: str, second: str) -> None:
    """Two values, of which one could be authorized and the other forwarded, are a 400, also in other spellings."""
    escaped = f"%{ord(parameter[0]):02x}{parameter[1:]}"
    for name in (parameter, escaped):
        with pytest.raises(RegistryError, match="twice") as caught:
            parse_request("POST", "/v2/a/blobs/uploads/", f"{parameter}=a&{second.format(name)}")
        assert caught.value.status == 400


@pytest.mark.parametrize(
    "source", ["%2e%2e", "a/../b", "A", "a%252Fb", "a//b", "a" * 256, "host:5000/a", "a%00", "%20a"]
)
def test_a_bad_mount_source_is_refused(source: str) -> None:
    """The source of a mount is a valid name after decoding once, or NAME_INVALID."""
    with pytest.raises(RegistryError) as caught:
        parse_request("POST", "/v2/a/blobs/uploads/", f"mount={DIGEST}&from={source}")
    assert caught.value.code is ErrorCode.NAME_INVALID


def test_a_mount_without_source_names_none() -> None:
    """An absent or empty source stays absent: the registry must not look for one itself."""
    for query in (f"mount={DIGEST}", f"mount={DIGEST}&from="):
        request = parse_request("POST", "/v2/a/blobs/uploads/", query)
        assert isinstance(request, StartUploadRequest)
        assert request.from_repository is None


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [("PUT", "/v2/a/blobs/uploads/s", ""), ("PUT", "/v2/a/blobs/uploads/s", "digest="),
     ("PUT", "/v2/a/blobs/uploads/s", "digest=md5:0"), ("POST", "/v2/a/blobs/uploads/", "digest="),
     ("POST", "/v2/a/blobs/uploads/", "mount=latest&from=b"), ("GET", "/v2/a/blobs/latest", ""),
     ("GET", "/v2/a/referrers/latest", ""), ("GET", "/v2/a/manifests/sha256:zz", ""),
     ("GET", f"/v2/a/blobs/{DIGEST.replace(':', '%253A')}", "")],
)  # fmt: skip
def test_a_missing_or_bad_digest(method: str, path: str, query: str) -> None:
    """In the place of a digest any other text is refused."""
    with pytest.raises(RegistryError) as caught:
        parse_request(method, path, query)
    assert caught.value.code is ErrorCode.DIGEST_INVALID


@pytest.mark.parametrize("tag", ["-a", ".a", "a" * 129, "%2e", "a%2Fb", "a b", "é", "a%0a", "%00"])
def test_a_bad_tag(tag: str) -> None:
    """A tag outside the grammar is TAG_INVALID; it is not decoded into another one."""
    with pytest.raises(RegistryError) as caught:
        parse_request("PUT", f"/v2/a/manifests/{tag}", "")
    assert caught.value.code is ErrorCode.TAG_INVALID


@pytest.mark.parametrize("n", ["-1", "x", "", "1.5", "%2B1", "+1", "1e3", "%D9%A3", "9" * 19, "9" * 5000])
def test_a_bad_page_size(n: str) -> None:
    """A page size that is not a sensible whole number is PAGINATION_NUMBER_INVALID."""
    with pytest.raises(RegistryError) as caught:
        parse_request("GET", "/v2/_catalog", f"n={n}")
    assert caught.value.code is ErrorCode.PAGINATION_NUMBER_INVALID


@pytest.mark.parametrize("query", ["%ff", "a=%ff", "last=%80", "&".join(f"p{i}=1" for i in range(51))])
def test_a_query_that_cannot_be_read(query: str) -> None:
    """Escapes that are no UTF-8, and a query of very many parameters, are a 400."""
    with pytest.raises(RegistryError) as caught:
        parse_request("GET", "/v2/a/tags/list", query)
    assert caught.value.status == 400


@given(NAMES, st.integers(0, 1000), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_pages_survive_their_encoding(name: str, n: int, last: str) -> None:
    """The parameters in our Link header are read back unchanged."""
    request = parse_request("GET", f"/v2/{name}/tags/list", urlencode({"n": n, "last": last}))
    assert isinstance(request, ListRequest)
    assert (request.page_size, request.last) == (n, last)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/" + "a/blobs/uploads/" * 20_000,
        "/v2/" + "/" * 100_000,
        "/v2/" + "a" * 100_000 + "/manifests/" + "x" * 100_000,
    ],
)
def test_long_paths_are_refused_without_backtracking(path: str) -> None:
    """Paths made for endless backtracking are refused (a slow one would run into the test's time-out)."""
    for method in ("GET", "POST"):
        with pytest.raises(RegistryError):
            parse_request(method, path, "")


def test_the_values_are_of_the_parsers_of_names() -> None:
    """A repository and a tag are values of the parsers of references: no other code makes them."""
    request = parse_request("GET", "/v2/a/b/manifests/t", "")
    assert isinstance(request, ManifestRequest)
    assert request.repository == parse_repository("a/b")
    assert request.tag_or_digest == parse_tag_or_digest("t")
