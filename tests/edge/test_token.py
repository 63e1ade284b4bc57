"""The token endpoint, the keys and the health check."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from registry_proxy.access.id_tokens import IdTokenRefusedError
from registry_proxy.access.issuer_keys import IssuerUnavailableError
from registry_proxy.access.logins import LoginResult
from registry_proxy.ports.metrics import LoginAttempt
from tests.support.fakes.public import PublicBench

ANN = {"Authorization": aiohttp.encode_basic_auth("ann", "ann-password")}


async def ask(public: PublicBench, query: str = "", auth: Mapping[str, str] = ANN) -> tuple[int, Any, Any]:
    """Return status, body and headers of a request for a token."""
    async with public.session.get(f"/auth/token?service=registry-proxy{query}", headers=auth) as response:
        return response.status, await response.json(), response.headers


def access_of(body: Any) -> list[str]:
    """Return the access of the token in an answer, as text."""
    claims = jwt.decode(body["token"], options={"verify_signature": False})
    return sorted(f"{a['type']}:{a['name']}:{','.join(sorted(a['actions']))}" for a in claims["access"])


async def test_fields_of_the_answer(public: PublicBench) -> None:
    """The answer has both names of the token, at least 60 s, a true issued_at, no refresh token, and no caching."""
    status, body, headers = await ask(public, "&account=ann&client_id=docker")
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    assert body["token"] == body["access_token"]
    assert body["expires_in"] >= 60
    issued_at = datetime.strptime(body["issued_at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - issued_at).total_seconds()) < 30
    assert "refresh_token" not in body
    assert access_of(body) == []


async def test_a_token_carries_what_is_asked_and_allowed(public: PublicBench) -> None:
    """Scopes may be repeated or separated by spaces; a scope without the right is left out, never an error."""
    public.allow("pull", "push", repository="team/*")
    query = "&scope=repository:team/a:pull,push&scope=repository:x:pull%20repository:team/b:pull,delete&scope=nonsense"
    status, body, _ = await ask(public, query)
    assert (status, access_of(body)) == (200, ["repository:team/a:pull,push", "repository:team/b:pull"])


async def test_a_token_says_that_a_scope_was_asked_for(public: PublicBench) -> None:
    """A token for a scope is marked as narrowed, also with no access: it is worth less than one without a scope."""
    public.allow("pull", repository="team/*")
    for query, is_scoped in (("", False), ("&scope=repository:team/a:pull", True), ("&scope=repository:x:pull", True)):
        _, body, _ = await ask(public, query)
        claims = jwt.decode(body["token"], options={"verify_signature": False})
        assert claims.get("scoped", False) is is_scoped


async def test_the_token_opens_what_it_carries(public: PublicBench) -> None:
    """A token of the endpoint is accepted at /v2/."""
    public.allow("pull", repository="team/app")
    public.reader.add_manifest("team/app", b"{}", "latest")
    _, body, _ = await ask(public, "&scope=repository:team/app:pull")
    headers = {"Authorization": f"Bearer {body['token']}"}
    for path in ("/v2/", "/v2/team/app/manifests/latest"):
        async with public.session.get(path, headers=headers) as response:
            assert response.status == 200


async def test_anonymous_gets_a_token_of_its_own(public: PublicBench) -> None:
    """Without Authorization the answer is 200 with everybody's rights; /v2/ without a token stays 401."""
    public.allow("pull", subject="anonymous", repository="open/*")
    public.reader.add_manifest("open/app", b"{}", "latest")
    status, body, _ = await ask(public, "&scope=repository:open/app:pull,push", auth={})
    assert (status, access_of(body)) == (200, ["repository:open/app:pull"])
    headers = {"Authorization": f"Bearer {body['token']}"}
    async with public.session.get("/v2/open/app/manifests/latest", headers=headers) as response:
        assert response.status == 200
    for path in ("/v2/", "/v2/open/app/manifests/latest"):
        async with public.session.get(path) as response:
            assert response.status == 401


