"""A secret of an administrator that is narrowed to some actions gives no rights of an administrator in the history."""

import httpx

from tests.conftest import StartProxy
from tests.support.product import User, make_image
from tests.support.servers import Server

REPOSITORY = "team/app"


def test_a_narrowed_secret_overrides_no_rule(registries: list[Server], start_proxy: StartProxy) -> None:
    """A job with an administrator's secret to push moves no immutable tag, and sees no addresses."""
    proxy = start_proxy(registries)
    admin = User(proxy, "admin", "correct horse battery")
    for image in (make_image(b"one"), make_image(b"two")):
        admin.push(REPOSITORY, "v1", image)
    with proxy.admin() as client:
        made = client.post("/me/tokens", json={"actions": ["push", "pull"]}).raise_for_status().json()
        rule = {"repository": "team/**", "immutable": ["overwrite"]}
        client.put("/rules/fixed", json=rule).raise_for_status()
    body = {"repository": REPOSITORY, "tag": "v1", "override_rules": True}
    query = {"repository": REPOSITORY, "tag": "v1"}
    with httpx.Client(
        base_url=f"{proxy.admin_url}/admin/v1", auth=("admin", made["secret"]), verify=False, timeout=30
    ) as job:
        refused = job.post("/tags/rollback", json=body)
        assert (refused.status_code, "only an administrator" in refused.text) == (403, True)
        assert {move["address"] for move in job.get("/tags/history", params=query).json()["items"]} == {None}
    with proxy.admin() as client:
        assert {move["address"] for move in client.get("/tags/history", params=query).json()["items"]} == {"127.0.0.1"}
        assert client.post("/tags/rollback", json=body).status_code == 200
