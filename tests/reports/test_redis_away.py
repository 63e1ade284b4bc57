"""While Redis is away, every report of a node's state says so, with the answers that callers got.

Reports: "Redis was down for an hour: /readyz had no warning, and the audit log says 500 where the client saw 503".
"""

import httpx

from tests.conftest import StartProxy, StartRegistry
from tests.support.product import Proxy, make_image
from tests.support.servers import Server, wait_until


def readiness(proxy: Proxy) -> httpx.Response:
    """Return the readiness of a node."""
    return httpx.get(f"{proxy.admin_url}/readyz", timeout=30, verify=False)


def in_audit(proxy: Proxy, action: str) -> list[tuple[int, str]]:
    """Return status and reason of each failed event of an action in the audit log."""
    query = {"action": action, "outcome": "failed"}
    with proxy.admin() as admin:
        events = admin.get("/audit", params=query).raise_for_status().json()["items"]
    return [(event["detail"]["status"], event.get("rule", "")) for event in events]


def test_redis_away_is_reported_everywhere(
    start_proxy: StartProxy, start_registry: StartRegistry, redis: Server
) -> None:
    """/readyz stays 200 with a warning that has the reason; log and audit hold the 503 that the callers got."""
    proxy = start_proxy([start_registry()], {"store": f"redis://127.0.0.1:{redis.port}/0"})
    ann, image = proxy.add_user("ann", pull_push=["team/**"]), make_image(b"layer")
    ann.push("team/app", "1", image)
    assert (readiness(proxy).status_code, readiness(proxy).json()["warnings"]) == (200, [])
    redis.stop()
    wait_until(lambda: readiness(proxy).json()["warnings"] != [], "a warning")
    assert readiness(proxy).status_code == 200
    assert "the store has not answered for" in readiness(proxy).json()["warnings"][0]
    with proxy.admin() as admin:
        assert admin.put("/users/bob", json={"password": "password of bob"}).status_code == 503
    assert ann.push_manifest("team/app", "2", image).status_code == 503
    redis.start()
    wait_until(lambda: readiness(proxy).json()["warnings"] == [], "no warning any more")
    assert [status for status, _ in in_audit(proxy, "users")] == [503]
    ((status, reason),) = in_audit(proxy, "push")
    assert (status, "the store" in reason) == (503, True)
    assert "PUT /admin/v1/users/bob by user:admin: 503" in proxy.log_text()
