"""Names that people and clients use for images of Docker Hub lead to them, with the rights of the used name.

Reports: "repository does not exist" for `proxy/hub/debian` at pull-through caches, where docker itself adds `library/`
only to names without a host; mirrors asked with the host of the source in another case.
"""

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.support.product import Proxy, make_image, push_directly, random_bytes

IMAGE = make_image(random_bytes(1000))


@pytest.fixture
def proxy(start_registry: StartRegistry, start_proxy: StartProxy) -> Proxy:
    """Start a proxy before a registry that stands for Docker Hub, and a private one."""
    hub, ours = start_registry("hub"), start_registry("ours")
    push_directly(hub, "library/debian", "1", IMAGE)
    push_directly(ours, "debian", "1", IMAGE)
    upstreams = {
        "hub": {"read_only": True, "replicas": [{"url": hub.url}]},
        "main": {"replicas": [{"url": ours.url}]},
    }
    routes = [
        {"prefix": "hub/", "upstream": "hub", "strip_prefix": True, "namespaces": ["docker.io"]},
        {"prefix": "", "upstream": "main", "namespaces": ["registry.example.com"]},
    ]
    return start_proxy([hub], {"upstreams": upstreams, "routes": routes})


HOSTS = {"docker.io": 200, "Docker.IO": 200, "index.docker.io": 404}


def test_short_names_and_any_case_of_the_host_lead_to_an_official_image(proxy: Proxy) -> None:
    """The short name, the long one, and `ns` in any case lead to it; an alias that is not configured leads nowhere."""
    user = proxy.add_user("ann", pull=["hub/**", "debian"])
    for name in ("hub/debian", "hub/library/debian", "debian"):
        assert user.pull(name, "1") == IMAGE
    bearer = {"Authorization": f"Bearer {user.token('repository:hub/library/debian:pull')}"}
    for host, status in HOSTS.items():
        url = f"{proxy.url}/v2/library/debian/manifests/1?ns={host}"
        assert httpx.get(url, headers=bearer, verify=False).status_code == status, host


def test_rights_are_judged_by_the_name_that_is_used(proxy: Proxy) -> None:
    """A grant on the long name does not open the short one, nor the reverse: hidden is hidden by name."""
    names = ["hub/library/debian", "hub/debian"]
    for mine in names:
        user = proxy.add_user(f"of-{len(mine)}", pull=[mine])
        for name in names:
            assert user.get(name, "manifests/1").status_code == (200 if name == mine else 401)


def test_a_preflight_of_a_browser_is_refused(proxy: Proxy) -> None:
    """A page of another site gets no permission: 401 without a token, 405 with one, no CORS header."""
    token = proxy.add_user("ann").token()
    for headers, status in (({}, 401), ({"Authorization": f"Bearer {token}"}, 405)):
        asked = {"Origin": "https://ui.example.com", "Access-Control-Request-Method": "GET", **headers}
        answer = httpx.request("OPTIONS", f"{proxy.url}/v2/", headers=asked, verify=False)
        assert answer.status_code == status
        assert not [name for name in answer.headers if name.startswith("access-control")]
