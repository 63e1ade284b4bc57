"""Upload sessions as a stolen or stale right: when they end, and their events in the audit log."""

import base64
import json
from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import require_program
from tests.support.copied import Copies
from tests.support.product import Proxy, User, digest_of, proxy_server, random_bytes
from tests.support.servers import docker_registry, running, wait_until

REPOSITORY = "team/app"
PASSWORD = "password of a user"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[Proxy]:
    """Start a proxy with two workers before a registry; each test has users of its own."""
    require_program("docker-registry")
    root = tmp_path_factory.mktemp("sessions")
    with running(docker_registry(root / "registry")) as registry:
        proxy = proxy_server(root / "proxy", [registry], {"workers": 2}, copies=copies)
        with running(proxy):
            yield proxy


def bearer(user: User, actions: str = "pull,push") -> dict[str, str]:
    """Return the headers of a new login."""
    user.tokens.clear()
    return {"Authorization": f"Bearer {user.token(f'repository:{REPOSITORY}:{actions}')}"}


def opened(user: User) -> str:
    """Open a session; return its Location."""
    answer = httpx.post(f"{user.base_url}/v2/{REPOSITORY}/blobs/uploads/", headers=bearer(user))
    assert answer.status_code == 202, answer.text
    return str(httpx.URL(user.base_url).join(answer.headers["Location"]))


def commit(location: str, blob: bytes, headers: dict[str, str], digest: str = "") -> httpx.Response:
    """PUT a blob to a Location."""
    url = httpx.URL(location).copy_merge_params({"digest": digest or digest_of(blob)})
    return httpx.put(url, content=blob, headers=headers, timeout=30)


def steps(location: str, headers: dict[str, str]) -> dict[str, int]:
    """Try every request on a Location; return the statuses."""
    return {
        "GET": httpx.get(location, headers=headers).status_code,
        "PATCH": httpx.patch(location, content=b"more", headers=headers).status_code,
        "PUT": commit(location, random_bytes(10), headers).status_code,
        "DELETE": httpx.delete(location, headers=headers).status_code,
    }


def test_a_session_ends_with_the_right(proxy: Proxy) -> None:
    """Without the grant every step is refused as any other push is; with the grant again it is accepted."""
    ann = proxy.add_user("ann", PASSWORD)
    with proxy.admin() as admin:
        grant = {"subject": "user:ann", "repository": "team/**", "actions": ["pull", "push"]}
        grant_id = admin.post("/grants", json=grant).raise_for_status().json()["id"]
        location, headers = opened(ann), bearer(ann)
        admin.delete(f"/grants/{grant_id}").raise_for_status()
        with_old_token = steps(location, headers)
        assert with_old_token == dict.fromkeys(with_old_token, 401)
        with_new_token = steps(location, bearer(ann))
        assert with_new_token == dict.fromkeys(with_new_token, 401)
        admin.post("/grants", json=grant).raise_for_status()
    blob = random_bytes(100)
    assert commit(location, blob, bearer(ann)).status_code == 201


def test_a_session_ends_with_a_revocation(proxy: Proxy) -> None:
    """After a revocation a new login cannot use a Location from before it."""
    bob = proxy.add_user("bob", PASSWORD, pull_push=["team/**"])
    location = opened(bob)
    with proxy.admin() as admin:
        admin.post("/revocations", json={"subject": "user:bob"}).raise_for_status()
    after = steps(location, bearer(bob))
    assert after == dict.fromkeys(after, 404)


def test_a_session_is_bound_by_a_narrower_token(proxy: Proxy) -> None:
    """A personal token that may only pull, and a token without a scope, cannot continue the user's upload."""
    cat = proxy.add_user("cat", PASSWORD, pull_push=["team/**"])
    location = opened(cat)
    with httpx.Client(base_url=f"{proxy.admin_url}/admin/v1", auth=("cat", PASSWORD)) as api:
        secret = api.post("/me/tokens", json={"actions": ["pull"]}).raise_for_status().json()["secret"]
    narrow = steps(location, bearer(User(proxy, "cat", secret)))
    assert narrow == dict.fromkeys(narrow, 401)
    assert commit(location, random_bytes(10), bearer(cat)).status_code == 201


def test_a_session_outlives_its_token(proxy: Proxy) -> None:
    """Another token of the same subject continues the upload: the expiry of the first ends no upload."""
    dan = proxy.add_user("dan", PASSWORD, pull_push=["team/**"])
    location, blob = opened(dan), random_bytes(5000)
    first = bearer(dan)
    with proxy.admin() as admin:
        patched = httpx.patch(location, content=blob[:3000], headers=first)
        assert patched.status_code == 202
        location = str(httpx.URL(dan.base_url).join(patched.headers["Location"]))
        token_id = token_id_of(first["Authorization"].removeprefix("Bearer "))
        admin.post("/revocations", json={"token_id": token_id}).raise_for_status()
    assert httpx.get(location, headers=first).status_code == 401
    assert commit(location, blob[3000:], bearer(dan), digest_of(blob)).status_code == 201


def token_id_of(token: str) -> str:
    """Return the ID of a token."""
    part = token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["jti"])


def test_a_location_commits_one_blob(proxy: Proxy) -> None:
    """After a commit the Location takes no other blob; a repetition of the same commit is 201."""
    eve = proxy.add_user("eve", PASSWORD, pull_push=["team/**"])
    location, headers, blob = opened(eve), bearer(eve), random_bytes(100)
    assert [commit(location, blob, headers).status_code for _ in range(6)] == [201] * 6
    assert [commit(location, random_bytes(100), headers).status_code for _ in range(6)] == [404] * 6
    assert steps(location, headers) == {"GET": 404, "PATCH": 404, "PUT": 404, "DELETE": 404}


def test_blob_commits_are_audit_events(proxy: Proxy) -> None:
    """Each committed blob, by session, in one request or by a mount, is in the audit log with its digest."""
    fay = proxy.add_user("fay", PASSWORD, pull_push=["team/**"])
    headers, blobs = bearer(fay), [random_bytes(100) for _ in range(2)]
    assert commit(opened(fay), blobs[0], headers).status_code == 201
    uploads = f"{proxy.url}/v2/{REPOSITORY}/blobs/uploads/"
    whole = httpx.post(uploads, params={"digest": digest_of(blobs[1])}, content=blobs[1], headers=headers)
    assert whole.status_code == 201
    fay.tokens.clear()
    token = fay.token(f"repository:{REPOSITORY}:pull", "repository:team/other:pull,push")
    mount = {"mount": digest_of(blobs[0]), "from": REPOSITORY}
    mounted = httpx.post(
        f"{proxy.url}/v2/team/other/blobs/uploads/", params=mount, headers={"Authorization": f"Bearer {token}"}
    )
    assert mounted.status_code == 201
    refused = commit(opened(fay), blobs[0], headers, digest_of(b"another"))
    assert refused.status_code == 400

    def commits() -> list[tuple[str, str, str]]:
        with proxy.admin() as admin:
            items = admin.get("/audit", params={"subject": "user:fay"}).raise_for_status().json()["items"]
        return sorted((each["outcome"], each["repository"], each["digest"]) for each in items if each.get("digest"))

    expected = [
        ("failed", REPOSITORY, digest_of(b"another")),
        ("ok", REPOSITORY, digest_of(blobs[0])),
        ("ok", REPOSITORY, digest_of(blobs[1])),
        ("ok", "team/other", digest_of(blobs[0])),
    ]
    wait_until(lambda: commits() == sorted(expected), f"the audit log tells of {expected}")
