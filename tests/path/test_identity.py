"""Identities, seen from outside: refresh tokens, robots, personal tokens, keys, and the end of each."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import StartProxy, StartRegistry, require_program
from tests.support.copied import Copies
from tests.support.fakes.issuer import AUDIENCE, FakeIssuer, running_issuer
from tests.support.product import ADMIN_PASSWORD, Proxy, User, make_image, proxy_server, random_bytes
from tests.support.servers import Server, docker_registry, ldap_server, running, wait_until

SCOPE = "repository:team/app:pull,push"


@pytest.fixture
def registry(start_registry: StartRegistry) -> Server:
    """Start a registry."""
    return start_registry("only")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[Proxy]:
    """Start a proxy with two workers before a registry: for all tests with separate users and robots."""
    require_program("docker-registry")
    root = tmp_path_factory.mktemp("identity")
    with running(docker_registry(root / "registry")) as registry:
        extra = {"workers": 2, "auth": {"refresh_tokens": True}}
        proxy = proxy_server(root / "proxy", [registry], extra, copies=copies)
        with running(proxy):
            yield proxy


def post(proxy: Proxy, **form: str) -> httpx.Response:
    """Send a form to the token endpoint."""
    return httpx.post(f"{proxy.url}/auth/token", data={"service": "registry-proxy", **form}, timeout=30, verify=False)


def claims(token: str) -> dict[str, Any]:
    """Return the claims of a token."""
    part = token.split(".")[1]
    document: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return document


def opens(proxy: Proxy, token: str) -> int:
    """Return the status of a request with a token."""
    return httpx.get(
        f"{proxy.url}/v2/", headers={"Authorization": f"Bearer {token}"}, timeout=30, verify=False
    ).status_code


@pytest.fixture
def log_in(proxy: Proxy) -> Iterator[Callable[[str, str], httpx.Client]]:
    """Return a function that gives a client of the admin API."""
    with ExitStack() as stack:

        def client(name: str, password: str) -> httpx.Client:
            url = f"{proxy.admin_url}/admin/v1"
            return stack.enter_context(httpx.Client(base_url=url, auth=(name, password), timeout=30, verify=False))

        yield client


def add_robot(proxy: Proxy, name: str, **body: Any) -> User:
    """Make a robot with a secret and rights on team/**."""
    with proxy.admin() as admin:
        admin.put(f"/robots/{name}", json=body).raise_for_status()
        made = admin.post(f"/robots/{name}/secrets", json={"label": "first"}).raise_for_status().json()
        grant = {"subject": f"robot:{name}", "repository": "team/**", "actions": ["pull", "push"]}
        admin.post("/grants", json=grant).raise_for_status()
    return User(proxy, f"robot${name}", made["secret"])


def test_a_refresh_token_stands_for_the_password_until_it_is_removed(proxy: Proxy) -> None:
    """It is given only on request, and good for many tokens; its removal ends it and its tokens on every worker."""
    user = proxy.add_user("ann", pull_push=["team/**"])
    plain = post(proxy, grant_type="password", username="ann", password=user.password or "", scope=SCOPE).json()
    assert "refresh_token" not in plain
    first = post(
        proxy, grant_type="password", username="ann", password=user.password or "", access_type="offline"
    ).json()
    refresh_token = first["refresh_token"]
    query = {"offline_token": "true", "client_id": "docker", "service": "registry-proxy"}
    by_get = httpx.get(
        f"{proxy.url}/auth/token", params=query, auth=("ann", user.password or ""), timeout=30, verify=False
    ).json()
    assert by_get["refresh_token"] != refresh_token
    tokens = []
    for _ in range(4):
        answer = post(proxy, grant_type="refresh_token", refresh_token=refresh_token, scope=SCOPE)
        assert answer.status_code == 200
        assert "refresh_token" not in answer.json()
        tokens.append(answer.json()["access_token"])
        assert claims(tokens[-1])["access"] == [{"type": "repository", "name": "team/app", "actions": ["pull", "push"]}]
    assert [opens(proxy, token) for token in tokens] == [200] * 4
    with proxy.admin() as admin:
        listed = admin.get("/users/ann/tokens").json()["items"]
        assert sorted((each["kind"], each["label"]) for each in listed) == [("refresh", ""), ("refresh", "docker")]
        assert refresh_token not in json.dumps(listed)
        (mine,) = [each["id"] for each in listed if each["id"] in refresh_token]
        assert admin.delete(f"/users/ann/tokens/{mine}").status_code == 204
        assert admin.delete(f"/users/ann/tokens/{mine}").status_code == 404
    assert [opens(proxy, token) for token in tokens for _ in range(3)] == [401] * 12
    refused = post(proxy, grant_type="refresh_token", refresh_token=refresh_token)
    assert (refused.status_code, "log in again" in refused.text) == (401, True)  # there is no password to correct
    other = post(proxy, grant_type="refresh_token", refresh_token=by_get["refresh_token"])
    assert other.status_code == 200
    proxy.add_user("ann", password="a new password")
    assert post(proxy, grant_type="refresh_token", refresh_token=by_get["refresh_token"]).status_code == 401
    assert (
        httpx.get(
            f"{proxy.url}/auth/token", auth=("ann", by_get["refresh_token"]), timeout=30, verify=False
        ).status_code
        == 401
    )


def test_a_refresh_token_of_an_administrator_is_no_key_to_the_admin_api(
    proxy: Proxy, log_in: Callable[[str, str], httpx.Client]
) -> None:
    """With an administrator's stored login docker pushes anywhere, and cannot create an administrator."""
    form = {"grant_type": "password", "username": "admin", "password": ADMIN_PASSWORD, "access_type": "offline"}
    kept = post(proxy, **form).json()["refresh_token"]
    scoped = post(proxy, grant_type="refresh_token", refresh_token=kept, scope=SCOPE).json()["access_token"]
    assert claims(scoped)["access"] == [{"type": "repository", "name": "team/app", "actions": ["pull", "push"]}]
    token = post(proxy, grant_type="refresh_token", refresh_token=kept).json()["access_token"]
    assert opens(proxy, token) == 200
    headers = {"Authorization": f"Bearer {token}"}
    body = {"password": "password of mallory", "admin": True}
    with httpx.Client(base_url=f"{proxy.admin_url}/admin/v1", headers=headers, timeout=30, verify=False) as client:
        refused = client.put("/users/mallory", json=body)
        assert (refused.status_code, "log in with the password" in refused.text) == (403, True)
        assert client.get("/me").json()["subject"] == "user:admin"
    assert log_in("admin", kept).get("/users").status_code == 401
    assert log_in("admin", ADMIN_PASSWORD).get("/users/mallory").status_code == 404


def test_a_robot_lives_by_its_secrets(proxy: Proxy) -> None:
    """Two secrets overlap; each is removed alone with its tokens; no secret gives a refresh token."""
    robot = add_robot(proxy, "ci")
    image = make_image(random_bytes(1000))
    robot.push("team/app", "1", image)
    assert robot.pull("team/app", "1") == image
    with proxy.admin() as admin:
        second = admin.post("/robots/ci/secrets", json={}).json()
        listed = admin.get("/robots/ci/secrets").json()["items"]
        assert len(listed) == 2
        assert not any("secret" in each for each in listed)
        new = User(proxy, "robot$ci", second["secret"])
        old_token, new_token = robot.token(SCOPE), new.token(SCOPE)
        assert (opens(proxy, old_token), opens(proxy, new_token)) == (200, 200)
        first_id = next(each["id"] for each in listed if each["id"] != second["id"])
        admin.delete(f"/robots/ci/secrets/{first_id}").raise_for_status()
    assert [opens(proxy, old_token) for _ in range(6)] == [401] * 6
    assert opens(proxy, new_token) == 200
    robot.tokens.clear()
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        robot.token(SCOPE)
    form = {"grant_type": "password", "username": "robot$ci", "password": second["secret"], "access_type": "offline"}
    assert "refresh_token" not in post(proxy, **form).json()
    for name in ("ci", "robot$other", "ann", "admin"):
        assert post(proxy, **{**form, "username": name}).status_code == 401
    with proxy.admin() as admin:
        admin.delete("/robots/ci").raise_for_status()
        assert admin.get("/grants", params={"subject": "robot:ci"}).json()["items"] == []
        assert admin.get("/robots/ci/secrets").status_code == 404
    assert [opens(proxy, new_token) for _ in range(6)] == [401] * 6
    assert post(proxy, **form).status_code == 401


def test_a_robot_ends_with_its_time_and_at_its_networks(proxy: Proxy) -> None:
    """An expired robot, and one that calls from another network, is refused at the login."""
    robot = add_robot(proxy, "visitor", networks=["127.0.0.0/8"])
    assert opens(proxy, robot.token(SCOPE)) == 200
    token = robot.token(SCOPE)
    with proxy.admin() as admin:
        admin.put("/robots/visitor", json={"networks": ["10.0.0.0/8", "2001:db8::/32"]}).raise_for_status()
        robot.tokens.clear()
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            robot.token(SCOPE)
        admin.put("/robots/visitor", json={"expires_at": "2020-01-01T00:00:00Z"}).raise_for_status()
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            robot.token(SCOPE)
        assert opens(proxy, token) == 401
        for wrong in ({"networks": ["10.0.0.1/8"]}, {"networks": ["x"]}, {"expires_at": "soon"}, {"secret": "x"}):
            assert admin.put("/robots/visitor", json=wrong).status_code == 400
        for name in ("a:b", "a$b", "oidc"):
            assert admin.put(f"/robots/{name}", json={}).status_code == 400


def test_a_user_makes_and_removes_tokens_of_its_own(proxy: Proxy, log_in: Callable[[str, str], httpx.Client]) -> None:
    """A user needs no admin for it; read-only tokens cannot push or manage; nobody sees or removes another user's."""
    cat, bob = proxy.add_user("cat", pull_push=["team/**"]), proxy.add_user("bob")
    image = make_image(random_bytes(1000))
    cat.push("team/app", "1", image)
    api = log_in("cat", cat.password or "")
    full = api.post("/me/tokens", json={"label": "laptop"}).raise_for_status().json()
    reading = api.post("/me/tokens", json={"actions": ["pull"]}).raise_for_status().json()
    assert api.post("/me/tokens", json={"actions": ["create"]}).status_code == 400
    assert len(api.get("/me/tokens").json()["items"]) == 2
    assert api.get("/users").status_code == 403
    User(proxy, "cat", full["secret"]).push("team/app", "2", image)
    reader = User(proxy, "cat", reading["secret"])
    assert reader.pull("team/app", "2") == image
    assert reader.push_manifest("team/app", "3", image).status_code == 401
    by_token = log_in("cat", full["secret"])
    assert by_token.post("/me/tokens", json={}).status_code == 403
    other = log_in("bob", bob.password or "")
    assert other.get("/me/tokens").json()["items"] == []
    assert other.delete(f"/me/tokens/{full['id']}").status_code == 404
    token = reader.token("repository:team/app:pull")
    assert api.delete(f"/me/tokens/{reading['id']}").status_code == 204
    assert [opens(proxy, token) for _ in range(6)] == [401] * 6
    with proxy.admin() as admin:
        admin.put("/users/boss", json={"password": "password of boss", "admin": True}).raise_for_status()
    boss = log_in("boss", "password of boss")
    weak = boss.post("/me/tokens", json={"actions": ["pull"]}).json()["secret"]
    strong = boss.post("/me/tokens", json={}).json()["secret"]
    for secret, status in ((weak, 403), (strong, 200)):
        assert (
            httpx.get(f"{proxy.admin_url}/admin/v1/users", auth=("boss", secret), timeout=30, verify=False).status_code
            == status
        )
        bearer = {"Authorization": f"Bearer {User(proxy, 'boss', secret).token()}"}
        assert (
            httpx.get(f"{proxy.admin_url}/admin/v1/users", headers=bearer, timeout=30, verify=False).status_code
            == status
        )


def test_one_token_is_revoked_alone(proxy: Proxy) -> None:
    """A token is revoked by its id, on every worker immediately; the subject's other tokens stay."""
    user = proxy.add_user("dan", pull=["team/**"])
    one = user.token(SCOPE)
    other = user.token("repository:team/other:pull")
    with proxy.admin() as admin:
        admin.post("/revocations", json={"token_id": claims(one)["jti"]}).raise_for_status()
    assert [opens(proxy, one) for _ in range(6)] == [401] * 6
    assert opens(proxy, other) == 200


def test_the_key_is_rotated_without_a_restart(proxy: Proxy) -> None:
    """New tokens name the new key, on every worker; the old ones stay good; both keys are published."""
    user = proxy.add_user("eve", pull=["team/**"])

    def key_of(token: str) -> str:
        part = token.split(".", maxsplit=1)[0]
        return str(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["kid"])

    def fresh() -> str:
        user.tokens.clear()
        return user.token(SCOPE)

    old = fresh()
    with proxy.admin() as admin:
        new_key = admin.post("/keys/rotate").raise_for_status().json()["kid"]
    assert new_key != key_of(old)
    wait_until(lambda: all(key_of(fresh()) == new_key for _ in range(8)), "every worker signs with the new key")
    assert opens(proxy, old) == 200
    published = httpx.get(f"{proxy.url}/auth/keys", timeout=30, verify=False).json()["keys"]
    assert {key_of(old), new_key} <= {key["kid"] for key in published}
    proxy.stop()
    proxy.start()
    assert (opens(proxy, old), key_of(fresh())) == (200, new_key)


def trust(issuer: FakeIssuer) -> dict[str, Any]:
    """Return settings that accept the jobs of acme's main branches as deployers, its other jobs with a name only."""
    rules = [
        {
            "name": "main",
            "claims": {"repository": "acme/*", "ref": "refs/heads/main"},
            "subject": "{repository}",
            "groups": ["deployers"],
        },
        {"name": "any", "claims": {"repository": ["acme/*"]}, "subject": "{repository}"},
    ]
    return {"auth": {"oidc": {"ci": {"issuer": issuer.url, "audience": AUDIENCE, "rules": rules}}}}


def test_a_job_pushes_with_its_id_token_and_nothing_else(start_proxy: StartProxy, registry: Server) -> None:
    """Its rule's group allows it, not another branch; explain and audit name it; a reload without the rule ends it."""
    with running_issuer() as issuer:
        proxy = start_proxy([registry], trust(issuer))
        with proxy.admin() as admin:
            grant = {"subject": "group:deployers", "repository": "prod/**", "actions": ["pull", "push"]}
            admin.post("/grants", json=grant).raise_for_status()
            of_all = {"subject": "oidc:ci/any/acme/app", "repository": "prod/app", "actions": ["pull"]}
            admin.post("/grants", json=of_all).raise_for_status()
        image = make_image(random_bytes(1000))
        job, branch = User(proxy, "oidc", issuer.token()), User(proxy, "oidc", issuer.token(ref="refs/heads/x"))
        job.push("prod/app", "1", image)
        assert branch.pull("prod/app", "1") == image
        assert branch.push_manifest("prod/app", "2", image).status_code == 401
        subject = "oidc:ci/main/acme/app"
        token = job.token("repository:prod/app:pull,push")
        assert claims(token)["sub"] == subject
        assert claims(token)["exp"] <= claims(job.password or "")["exp"]
        bearer = {"Authorization": f"Bearer {issuer.token()}"}
        assert httpx.get(f"{proxy.url}/auth/token", headers=bearer, timeout=30, verify=False).status_code == 200
        assert opens(proxy, issuer.token()) == 401
        assert httpx.post(
            f"{proxy.admin_url}/admin/v1/me/tokens", json={}, auth=("oidc", issuer.token()), verify=False
        ).is_error
        assert (
            httpx.get(f"{proxy.admin_url}/admin/v1/users", auth=("oidc", issuer.token()), verify=False).status_code
            == 403
        )
        expired = issuer.token(exp=issuer.claims()["iat"] - 100)
        answer = post(proxy, grant_type="password", username="oidc", password=expired)
        assert (answer.status_code, "it has expired" in answer.text, expired[-20:] in answer.text) == (401, True, False)
        with proxy.admin() as admin:
            question = {"subject": subject, "repository": "prod/app", "tag": "1", "action": "push"}
            explained = admin.post("/explain", json=question).json()
            assert (explained["allowed"], "group:deployers" in explained["reason"]) == (True, True)
            question["subject"] = "oidc:ci/none/acme/app"
            assert "no rule of auth.oidc makes" in admin.post("/explain", json=question).json()["reason"]

            def audited(**search: str) -> list[dict[str, Any]]:
                found: list[dict[str, Any]] = admin.get("/audit", params={"action": "login", **search}).json()["items"]
                return found

            wait_until(lambda: bool(audited(outcome="refused")), "the refused login is in the audit log")
            assert audited(outcome="refused")[-1]["rule"] == "it has expired"
            assert audited(subject=subject)[0]["detail"]["jti"] == "job-1"
            admin.post("/revocations", json={"subject": subject}).raise_for_status()
            assert [opens(proxy, token) for _ in range(6)] == [401] * 6
            output = proxy.log_text() + httpx.get(f"{proxy.admin_url}/metrics", timeout=30, verify=False).text
            assert (job.password or "")[-20:] not in output
            job.tokens.clear()
            token = job.token("repository:prod/app:pull")
            assert opens(proxy, token) == 200
            settings = yaml.safe_load(proxy.config.read_text())
            del settings["auth"]["oidc"]["ci"]["rules"][0]
            proxy.config.write_text(yaml.safe_dump(settings))
            admin.post("/reload").raise_for_status()
        assert [opens(proxy, token) for _ in range(6)] == [401] * 6


def test_people_log_in_with_the_password_that_ldap_knows(
    start_proxy: StartProxy, registry: Server, tmp_path: Path
) -> None:
    """LDAP decides each login; its users get no refresh token; in an outage logins fail, and tokens stay good."""
    require_program("slapd")
    with running(ldap_server(tmp_path / "slapd", {"ann": "password in LDAP"})) as slapd:
        dn = "uid={name},ou=people,dc=example,dc=com"
        ldap = {"url": f"ldap://127.0.0.1:{slapd.port}", "bind_dn": dn}
        proxy = start_proxy([registry], {"auth": {"ldap": ldap}})
        with proxy.admin() as admin:
            assert admin.put("/users/ann", json={"ldap": True}).raise_for_status().json()["ldap"]
            grant = {"subject": "user:ann", "repository": "team/**", "actions": ["pull", "push"]}
            admin.post("/grants", json=grant).raise_for_status()
        ann, image = User(proxy, "ann", "password in LDAP"), make_image(random_bytes(1000))
        ann.push("team/app", "1", image)
        assert ann.pull("team/app", "1") == image
        form = {"grant_type": "password", "username": "ann", "access_type": "offline"}
        assert "refresh_token" not in post(proxy, **form, password="password in LDAP").json()
        assert post(proxy, **form, password="wrong").status_code == 401
    answer = post(proxy, **form, password="password in LDAP")
    assert (answer.status_code, "LDAP, which may know the password" in answer.text) == (503, True)
    assert str(slapd.port) not in answer.text
    message = f"the LDAP server at 127.0.0.1:{slapd.port} cannot be used"
    wait_until(lambda: message in proxy.log_text(), "the log, which a thread writes, tells why")
    assert proxy.metric("registry_proxy_logins_total", outcome="unavailable") == 1
    assert ann.pull("team/app", "1") == image
    assert "password in LDAP" not in proxy.log_text()


def test_no_secret_is_in_a_log_or_a_metric(proxy: Proxy) -> None:
    """Passwords, secrets and tokens appear in no log and no metric."""
    user = proxy.add_user("fay", password="correct horse of fay", pull_push=["team/**"])
    robot = add_robot(proxy, "porter")
    form = {"grant_type": "password", "username": "fay", "password": "correct horse of fay", "access_type": "offline"}
    refresh_token = post(proxy, **form).json()["refresh_token"]
    bearer = post(proxy, grant_type="refresh_token", refresh_token=refresh_token).json()["token"]
    post(proxy, grant_type="refresh_token", refresh_token=refresh_token[:-1] + "!")
    robot.push("team/app", "1", make_image(b"x"))
    secrets = [user.password, robot.password, refresh_token, bearer, robot.token("repository:team/app:pull,push")]
    output = proxy.log_text() + httpx.get(f"{proxy.admin_url}/metrics", timeout=30, verify=False).text
    for secret in secrets:
        assert secret is not None
        assert secret not in output
        assert secret[-20:] not in output
