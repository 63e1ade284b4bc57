"""Replicas from DNS, seen from outside: they come and go without a restart and without a failed request."""

import httpx

from tests.conftest import StartProxy, StartRegistry
from tests.support.product import OCI_MANIFEST, Proxy, make_image, random_bytes
from tests.support.servers import Dns, wait_until


def states(proxy: Proxy) -> dict[str, str]:
    """Return the state of each replica, by its name."""
    with proxy.admin() as admin:
        (upstream,) = admin.get("/upstreams").raise_for_status().json()["items"]
    return {replica["name"]: replica["state"] for replica in upstream["replicas"]}


def test_a_registry_that_comes_into_dns_is_filled_and_one_that_leaves_is_known(
    dns: Dns, start_proxy: StartProxy, start_registry: StartRegistry
) -> None:
    """A second target of the SRV record becomes equal to the first, and then serves all its contents alone."""
    first, second = start_registry("first"), start_registry("second")
    hosts = ("--host-record=first.test,127.0.0.1", "--host-record=second.test,127.0.0.1")
    service = "--srv-host=_registry._tcp.test"
    dns.serve(*hosts, f"{service},first.test,{first.port}")
    main = {"replicas": [{"url": "http://_registry._tcp.test", "discover": "srv"}]}
    extra = {"nameservers": [f"127.0.0.1:{dns.port}"], "upstreams": {"main": main}}
    proxy = start_proxy([first], extra)
    user = proxy.add_user("ann", pull_push=["**"])
    image = make_image(random_bytes(100_000))
    user.push("team/app", "1", image)
    names = [f"first.test:{first.port}", f"second.test:{second.port}"]
    assert states(proxy) == {names[0]: "up"}

    dns.serve(*hosts, f"{service},first.test,{first.port}", f"{service},second.test,{second.port}")
    wait_until(lambda: states(proxy) == dict.fromkeys(names, "up"), "both are up", timeout_seconds=90)
    tag = f"{second.url}/v2/team/app/manifests/1"
    wait_until(
        lambda: httpx.get(tag, headers={"Accept": OCI_MANIFEST}, verify=False).status_code == 200,
        "the second has the image",
    )
    dns.serve(*hosts, f"{service},second.test,{second.port}")
    first.stop()
    wait_until(lambda: states(proxy)[names[0]] == "down", "the first is down, and still known")
    assert user.pull("team/app", "1") == image
