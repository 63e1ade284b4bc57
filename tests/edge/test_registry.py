"""The registry API over a real socket: the right for each operation, and the content of each answer."""

import io
import json
from collections.abc import AsyncIterator, Mapping

import pytest
from yarl import URL

from registry_proxy.ports.metrics import AccessDecision, ClientRequest, SentBytes
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, MANIFEST_MAX_BYTES, OCI_MANIFEST, Descriptor
from registry_proxy.protocol.reference import Repository, digest_of
from registry_proxy.protocol.scope import Action
from tests.support.fakes.public import PublicBench, grant

APP = RoutedRepository("main", Repository("team/app"))
CONTENT = b"a layer " * 1000
D = digest_of(CONTENT)
BODY = b'{"schemaVersion":2}'
M = digest_of(BODY)
SESSION = "/v2/team/app/blobs/uploads/session-0?_state=state%20of%20session-0"

# (method, path, required right; None: any valid token, status when allowed)
ROUTES = [
    ("GET", "/v2/", None, 200),
    ("HEAD", "/v2/", None, 200),
    ("GET", "/v2/_catalog", None, 200),
    ("GET", "/v2/team/app/tags/list", "pull", 200),
    ("GET", f"/v2/team/app/blobs/{D}", "pull", 200),
    ("HEAD", f"/v2/team/app/blobs/{D}", "pull", 200),
    ("GET", "/v2/team/app/manifests/latest", "pull", 200),
    ("HEAD", "/v2/team/app/manifests/latest", "pull", 200),
    ("GET", f"/v2/team/app/manifests/{M}", "pull", 200),
    ("GET", f"/v2/team/app/referrers/{M}", "pull", 200),
    ("GET", "/v2/team/app/referrers/latest", None, 400),
    ("POST", "/v2/team/app/blobs/uploads/", "push", 202),
    ("POST", f"/v2/team/app/blobs/uploads/?digest={D}", "push", 201),
    ("GET", SESSION, "push", 204),
    ("PATCH", SESSION, "push", 202),
    ("PUT", f"{SESSION}&digest={D}", "push", 201),
    ("DELETE", SESSION, "push", 204),
    ("PUT", "/v2/team/app/manifests/latest", "push", 201),
    ("DELETE", f"/v2/team/app/manifests/{M}", "delete", 202),
    ("DELETE", f"/v2/team/app/blobs/{D}", "delete", 202),
    ("GET", "/v2/unknown", None, 404),
    ("POST", "/v2/_catalog", None, 405),
    ("GET", "/v2/Team/app/tags/list", None, 400),
    ("GET", "/v2/team%2Fapp/tags/list", None, 400),
    ("GET", "/v2/team//app/tags/list", None, 400),
    ("GET", "/v2/team/../app/tags/list", None, 400),
    ("GET", "/v2/team/app/blobs/sha256:zz", None, 400),
]
CALLERS = ["nobody", "garbage", "basic", "revoked", "none", "pull", "push", "delete", "admin", "unasked"]


def fill(public: PublicBench) -> None:
    """Put an image upstream."""
    public.reader.add_blob("team/app", CONTENT)
    public.reader.add_manifest("team/app", BODY, "latest")


def headers_of(public: PublicBench, caller: str) -> dict[str, str]:
    """Return the headers of a caller, with the right that it is named after."""
    if caller == "nobody":
        return {}
    if caller == "garbage":
        return {"Authorization": "Bearer ey.garbage.token"}
    if caller == "basic":
        return {"Authorization": "Basic YW5uOmFubi1wYXNzd29yZA=="}
    if caller == "revoked":
        public.allow("pull", "push", "delete")
        headers = public.bearer()
        public.control.generations["user:ann"] = 1
        return headers
    if caller == "admin":
        return public.bearer("user:admin")
    if caller == "unasked":
        public.allow("pull", "push", "delete")
        return public.bearer("user:ann", "repository:team/other:pull,push,delete")
    if caller != "none":
        public.allow(caller)
    return public.bearer()


