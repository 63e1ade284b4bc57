"""Requests of foreign pages, with credentials that a browser remembers or under a name that an attacker owns."""

from collections.abc import Iterator

import httpx
import pytest

from tests.support.copied import Copies
from tests.support.product import Proxy, proxy_server
from tests.support.servers import Server, free_port, running

SIMPLE_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", None)
"""Content types that a page sends without a preflight; None sends none."""

OWN_HOSTS = ("127.0.0.1", "127.0.0.1:{port}", "localhost", "LocalHost:{port}", "[::1]:{port}", "10.1.2.3:5080")
NAMED_HOSTS = ("registry.internal", "Registry.Internal:{port}", "registry.example.com")
FOREIGN_HOSTS = (
    *("evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", "registry.internal.x"),
    *("", ":{port}", "0x7f000001", "[::1].evil.example", "user@127.0.0.1", "evil.example, 127.0.0.1", "127.0.0.1:x"),
)
FOREIGN_ORIGINS = (
    *("http://evil.example", "null", "http://127.0.0.1:1", "http://localhost:{port}.evil.example", "file://"),
    *("http://127.0.0.1", "https://registry.example.com:8443", "http://evil.example http://127.0.0.1:{port}", ""),
)
OWN_ORIGINS = ("http://127.0.0.1:{port}", "https://127.0.0.1:{port}", "https://registry.example.com")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[Proxy]:
    """Start a proxy; it needs no registry for this."""
    root = tmp_path_factory.mktemp("foreign")
    absent = Server([], free_port(), root / "log")
    extra = {"admin_hosts": ["registry.internal"], "public_url": "https://registry.example.com"}
    proxy = proxy_server(root / "proxy", [absent], extra, copies=copies)
    with running(proxy):
        yield proxy


def groups(proxy: Proxy) -> list[str]:
    """Return the names of the groups: each test tries to make one."""
    with proxy.admin() as admin:
        return [group["name"] for group in admin.get("/groups").raise_for_status().json()["items"]]


def put_group(proxy: Proxy, name: str, **headers: str | None) -> httpx.Response:
    """Send a change as the administrator; a header that is None is left out."""
    with proxy.admin() as admin:
        content = b'{"members": []}'
        request = admin.build_request("PUT", f"/groups/{name}", content=content)
        for header, value in {"content-type": "application/json", **headers}.items():
            request.headers.pop(header, None)
            if value is not None:
                request.headers[header] = value.format(port=proxy.admin_port)
        return admin.send(request)


@pytest.mark.parametrize("content_type", SIMPLE_TYPES)
def test_a_change_that_is_not_json_is_refused(proxy: Proxy, content_type: str | None) -> None:
    """A body that a page can send without a preflight is 415 and changes nothing; the answer names the right type."""
    answer = put_group(proxy, "typed", **{"content-type": content_type})
    assert (answer.status_code, answer.headers["Content-Type"]) == (415, "application/problem+json")
    assert "application/json" in answer.json()["detail"]
    with proxy.admin() as admin:
        posted = admin.post("/grants", content=b"{}", headers={"Content-Type": content_type or ""})
    assert posted.status_code == 415
    assert "typed" not in groups(proxy)


def test_json_in_its_spellings_and_no_body_at_all_are_taken(proxy: Proxy) -> None:
    """JSON with parameters, a merge patch, and a change without a body are accepted."""
    for content_type in ("application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"):
        assert put_group(proxy, "json", **{"content-type": content_type}).status_code in {200, 201}
    with proxy.admin() as admin:
        assert admin.post("/audit/verify").status_code == 200
        assert admin.delete("/groups/json").status_code == 204


def test_a_foreign_origin_is_refused(proxy: Proxy) -> None:
    """A request from a page of another origin is 403, whatever its method; one from our own pages is accepted."""
    for origin in FOREIGN_ORIGINS:
        answer = put_group(proxy, "origin", Origin=origin)
        assert (answer.status_code, "origin" in answer.json()["detail"].lower()) == (403, True), origin
        with proxy.admin() as admin:
            assert admin.get("/users", headers={"Origin": origin.format(port=proxy.admin_port)}).status_code == 403
    assert "origin" not in groups(proxy)
    for origin in OWN_ORIGINS:
        assert put_group(proxy, "own", Origin=origin).status_code in {200, 201}, origin


def test_a_foreign_host_is_refused_before_anything_is_revealed(proxy: Proxy) -> None:
    """Under a foreign name the API answers 421, also to reads, without a question for a password."""
    for host in FOREIGN_HOSTS:
        for path in ("/admin/v1/users", "/admin/v1/openapi.json", "/admin/v1/none", "/console/", "/console/login"):
            answer = httpx.get(
                f"{proxy.admin_url}{path}",
                headers={"Host": host.format(port=proxy.admin_port)},
                auth=("admin", "guess"),
                verify=False,
            )
            assert (answer.status_code, "WWW-Authenticate" in answer.headers) == (421, False), (host, path)
            assert "admin_hosts" in answer.json()["detail"]
        assert put_group(proxy, "host", Host=host).status_code == 421, host
    assert "host" not in groups(proxy)


def test_our_own_names_are_taken(proxy: Proxy) -> None:
    """Addresses, localhost, the host of public_url and admin_hosts are accepted, on any port and in any case."""
    for host in (*OWN_HOSTS, *NAMED_HOSTS):
        assert put_group(proxy, "ours", Host=host).status_code in {200, 201}, host


def test_monitoring_is_asked_by_any_name(proxy: Proxy) -> None:
    """Metrics and probes answer whatever Host and Origin are."""
    for path in ("/metrics", "/healthz", "/readyz"):
        headers = {"Host": "node-7.cluster.example", "Origin": "http://grafana.example"}
        assert httpx.get(proxy.admin_url + path, headers=headers, verify=False).status_code == 200
