"""A real registry that hangs: it accepts connections, and never answers."""

import signal

from tests.conftest import StartProxy, StartRegistry
from tests.support.product import digest_of, push_blob_directly, random_bytes
from tests.support.relayed import REPOSITORY
from tests.support.servers import wait_until

QUICK = {"upstreams": {"main": {"timeouts": {"first_byte": "1s", "probe": "1s"}}}}


def test_one_that_never_answers_is_waited_for_once(start_registry: StartRegistry, start_proxy: StartProxy) -> None:
    """Of many pulls one passes its deadline at the hung registry; no other waits for it until a probe succeeds."""
    registries = [start_registry(name) for name in ("first", "second")]
    proxy = start_proxy(registries, QUICK)
    user = proxy.add_user("ann", pull=["team/**"])
    blobs = [random_bytes(1000 + number) for number in range(50)]
    for blob in blobs:
        for registry in registries:
            push_blob_directly(registry, REPOSITORY, blob)
    hole = registries[0]
    name = f"127.0.0.1:{hole.port}"

    def asked(**labels: str) -> float:
        return proxy.metric("registry_proxy_upstream_requests_total", replica=name, method="GET", **labels)

    def pull(some: list[bytes]) -> None:
        for blob in some:
            assert user.get(REPOSITORY, f"blobs/{digest_of(blob)}").content == blob

    hole.send_signal(signal.SIGSTOP)
    pull(blobs[:30])
    wait_until(lambda: proxy.metric("registry_proxy_replica_state", state="up") == 1, "it is known not to answer")
    silent = {outcome: asked(outcome=outcome) for outcome in ("timeout", "connect", "stall", "cut")}
    assert sum(silent.values()) == silent["timeout"] <= 1, silent
    answered = asked(outcome="2xx")
    hole.send_signal(signal.SIGCONT)
    wait_until(lambda: proxy.metric("registry_proxy_replica_state", state="up") == 2, "a probe was answered")
    pull(blobs[30:])
    assert asked(outcome="2xx") > answered, "it is asked again"