@pytest.mark.parametrize("caller", CALLERS)
async def test_every_route_against_every_caller(public: PublicBench, caller: str) -> None:
    """Without a valid token all is 401; without the right all is 401 DENIED; all else is allowed."""
    fill(public)
    headers = headers_of(public, caller)
    for method, path, right, status in ROUTES:
        public.push.sessions = {"session-0": "user:admin" if caller == "admin" else "user:ann"}
        if caller in {"none", "pull", "delete", "unasked"}:
            # A session that another caller opened: it carries no right for this one.
            public.push.sessions = {"session-0": "user:bob"}
        url = URL(f"http://127.0.0.1:{public.port}{path}", encoded=True)  # unchanged: no dots are resolved
        async with public.session.request(method, url, headers=headers) as response:
            body = await response.read()
            where = f"{caller} {method} {path}: {response.status} {body[:200]!r}"
            if caller in {"nobody", "garbage", "basic", "revoked"}:
                expected, code = 401, "UNAUTHORIZED"
            elif right is None or caller in {right, "admin"}:
                expected, code = status, ""
            else:
                expected, code = 401, "DENIED"
            assert response.status == expected, where
            assert response.headers["Docker-Distribution-API-Version"] == "registry/2.0", where
            if expected >= 400 and method != "HEAD":
                error = json.loads(body)["errors"][0]
                assert error["code"] == code or not code, where
                assert error["message"], where
                assert error["detail"] is not None, where
            if expected == 401:
                challenges = response.headers.getall("WWW-Authenticate")
                assert len(challenges) == 1, where
                assert challenges[0].startswith(f'Bearer realm="http://127.0.0.1:{public.port}/auth/token"'), where
                assert challenges[0].count("scope=") <= 1, where
                assert "X-Cache" not in response.headers, where
                assert "Docker-Content-Digest" not in response.headers, where
    if caller in {"nobody", "garbage", "basic", "revoked"}:
        assert public.reader.requests == []
        assert public.push.calls == []


async def test_hidden_and_absent_repositories_answer_alike(public: PublicBench) -> None:
    """The refusal depends on subject and name alone, before any look-up."""
    fill(public)
    for path in ("/v2/team/app/manifests/latest", "/v2/team/none/manifests/latest"):
        headers = public.bearer("user:bob", "repository:team/app:pull", "repository:team/none:pull")
        async with public.session.get(path, headers=headers) as response:
            text = (await response.text()).replace("team/none", "team/app")
            challenge = response.headers["WWW-Authenticate"].replace("team/none", "team/app")
            assert (response.status, 'error="insufficient_scope"' in challenge) == (401, True)
            assert 'scope="repository:team/app:pull"' in challenge
            assert text == json.dumps(json.loads(text))
    assert public.reader.requests == []


async def test_each_step_of_an_upload_takes_the_right_to_push(public: PublicBench) -> None:
    """A withdrawn right, a token without it and a revocation end an upload; a new token does not."""
    public.allow("push")
    async with public.session.post("/v2/team/app/blobs/uploads/", headers=public.bearer()) as response:
        location = response.headers["Location"]
    narrow = public.bearer("user:ann", "repository:team/app:pull")

    async def statuses(headers: Mapping[str, str]) -> set[int]:
        found = set()
        for method, url in (
            ("GET", location),
            ("PATCH", location),
            ("PUT", f"{location}&digest={D}"),
            ("DELETE", location),
        ):
            async with public.session.request(method, url, data=b"12345", headers=headers) as response:
                found.add(response.status)
        return found

    assert await statuses(narrow) == {401}
    public.control.grants.clear()
    assert await statuses(public.bearer()) == {401}
    public.allow("push")
    before = public.bearer()
    public.control.generations["user:ann"] = 1
    assert await statuses(before) == {401}
    assert public.push.calls == [("start", "main/team/app", "user:ann")]
    public.control.generations["user:ann"] = 0
    async with public.session.patch(location, data=b"12345", headers=public.bearer()) as response:
        assert response.status == 202


# ---------------------------------------------------------------- pull