async def test_a_wrong_password_is_a_401_that_people_can_read(public: PublicBench) -> None:
    """Docker prints the message; unreadable credentials are refused too, and never count as anonymous."""
    status, body, headers = await ask(public, auth={"Authorization": aiohttp.encode_basic_auth("ann", "guess")})
    assert (status, body["errors"][0]["code"]) == (401, "UNAUTHORIZED")
    assert body["errors"][0]["message"] == "incorrect username or password"
    assert headers["WWW-Authenticate"].startswith("Basic")
    for value in ("Basic !!!", "Basic YW5u", "Bearer x", "Basic", ""):
        async with public.session.get("/auth/token", headers={"Authorization": value}) as response:
            assert response.status == 401, value
    assert public.observer.count(LoginAttempt, "refused") == 2  # for the name, and for a possible ID token
    assert "who knows" not in str(body)
    assert [event.rule for event in public.audit.events] == ["who knows why", "who knows why"]


JOB = "oidc:ci/main/acme/app"


@pytest.fixture
def ci(public: PublicBench) -> PublicBench:
    """Accept one ID token, ``good``, which is valid for half a minute."""
    evidence = {"iss": "https://ci.example.com", "sub": "repo:acme/app", "jti": "job-1"}
    public.control.id_tokens["good"] = LoginResult(JOB, expires_at=time.time() + 30, evidence=evidence)
    public.control.id_tokens["bad"] = IdTokenRefusedError("it has expired")
    public.control.id_tokens["unknown"] = IssuerUnavailableError("the keys of https://ci.example.com cannot be fetched")
    public.control.oidc_groups["ci/main"] = ("deployers",)
    public.allow("pull", "push", subject="group:deployers", repository="acme/*")
    return public


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": aiohttp.encode_basic_auth("oidc", "good")}, {"Authorization": "Bearer good"}],
    ids=["password", "bearer"],
)
async def test_an_id_token_is_taken_as_password_and_as_bearer(ci: PublicBench, headers: dict[str, str]) -> None:
    """The bearer token ends with the ID token, is never renewed, and the audit log names the job."""
    query = "&scope=repository:acme/app:pull,push&offline_token=true"
    status, body, _ = await ask(ci, query, auth=headers)
    assert (status, access_of(body), "refresh_token" in body) == (200, ["repository:acme/app:pull,push"], False)
    claims = jwt.decode(body["token"], options={"verify_signature": False})
    assert (claims["sub"], claims["exp"] - claims["iat"] <= 30, body["expires_in"]) == (JOB, True, 60)
    login = ci.audit.events[-1]
    assert (login.action, login.outcome, login.subject, login.detail["jti"]) == ("login", "ok", JOB, "job-1")
    ci.reader.add_manifest("acme/app", b"{}", "latest")
    bearer = {"Authorization": f"Bearer {body['token']}"}
    async with ci.session.get("/v2/acme/app/manifests/latest", headers=bearer) as response:
        assert response.status == 200


async def test_an_id_token_by_post(ci: PublicBench) -> None:
    """The password grant accepts an ID token too, and gives no refresh token for it."""
    form = {"grant_type": "password", "username": "oidc", "password": "good", "access_type": "offline"}
    async with ci.session.post("/auth/token", data=form) as response:
        body = await response.json()
    assert (response.status, "refresh_token" in body) == (200, False)


async def test_the_reason_why_an_id_token_is_refused_is_given(ci: PublicBench) -> None:
    """The reason is in the 401 to the job, and in the audit log."""
    status, body, _ = await ask(ci, auth={"Authorization": "Bearer bad"})
    assert (status, body["errors"][0]["message"]) == (401, "the ID token is refused: it has expired")
    event = ci.audit.events[-1]
    assert (event.action, event.outcome, event.subject, event.rule) == ("login", "refused", "", "it has expired")


async def test_an_issuer_that_is_away_is_a_503_that_says_so(ci: PublicBench) -> None:
    """Nobody is let in, the error names the issuer, and a metric counts it."""
    status, body, headers = await ask(ci, auth={"Authorization": "Bearer unknown"})
    assert (status, body["errors"][0]["code"], "Retry-After" in headers) == (503, "UNAVAILABLE", True)
    assert "the keys of https://ci.example.com cannot be fetched" in body["errors"][0]["message"]
    assert ci.observer.count(LoginAttempt, "unavailable") == 1
    event = ci.audit.events[-1]
    assert (event.outcome, event.rule) == ("failed", "the keys of https://ci.example.com cannot be fetched")


