"""Quorum and grace of a write to several replicas."""

import asyncio

import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.replicas import ReplicaClient, StorageKind
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.replication.fanout import check_writable, fan_out, lanes_of, require_quorum
from tests.support.fakes.replicas import MemoryReplica, MemoryReplicaSet

REFUSED = RegistryError(ErrorCode.MANIFEST_INVALID, "no")
DOWN = UpstreamUnavailableError("down")


def replicas(count: int = 3, write_quorum: int = 1, storage: StorageKind = StorageKind.INDEPENDENT) -> MemoryReplicaSet:
    """Return a set of the replicas r0, r1, ..."""
    clients = [MemoryReplica(name=f"r{number}") for number in range(count)]
    return MemoryReplicaSet(clients, write_quorum=write_quorum, storage=storage)


class Operation:
    """A write with a scripted end at each replica: None succeeds, an error is raised, an event is awaited."""

    def __init__(self, **endings: "Exception | asyncio.Event | None") -> None:
        self.endings = endings
        self.asked: list[str] = []

    async def __call__(self, client: ReplicaClient) -> None:
        self.asked.append(client.name)
        ending = self.endings.get(client.name)
        if isinstance(ending, asyncio.Event):
            await ending.wait()
        elif ending is not None:
            raise ending


@pytest.mark.parametrize(
    ("write_quorum", "endings", "missing"),
    [
        (1, {}, []),
        (3, {}, []),
        (1, {"r0": DOWN, "r2": REFUSED}, ["r0", "r2"]),
        (2, {"r1": DOWN}, ["r1"]),
        (2, {"r1": DOWN, "r2": DOWN}, 503),
        (2, {"r1": DOWN, "r2": REFUSED}, 503),
        (1, {"r0": REFUSED, "r1": REFUSED, "r2": REFUSED}, 400),
        (1, {"r0": REFUSED, "r1": REFUSED, "r2": DOWN}, 503),
        (3, {"r0": REFUSED}, 503),
    ],
)
async def test_quorum_table(write_quorum: int, endings: dict[str, Exception], missing: list[str] | int) -> None:
    """With a quorum the result names the replicas that miss the write; if all refuse it is the refusal, else 503."""
    replica_set = replicas(write_quorum=write_quorum)
    outcome = await fan_out(replica_set, lanes_of(replica_set, "key"), Operation(**endings))
    if isinstance(missing, list):
        assert require_quorum(replica_set, outcome) == missing
    else:
        with pytest.raises(RegistryError) as caught:
            require_quorum(replica_set, outcome)
        assert caught.value.status == missing
    assert replica_set.down == {name for name, error in endings.items() if error is DOWN}


async def test_credentials_refused_at_all_is_no_fault_of_the_write() -> None:
    """A 502 of every replica proves nothing about the content: 503, and nothing is taken back."""
    replica_set = replicas()
    error = RegistryError(ErrorCode.UNAVAILABLE, "credentials", status=502)
    outcome = await fan_out(replica_set, lanes_of(replica_set, "key"), Operation(r0=error, r1=error, r2=error))
    assert not outcome.is_refused
    with pytest.raises(RegistryError) as caught:
        require_quorum(replica_set, outcome)
    assert caught.value.status == 503


async def test_a_slow_replica_is_left_behind_after_its_grace() -> None:
    """Past the quorum a slow replica has its grace, then it counts as missing; below it the write waits for it."""
    replica_set, never, soon = replicas(2), asyncio.Event(), asyncio.Event()
    outcome = await fan_out(replica_set, lanes_of(replica_set, "key"), Operation(r1=never), grace_seconds=0.01)
    assert require_quorum(replica_set, outcome) == ["r1"]
    assert replica_set.down == {"r1"}
    replica_set = replicas(2, write_quorum=2)
    operation = Operation(r1=soon)
    task = asyncio.get_running_loop().create_task(
        fan_out(replica_set, lanes_of(replica_set, "key"), operation, grace_seconds=0)
    )
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    soon.set()
    assert require_quorum(replica_set, await task) == []


async def test_shared_storage_asks_one_and_then_the_next() -> None:
    """One replica is enough; the next one is asked after a failed connection, and not after a refusal."""
    replica_set = replicas(storage=StorageKind.SHARED, write_quorum=3)
    (lane,) = lanes_of(replica_set, "key")
    names = [client.name for client in lane]
    operation = Operation(**{names[0]: DOWN})
    assert require_quorum(replica_set, await fan_out(replica_set, [lane], operation)) == []
    assert operation.asked == names[:2]
    operation = Operation(**{names[0]: REFUSED})
    with pytest.raises(RegistryError):
        require_quorum(replica_set, await fan_out(replica_set, [lane], operation))
    assert operation.asked == names[:1]


def test_shared_storage_is_spread_and_goes_on_where_it_began() -> None:
    """Different keys begin at different replicas; a session continues at the replica that has it."""
    replica_set = replicas(storage=StorageKind.SHARED)
    assert {lanes_of(replica_set, str(key))[0][0].name for key in range(100)} == {"r0", "r1", "r2"}
    assert all(lanes_of(replica_set, str(key), {"r1"})[0][0].name == "r1" for key in range(20))


async def test_a_defect_is_not_taken_for_a_replica_that_is_down() -> None:
    """An undeclared error is raised, after the other writes have ended."""
    replica_set = replicas(2)
    with pytest.raises(ZeroDivisionError):
        await fan_out(replica_set, lanes_of(replica_set, "key"), Operation(r0=ZeroDivisionError(), r1=asyncio.Event()))
    assert "r0" not in replica_set.down


def test_a_write_that_is_known_to_fail_is_refused_first() -> None:
    """Read-only is 403 DENIED; too few available replicas are 503; over shared storage one is enough."""
    replica_set = replicas(2, write_quorum=2)
    check_writable(replica_set)
    replica_set.down.add("r0")
    with pytest.raises(RegistryError) as caught:
        check_writable(replica_set)
    assert caught.value.status == 503
    replica_set.storage = StorageKind.SHARED
    check_writable(replica_set)
    replica_set.read_only = True
    with pytest.raises(RegistryError) as caught:
        check_writable(replica_set)
    assert caught.value.status == 403