@pytest.mark.parametrize("path", [f"blobs/{D}", "manifests/latest", f"manifests/{M}"])
async def test_head_tells_what_get_tells(public: PublicBench, path: str) -> None:
    """Length, type, digest and ETag are equal, the ETag is the digest, and HEAD has no body."""
    fill(public)
    public.allow("pull")
    names = ("Content-Length", "Content-Type", "Docker-Content-Digest", "ETag", "Accept-Ranges")
    answers = []
    for method in ("HEAD", "GET", "HEAD"):
        async with public.session.request(method, f"/v2/team/app/{path}", headers=public.bearer()) as response:
            body = await response.read()
            assert response.status == 200
            answers.append([response.headers.get(name) for name in names])
            assert response.headers["ETag"] == f'"{response.headers["Docker-Content-Digest"]}"'
            assert response.headers["X-Cache"] in {"HIT", "MISS"}
            assert len(body) == (int(response.headers["Content-Length"]) if method == "GET" else 0)
    assert answers[0] == answers[1] == answers[2]


async def test_ranges_of_a_blob(public: PublicBench) -> None:
    """A range is 206 with Content-Range, or 416 with the size; If-Range takes an ETag; several ranges are ignored."""
    fill(public)
    public.allow("pull")
    size = len(CONTENT)
    cases = [
        ({"Range": "bytes=5-9"}, 206, CONTENT[5:10], f"bytes 5-9/{size}"),
        ({"Range": "bytes=-3"}, 206, CONTENT[-3:], f"bytes {size - 3}-{size - 1}/{size}"),
        ({"Range": f"bytes={size}-"}, 416, None, f"bytes */{size}"),
        ({"Range": "bytes=0-1,4-5"}, 200, CONTENT, None),
        ({"Range": "bytes=5-9", "If-Range": f'"{D}"'}, 206, CONTENT[5:10], f"bytes 5-9/{size}"),
        ({"Range": "bytes=5-9", "If-Range": '"other"'}, 200, CONTENT, None),
    ]
    for headers, status, body, content_range in cases:
        sent = {**public.bearer(), **headers}
        async with public.session.get(f"/v2/team/app/blobs/{D}", headers=sent) as response:
            assert response.status == status, headers
            assert response.headers.get("Content-Range") == content_range
            assert body is None or await response.read() == body
            assert ("X-Cache" in response.headers) == (status < 400)


async def test_not_modified_only_after_authorization(public: PublicBench) -> None:
    """If-None-Match gives 304 to a caller that may pull an existing object, and nothing to others."""
    fill(public)
    conditional = {"If-None-Match": f'"other", W/"{D}"'}
    path = f"/v2/team/app/blobs/{D}"
    async with public.session.get(path, headers={**public.bearer(), **conditional}) as response:
        assert response.status == 401
    public.allow("pull")
    async with public.session.get(path, headers={**public.bearer(), **conditional}) as response:
        assert (response.status, response.headers["ETag"], await response.read()) == (304, f'"{D}"', b"")
    tagged = {"If-None-Match": f'"{M}"'}
    for method in ("GET", "HEAD"):
        where = "/v2/team/app/manifests/latest"
        async with public.session.request(method, where, headers={**public.bearer(), **tagged}) as response:
            assert response.status == 304
    absent = digest_of(b"absent")
    headers = {**public.bearer(), "If-None-Match": f'"{absent}"'}
    async with public.session.get(f"/v2/team/app/blobs/{absent}", headers=headers) as response:
        assert response.status == 404


async def test_unknown_and_unavailable_are_distinct(public: PublicBench) -> None:
    """An absent object is 404 with the spec's code; one whose absence is uncertain is 503 with Retry-After."""
    public.allow("pull")
    for path, code in ((f"blobs/{D}", "BLOB_UNKNOWN"), ("manifests/x", "MANIFEST_UNKNOWN")):
        async with public.session.get(f"/v2/team/app/{path}", headers=public.bearer()) as response:
            assert (response.status, (await response.json())["errors"][0]["code"]) == (404, code)
    public.reader.is_down = True
    for path in (f"blobs/{D}", "manifests/x", "tags/list"):
        async with public.session.get(f"/v2/team/app/{path}", headers=public.bearer()) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
            assert (await response.json())["errors"][0]["code"] == "UNAVAILABLE"
    public.control.is_away = True
    async with public.session.get("/v2/", headers=public.bearer()) as response:
        assert (response.status, (await response.json())["errors"][0]["code"]) == (503, "UNAVAILABLE")


