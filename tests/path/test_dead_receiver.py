"""A receiver that is dead for long: its queue costs the service neither memory nor time."""

import asyncio
import statistics
import time
from pathlib import Path

import pytest

from registry_proxy.events.delivery import Delivery, Lane
from registry_proxy.events.subscription import Subscription
from registry_proxy.ports.outbox import EventType, RegistryEvent
from registry_proxy.ports.store import Change, Table
from registry_proxy.store.open import open_store
from tests.conftest import StartProxy
from tests.support.product import Proxy, User, make_image, random_bytes
from tests.support.servers import Server, free_port, wait_until

REPOSITORIES = 100
AT_ONCE = 500
QUEUED = 99_000
STARTS = 3
PUSHES = 20
MEMORY_MAX_BYTES = 16 * 2**20
"""Above this limit the queue, 70 MB in the store, would be in memory."""


async def fill(store_url: str, count: int) -> None:
    """Put a subscription to a dead receiver, with its queue, into the store of a stopped service."""
    dead = Subscription(name="dead", url=f"http://127.0.0.1:{free_port()}/hook")
    async with open_store(store_url, None) as (store, _):
        await store.commit([Change(Table.SUBSCRIPTIONS, "dead", dead.stored())])
        for first in range(0, count, AT_ONCE):
            await store.commit([queued(number) for number in range(first, min(count, first + AT_ONCE))])
        lanes = {Lane("dead", f"team/app{number % REPOSITORIES}"): number // REPOSITORIES for number in range(count)}
        await store.commit([Change(Table.LANES, str(lane), {"number": 1 + last}) for lane, last in lanes.items()])


def queued(number: int) -> Change:
    """Return one delivery of the queue."""
    repository, digest = f"team/app{number % REPOSITORIES}", f"sha256:{number:064x}"
    event = RegistryEvent(
        id=f"event-{number}", type=EventType.PUSH, at=time.time(), repository=repository, tag="v1", digest=digest
    )
    delivery = Delivery(event=event, queued_at=time.time())
    return Change(Table.DELIVERIES, Lane("dead", repository).key(1 + number // REPOSITORIES), delivery.stored())


def start_seconds(proxy: Proxy) -> float:
    """Return the shortest time in which a service becomes ready."""
    taken = []
    for _ in range(STARTS):
        proxy.stop()
        begin = time.monotonic()
        proxy.start()
        taken.append(time.monotonic() - begin)
    return min(taken)


def push_seconds(user: User, word: str) -> float:
    """Return the median time of a push to a repository whose events wait for the receiver."""
    taken = []
    for number in range(PUSHES):
        image = make_image(random_bytes(1000))
        begin = time.monotonic()
        user.push("team/app1", f"{word}{number}", image)
        taken.append(time.monotonic() - begin)
    return statistics.median(taken)


@pytest.mark.soak
@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_100_000_deliveries_to_a_dead_receiver_cost_nothing(
    start_proxy: StartProxy, registries: list[Server], redis: Server, tmp_path: Path, store: str
) -> None:
    """Start, pushes and memory are those of a service without a queue, within the usual variance of a machine."""
    url = f"redis://127.0.0.1:{redis.port}/0" if store == "redis" else f"sqlite:///{tmp_path / 'store.db'}"
    proxy = start_proxy(registries, {"store": url, "events": {"allowed_hosts": ["127.0.0.1"]}}, is_copy=False)
    user = proxy.add_user("ann", pull_push=["team/**"])
    before = start_seconds(proxy), push_seconds(user, "before"), proxy.pss_bytes()
    proxy.stop()
    asyncio.run(fill(url, QUEUED))
    proxy.start()
    started = start_seconds(proxy)
    wait_until(lambda: proxy.metric("registry_proxy_events_queued") == QUEUED, "the queue is known")
    after = started, push_seconds(user, "after"), proxy.pss_bytes()
    wait_until(lambda: proxy.metric("registry_proxy_events_queued") == QUEUED + PUSHES, "new events are queued")
    print(f"{store}: start s, push s, bytes: {before} without, {after} with {QUEUED} queued deliveries")
    assert after[0] < 1.5 * before[0] + 0.5, (before, after)
    assert after[1] < 1.5 * before[1] + 0.02, (before, after)
    assert after[2] < before[2] + MEMORY_MAX_BYTES, (before, after)
