"""Promotions write the tags of signatures: only those that the caller could push."""

from tests.conftest import StartProxy
from tests.path.test_promotion import NEAR, promote
from tests.support.product import make_image
from tests.support.servers import Server

SOURCE = "team/app"


def test_the_tag_of_a_signature_needs_the_right_to_it(registries: list[Server], start_proxy: StartProxy) -> None:
    """A user who may push dev-* alone brings no signature into the target, and gets the tag that is missing."""
    proxy = start_proxy(registries)
    ann = proxy.add_user("ann", pull_push=["team/**"])
    with proxy.admin() as admin:
        for tags in ("dev-*", "v1"):
            grant = {"subject": "user:ann", "repository": "prod/**", "tags": tags, "actions": ["push"]}
            admin.post("/grants", json=grant).raise_for_status()
    image, forged = make_image(b"one"), make_image(b"forged signature")
    signature = f"{image.digest.replace(':', '-')}.sig"
    ann.push(SOURCE, "v1", image)
    assert promote(proxy, ann, f"{SOURCE}:v1", f"{NEAR}:v1").status_code == 200
    ann.push(SOURCE, signature, forged)
    for is_dry in (True, False):
        refused = promote(proxy, ann, f"{SOURCE}:v1", f"{NEAR}:dev-1", dry_run=is_dry)
        assert refused.status_code == 403, refused.text
        assert signature in refused.text
    with proxy.admin() as admin:
        items = admin.get("/tags", params={"repository": NEAR}).json()["items"]
    assert [item["tag"] for item in items] == ["v1"]
    owner = proxy.add_user("owner", pull_push=["team/**", "prod/**"])
    assert promote(proxy, owner, f"{SOURCE}:v1", f"{NEAR}:dev-1").status_code == 200
    assert promote(proxy, ann, f"{SOURCE}:v1", f"{NEAR}:dev-2").status_code == 200, "the signature is there already"