async def test_a_doubtful_absence_is_a_404_only_for_who_is_about_to_push(public: PublicBench) -> None:
    """With one replica missing it and one down, a push must go on (it sends HEAD first), a pull must not get 404."""
    public.allow("pull", "push")
    public.reader.is_in_doubt = True
    pull_only = public.bearer("user:ann", "repository:team/app:pull")
    for path in (f"blobs/{D}", "manifests/x", f"manifests/{M}"):
        # notation asks for its blobs with a token that only pulls: there the grants decide who may push.
        is_blob = path.startswith("blobs/")
        for method, headers, status in (
            ("HEAD", public.bearer(), 404),
            ("HEAD", pull_only, 404 if is_blob else 503),
            ("GET", public.bearer(), 503),
        ):
            async with public.session.request(method, f"/v2/team/app/{path}", headers=headers) as response:
                assert (method, path, response.status) == (method, path, status)
    public.control.grants.clear()
    public.allow("pull")
    async with public.session.head(f"/v2/team/app/blobs/{D}", headers=public.bearer()) as response:
        assert response.status == 503


async def test_a_stale_tag_carries_its_warning(public: PublicBench) -> None:
    """An object served without any replica's answer carries a warning."""
    fill(public)
    public.allow("pull")
    path = "/v2/team/app/manifests/latest"
    async with public.session.get(path, headers=public.bearer()) as response:
        assert "Warning" not in response.headers
    public.reader.is_down = True
    public.holdings.tag_age_seconds = 60
    async with public.session.get(path, headers=public.bearer()) as response:
        assert (response.status, response.headers["Warning"][:6]) == (200, "299 - ")


async def test_source_host_selects_the_route_and_is_named_in_the_answer(public: PublicBench) -> None:
    """?ns= is judged under the name of its route; an unknown one is a 404, and never reaches a header."""
    body = b'{"of":"hub"}'
    public.reader.add_manifest("hub/library/alpine", body, "3")
    public.allow("pull", repository="hub/**")
    headers = public.bearer("user:ann", "repository:hub/library/alpine:pull")
    async with public.session.get("/v2/library/alpine/manifests/3?ns=docker.io", headers=headers) as response:
        assert (response.status, await response.read()) == (200, body)
        assert response.headers["OCI-Namespace"] == "docker.io"
    async with public.session.get("/v2/library/alpine/manifests/3", headers=headers) as response:
        assert response.status == 401
    async with public.session.get("/v2/library/alpine/manifests/3?ns=evil.example", headers=headers) as response:
        assert response.status == 404
    async with public.session.get("/v2/?ns=x%0d%0aSet-Cookie:%20a=b", headers=headers) as response:
        assert (response.status, "OCI-Namespace" in response.headers) == (200, False)


async def test_hot_content_is_counted_and_costs_no_upstream(public: PublicBench) -> None:
    """The second pull is a HIT, counted as bytes of the cache."""
    fill(public)
    public.allow("pull")
    for expected in ("MISS", "HIT"):
        async with public.session.get(f"/v2/team/app/blobs/{D}", headers=public.bearer()) as response:
            assert (response.headers["X-Cache"], await response.read()) == (expected, CONTENT)
    observer = public.observer
    assert observer.total(SentBytes, "upstream") == observer.total(SentBytes, "cache") == len(CONTENT)
    assert observer.count(ClientRequest, "get_blob", "GET", 200) == 2
    assert observer.count(AccessDecision, Action.PULL, "allow") == 2


# ---------------------------------------------------------------- lists


