"""`_catalog` fails during the outage of an upstream only for callers who may see something of that upstream.

Reports: catalog pages and list jobs of one team that fail because a registry of another team, or a mirror, is down.
"""

from tests.conftest import StartProxy
from tests.support.product import User, make_image
from tests.support.servers import Server


def catalog(user: User) -> tuple[int, list[str] | None]:
    """Return the status of `_catalog`, and the repositories in it."""
    with user.client("", "") as client:
        client.headers["Authorization"] = f"Bearer {user.token('registry:catalog:*')}"
        answer = client.get(f"{user.base_url}/v2/_catalog")
    return answer.status_code, answer.json().get("repositories")


def test_only_callers_who_may_see_something_there_get_503(registries: list[Server], start_proxy: StartProxy) -> None:
    """Grants decide, also those to everyone; the routes say where their matches can lie."""
    main, other = registries
    upstreams = {
        "main": {"replicas": [{"url": main.url}]},
        "other": {"replicas": [{"url": other.url}], "timeouts": {"first_byte": "1s"}},
    }
    routes = [{"prefix": "", "upstream": "main"}, {"prefix": "other/", "upstream": "other"}]
    proxy = start_proxy([], {"upstreams": upstreams, "routes": routes})
    ann = proxy.add_user("ann", pull_push=["team/**", "*"])  # one component is never below other/
    bob = proxy.add_user("bob", pull=["other/**"])
    eve = proxy.add_user("eve", pull=["**/app"])
    none = proxy.add_user("none")
    ann.push("team/app", "1", make_image(b"layer"))
    other.stop(9)
    assert catalog(ann) == (200, ["team/app"])
    assert catalog(none) == (200, [])
    assert [catalog(user) for user in (bob, eve)] == [(503, None)] * 2
    main.stop(9)
    other.start()
    assert [catalog(bob), catalog(none)] == [(200, []), (200, [])]
    assert [catalog(user) for user in (ann, eve)] == [(503, None)] * 2
    with proxy.admin() as admin:
        grant = {"subject": "anonymous", "repository": "team/**", "actions": ["pull"]}
        admin.post("/grants", json=grant).raise_for_status()
    assert catalog(none) == (503, None)