async def test_too_many_logins_must_wait(public: PublicBench) -> None:
    """Too many logins get 429 with Retry-After."""
    public.control.is_limited = True
    status, body, headers = await ask(public)
    assert (status, headers["Retry-After"], body["errors"][0]["code"]) == (429, "7", "TOOMANYREQUESTS")
    assert (public.audit.events[-1].outcome, public.audit.events[-1].rule) == ("limited", "too many logins at once")


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"grant_type": "password", "username": "ann", "password": "ann-password"}, 200),
        ({"grant_type": "password", "username": "ann", "password": "wrong"}, 401),
        ({"grant_type": "password"}, 401),
        ({"grant_type": "authorization_code"}, 400),
        ({}, 400),
    ],
)
async def test_post_takes_the_form_of_oauth2(public: PublicBench, form: dict[str, str], status: int) -> None:
    """The password grant works; any other request is a 4xx from which containerd falls back to GET."""
    public.allow("pull", repository="team/app")
    scope = {"service": "registry-proxy", "client_id": "x", "scope": "repository:team/app:pull,push registry:x:y"}
    async with public.session.post("/auth/token", data={**form, **scope}) as response:
        assert response.status == status
        body = await response.json()
    if status == 200:
        assert (access_of(body), body["scope"]) == (["repository:team/app:pull"], "repository:team/app:pull")
        assert body["token_type"] == "Bearer"
        assert "refresh_token" not in body
    else:
        assert "wrong" not in body["errors"][0]["message"]


@pytest.mark.parametrize("body", [b"{", b"x" * 70_000, b"a=1&" * 1000])
async def test_a_body_that_is_no_form_is_refused(public: PublicBench, body: bytes) -> None:
    """A body that is no form is a 4xx."""
    headers = {"Content-Type": "application/json" if body == b"{" else "application/x-www-form-urlencoded"}
    async with public.session.post("/auth/token", data=body, headers=headers) as response:
        assert response.status in {400, 413}
    async with public.session.put("/auth/token", data=b"") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, POST")


async def test_a_store_that_is_away_is_a_503(public: PublicBench) -> None:
    """No token is issued while the subject cannot be looked up."""
    public.control.is_away = True
    status, body, headers = await ask(public)
    assert (status, body["errors"][0]["code"], "Retry-After" in headers) == (503, "UNAVAILABLE", True)


async def test_keys_and_health(public: PublicBench) -> None:
    """JWKS and liveness are open to everybody, by GET and HEAD."""
    async with public.session.get("/auth/keys") as response:
        assert (response.status, "keys" in await response.json()) == (200, True)
    async with public.session.head("/healthz") as response:
        assert response.status == 200
    async with public.session.post("/healthz") as response:
        assert response.status == 405
    for path in ("/metrics", "/admin/v1/users", "/"):
        async with public.session.get(path) as response:
            assert response.status == 404


async def test_no_secret_reaches_the_log(public: PublicBench, caplog: pytest.LogCaptureFixture) -> None:
    """The log holds no passwords, no tokens and no signed state of an upload."""
    caplog.set_level("DEBUG", logger="registry_proxy")
    await ask(public, auth={"Authorization": aiohttp.encode_basic_auth("ann", "guess-what")})
    public.allow("push")
    headers = public.bearer()
    path = "/v2/team/app/blobs/uploads/session-0?_state=signed-state"
    async with public.session.patch(path, data=b"x", headers=headers) as response:
        assert response.status == 404
    logged = [*public.logged, *(record.__dict__ for record in caplog.records)]
    text = "".join(json.dumps(fields, default=str) for fields in logged)
    assert "/v2/team/app/blobs/uploads/session-0" in text
    for secret in ("guess-what", "signed-state", headers["Authorization"][7:], "Z3Vlc3M"):
        assert secret not in text


@pytest.mark.parametrize("path", ["/v2/", "/auth/token"])
async def test_each_answer_has_a_request_id(public: PublicBench, path: str) -> None:
    """Two requests have two IDs; an ID from a stranger is not taken over."""
    seen = set()
    for _ in range(2):
        async with public.session.get(path, headers={"X-Request-ID": "mine"}) as response:
            seen.add(response.headers["X-Request-ID"])
    assert len(seen - {"mine"}) == 2


async def test_the_address_of_a_login_is_the_peer_s(tmp_path: Path) -> None:
    """X-Forwarded-For of an untrusted proxy does not evade the limit."""
    async with PublicBench(tmp_path).serving() as public:
        headers = {**ANN, "X-Forwarded-For": "203.0.113.9"}
        async with public.session.get("/auth/token", headers=headers) as response:
            assert response.status == 200
        assert public.control.logins == [("ann", "127.0.0.1")]