async def test_the_catalogue_shows_what_the_caller_may_pull_in_full_pages(public: PublicBench) -> None:
    """Hidden names are removed before paging, and no Link names one; n=0 is empty; n is clamped."""
    for name in ("a/1", "a/2", "b/hidden", "c/3", "c/4", "z/hidden"):
        public.reader.add_manifest(name, BODY, "latest")
    public.allow("pull", repository="a/*")
    public.allow("pull", repository="c/*")
    seen: list[str] = []
    path, link = "/v2/_catalog?n=3", ""
    for _ in range(2):
        async with public.session.get(path, headers=public.bearer("user:ann", "registry:catalog:*")) as response:
            seen.append(json.dumps((await response.json())["repositories"]))
            link = response.headers.get("Link", "")
            assert "hidden" not in link
            path = link.partition("<")[2].partition(">")[0] or path
    assert seen == ['["a/1", "a/2", "c/3"]', '["c/4"]']
    assert link == ""
    for query, count in (("n=0", 0), ("n=1000000000", 4), ("last=c/3", 1), ("last=b", 2)):
        async with public.session.get(f"/v2/_catalog?{query}", headers=public.bearer()) as response:
            assert len((await response.json())["repositories"]) == count, query
    async with public.session.get("/v2/_catalog?n=x", headers=public.bearer()) as response:
        assert response.status == 400


async def test_tags_of_our_own_cannot_be_named(public: PublicBench) -> None:
    """Tags that begin with rp-keep- are absent to readers, refused to writers, and not listed."""
    public.allow("pull", "push", "delete")
    public.reader.add_manifest("team/app", BODY, "latest")
    public.reader.add_manifest("team/app", BODY, "rp-keep-1")
    headers = {**public.bearer(), "Content-Type": OCI_MANIFEST}
    for method, status in (("GET", 404), ("HEAD", 404), ("PUT", 403), ("DELETE", 403)):
        body = BODY if method == "PUT" else None
        path = "/v2/team/app/manifests/rp-keep-1"
        async with public.session.request(method, path, headers=headers, data=body) as response:
            assert response.status == status, method
    async with public.session.get("/v2/team/app/tags/list", headers=headers) as response:
        assert (await response.json())["tags"] == ["latest"]


async def test_tags_are_paged(public: PublicBench) -> None:
    """Tags are sorted, begin after ``last``, and a relative Link leads to the rest."""
    for tag in ("c", "a", "b"):
        public.reader.add_manifest("team/app", BODY, tag)
    public.allow("pull")
    async with public.session.get("/v2/team/app/tags/list?n=2", headers=public.bearer()) as response:
        assert await response.json() == {"name": "team/app", "tags": ["a", "b"]}
        link = response.headers["Link"]
    assert link == '</v2/team/app/tags/list?last=b&n=2>; rel="next"'
    async with public.session.get(link[1:].partition(">")[0], headers=public.bearer()) as response:
        assert (await response.json())["tags"] == ["c"]
        assert "Link" not in response.headers


# ---------------------------------------------------------------- push


async def test_an_upload_in_three_requests(public: PublicBench) -> None:
    """The Locations are on our own host and lead through the upload; the Range says how far it is."""
    public.allow("push")
    headers = public.bearer()
    async with public.session.post("/v2/team/app/blobs/uploads/", headers=headers) as response:
        assert (response.status, response.headers["Range"]) == (202, "0-0")
        assert response.headers["Docker-Upload-UUID"] == "session-0"
        location = response.headers["Location"]
    assert location.startswith("/v2/team/app/blobs/uploads/session-0?_state=")
    chunk = {**headers, "Content-Range": "0-4"}
    async with public.session.patch(location, data=b"12345", headers=chunk) as response:
        assert (response.status, response.headers["Range"]) == (202, "0-4")
        location = response.headers["Location"]
    async with public.session.get(location, headers=headers) as response:
        assert (response.status, response.headers["Range"]) == (204, "0-4")
    async with public.session.put(f"{location}&digest={D}", headers=headers) as response:
        assert (response.status, response.headers["Docker-Content-Digest"]) == (201, str(D))
        assert response.headers["Location"] == f"/v2/team/app/blobs/{D}"
    async with public.session.put(location, headers=headers) as response:
        assert (response.status, (await response.json())["errors"][0]["code"]) == (400, "DIGEST_INVALID")


