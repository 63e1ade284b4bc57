"""A replica whose storage is suddenly empty is detected, filled from the other one, and not trusted meanwhile."""

import shutil

import pytest

from tests.attack.test_replica_back_in_time import (
    REPOSITORY,
    TAGS,
    data_of,
    digests,
    held,
    push_all,
    start,
    tags_at_proxy,
    wait_until_healed,
)
from tests.conftest import StartProxy
from tests.support.product import notice_down
from tests.support.servers import Server, wait_until


def test_a_wiped_replica_is_noticed_before_the_other_one_dies(
    registries: list[Server], start_proxy: StartProxy
) -> None:
    """No request is answered as absent after its return, and soon the replica serves everything alone."""
    first, second = registries
    proxy, user = start(start_proxy, registries)
    images = push_all(user, "one")
    second.stop(9)
    shutil.rmtree(data_of(second))
    notice_down(user, REPOSITORY)
    second.start()
    wait_until(lambda: proxy.metric("registry_proxy_replica_returned_total", reason="empty") > 0, "it is counted")
    # The metrics are up to a second old and may still report nothing as missing.
    wait_until(lambda: held(second) == digests(images), "it is filled", timeout_seconds=60)
    wait_until_healed(proxy)
    first.stop(9)
    proxy.stop()
    shutil.rmtree(proxy.cache / "repositories")
    proxy.start()
    assert tags_at_proxy(user) == digests(images)
    assert user.pull(REPOSITORY, TAGS[0]) == images[TAGS[0]]


@pytest.mark.soak  # its short form is in tests/repair/test_inspection.py
def test_a_wiped_replica_says_nothing_is_absent(registries: list[Server], start_proxy: StartProxy) -> None:
    """With the other one down, a content that it misses is 503 and not 404: it may exist."""
    first, second = registries
    proxy, user = start(start_proxy, registries)
    images = push_all(user, "one")
    for registry in registries:
        registry.stop(9)
    shutil.rmtree(data_of(second))
    proxy.stop()
    shutil.rmtree(proxy.cache / "repositories")
    second.start()
    proxy.start()
    assert user.get(REPOSITORY, f"manifests/{images[TAGS[0]].digest}").status_code == 503
    assert user.get(REPOSITORY, f"manifests/{TAGS[0]}").status_code == 503
    listed = proxy.command("replica", "list")
    assert "empty" in listed.stdout.replace("\n", " "), listed.stdout
    first.start()
    wait_until_healed(proxy)
    assert held(second) == digests(images)