async def test_a_body_may_be_chunked_or_have_a_length(public: PublicBench) -> None:
    """The operation receives the bytes either way, and the length where there is one."""
    public.allow("push")
    headers = public.bearer()
    path = f"/v2/team/app/blobs/uploads/?digest={D}"
    async with public.session.post(path, data=CONTENT, headers=headers) as response:
        assert response.status == 201
    async with public.session.post(path, data=_pieces(), headers=headers) as response:
        assert response.status == 201
    assert public.push.bodies == [CONTENT, b"12345"]
    assert [call[-1] for call in public.push.calls] == [len(CONTENT), None]


async def _pieces() -> AsyncIterator[bytes]:
    yield b"123"
    yield b"45"


@pytest.mark.parametrize(
    ("query", "scopes", "grants", "status"),
    [
        ("mount={D}&from=team/base", ("pull",), ("pull",), 201),
        ("from=team%2Fbase&mount={D}", ("pull",), ("pull",), 201),
        ("mount={D}&from=team/base", (), ("pull",), 401),
        ("mount={D}&from=team/base", ("pull",), (), 202),
        ("mount={D}&from=team/base", (), (), 202),
        ("mount={D}&from=team/base", ("pull",), ("push",), 202),
        ("mount={D}", ("pull",), ("pull",), 201),
        ("mount={D}", ("push",), ("pull",), 202),
        ("mount={D}", ("pull",), ("push",), 202),
        ("mount={D}", (), ("pull",), 202),
    ],
)
async def test_mount_only_from_where_the_caller_may_read(
    public: PublicBench, query: str, scopes: tuple[str, ...], grants: tuple[str, ...], status: int
) -> None:
    """The answer is 201 with the right in token and grants, else 202, as if the blob were absent.

    A right that only the token misses is asked for. Without a source, any repository of the token may be it.
    """
    public.allow("push")
    for action in grants:
        public.allow(action, repository="team/base")
    public.push.mounted = Descriptor(BLOB_MEDIA_TYPE, D, len(CONTENT))
    public.push.known = {"team/base"}
    headers = public.bearer("user:ann", "repository:team/app:push", *(f"repository:team/base:{s}" for s in scopes))
    path = f"/v2/team/app/blobs/uploads/?{query.format(D=D)}"
    async with public.session.post(path, headers=headers, data={"from": "team/base"}) as response:
        assert response.status == status
        assert ("_state" in response.headers.get("Location", "")) == (status == 202)
        scope = 'scope="repository:team/app:pull,push repository:team/base:pull"'
        assert (scope in response.headers.get("WWW-Authenticate", "")) == (status == 401)
    assert any(call[0] == "mount" for call in public.push.calls) == (status == 201)


async def test_a_mount_without_a_source_that_nobody_knows_is_an_upload(public: PublicBench) -> None:
    """Where this node knows no repository with the blob, no registry is asked."""
    public.allow("push")
    public.allow("pull", repository="team/base")
    headers = public.bearer("user:ann", "repository:team/app:push", "repository:team/base:pull")
    public.push.mounted = Descriptor(BLOB_MEDIA_TYPE, D, len(CONTENT))
    path = f"/v2/team/app/blobs/uploads/?mount={D}"
    async with public.session.post(path, headers=headers) as response:
        assert response.status == 202
    assert not any(call[0] == "mount" for call in public.push.calls)


@pytest.mark.parametrize("query", ["mount={D}&from=team/base&from=team/app", "mount={D}&mount={D}&from=team/base"])
async def test_a_mount_with_two_values_of_a_parameter_is_refused(public: PublicBench, query: str) -> None:
    """A parameter given twice could be judged by one value and acted on by the other."""
    public.allow("push")
    path = f"/v2/team/app/blobs/uploads/?{query.format(D=D)}"
    async with public.session.post(path, headers=public.bearer()) as response:
        assert response.status == 400


async def test_the_create_action_pushes_without_moving_tags(public: PublicBench) -> None:
    """With the right to create the operation may not move tags; tag patterns limit tags."""
    public.allow("create", tags="v*")
    headers = {**public.bearer(), "Content-Type": f"{OCI_MANIFEST}; charset=utf-8"}
    async with public.session.put("/v2/team/app/manifests/v1", data=BODY, headers=headers) as response:
        assert (response.status, response.headers["Docker-Content-Digest"]) == (201, str(M))
        assert response.headers["Location"] == f"/v2/team/app/manifests/{M}"
        assert "OCI-Subject" not in response.headers
    async with public.session.put("/v2/team/app/manifests/latest", data=BODY, headers=headers) as response:
        assert response.status == 401
    async with public.session.post("/v2/team/app/blobs/uploads/", headers=headers) as response:
        assert response.status == 202
    public.allow("push", tags="latest")
    async with public.session.put("/v2/team/app/manifests/latest", data=BODY, headers=headers) as response:
        assert response.status == 201
    manifests = [call[2:] for call in public.push.calls if call[0] == "manifest"]
    assert manifests == [("v1", OCI_MANIFEST, False), ("latest", OCI_MANIFEST, True)]


async def test_a_large_manifest_passes_and_a_huge_one_is_not_read(public: PublicBench) -> None:
    """4 MiB are accepted; more is refused by its announced length, or by count without one."""
    public.allow("push")
    headers = {**public.bearer(), "Content-Type": OCI_MANIFEST}
    async with public.session.put(
        "/v2/team/app/manifests/x", data=io.BytesIO(bytes(MANIFEST_MAX_BYTES)), headers=headers
    ) as r:
        assert r.status == 201
    request = public.request("PUT /v2/team/app/manifests/x", ["Content-Length: 1073741824", "Expect: 100-continue"])
    answer = await public.raw(request, timeout_seconds=20)
    assert (answer.status, b"SIZE_INVALID" in answer.body) == (413, True)
    chunked = public.request("PUT /v2/team/app/manifests/x", ["Transfer-Encoding: chunked"])
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    answer = await public.raw(chunked + chunk * 6 + b"0\r\n\r\n")
    assert (answer.status, b"SIZE_INVALID" in answer.body) == (413, True)
    assert len(public.push.bodies) == 1


async def test_trial_grants_are_counted(public: PublicBench) -> None:
    """A grant in mode warn allows the request, and the decision is counted as would_deny."""
    fill(public)
    public.control.grants.append(grant("user:ann", "team/*", "pull", mode="warn"))
    async with public.session.get("/v2/team/app/tags/list", headers=public.bearer()) as response:
        assert response.status == 200
    async with public.session.get(
        "/v2/x/tags/list", headers=public.bearer("user:ann", "repository:x:pull")
    ) as response:
        assert response.status == 401
    assert public.observer.count(AccessDecision, Action.PULL, "would_deny") == 1
    assert public.observer.count(AccessDecision, Action.PULL, "deny") == 1


async def test_encoded_bodies_are_refused(public: PublicBench) -> None:
    """Blobs are stored as they are sent: a Content-Encoding would be lost."""
    public.allow("push")
    headers = {**public.bearer(), "Content-Encoding": "gzip"}
    async with public.session.put("/v2/team/app/manifests/x", data=BODY, headers=headers) as response:
        assert response.status == 415
    assert public.push.bodies == []


async def test_a_holding_is_learned_from_pull_only_for_its_repository(public: PublicBench) -> None:
    """A cached blob does not leak over HTTP to another repository, for the same subject and digest."""
    fill(public)
    public.allow("pull", repository="**")
    headers = public.bearer("user:ann", "repository:team/app:pull", "repository:team/b:pull")
    async with public.session.get(f"/v2/team/app/blobs/{D}", headers=headers) as response:
        assert response.status == 200
    async with public.session.get(f"/v2/team/b/blobs/{D}", headers=headers) as response:
        assert (response.status, "X-Cache" in response.headers) == (404, False)
    assert public.holdings.find(APP, ContentKind.BLOB, D) is not None
