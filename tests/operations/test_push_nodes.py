"""Uploads whose requests reach different nodes, with separate spools and caches, over the same replicas."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from registry_proxy.operations.push import UploadAnswer
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.uploads import UploadBody
from registry_proxy.protocol.errors import ErrorCode
from registry_proxy.protocol.reference import Digest, digest_of
from registry_proxy.tasks import spawn
from tests.support.fakes.memory import MemoryCache, MemoryHoldings
from tests.support.fakes.replicas import (
    ANN,
    REPOSITORY,
    ROUTED,
    MemoryReplica,
    MemoryReplicaSet,
    MemorySpool,
    Pushing,
    body_of,
    pushing,
    ref,
)
from tests.support.refusal import refused
from tests.support.waiting import until

LAYER = os.urandom(300_000)
DIGEST = digest_of(LAYER)


@dataclass
class Node:
    """One node with its own spool and cache."""

    spool: MemorySpool
    cache: MemoryCache
    under_test: Pushing

    async def start(self) -> UploadAnswer:
        return await self.under_test.push.start_upload(ROUTED, ANN)

    async def append(self, at: UploadAnswer, content: bytes) -> UploadAnswer:
        push = self.under_test.push
        return await push.append_upload(ref(at), UploadBody(body_of(content)))

    async def commit(self, at: UploadAnswer, content: bytes = b"", digest: Digest = DIGEST) -> None:
        push = self.under_test.push
        await push.commit_upload(ref(at), digest, UploadBody(body_of(content)))


@dataclass
class Nodes:
    """Two nodes over two replicas."""

    a: MemoryReplica
    b: MemoryReplica
    replicas: MemoryReplicaSet
    one: Node
    two: Node

    def assert_at_both(self) -> None:
        """The layer is at both replicas, nothing is missed, and no node keeps anything for a replica."""
        assert self.a.blobs == self.b.blobs == {(REPOSITORY, DIGEST): LAYER}
        assert self.one.spool.pins == self.two.spool.pins == set()


@pytest_asyncio.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """Assemble two nodes over one store; at the end no upload may be open, and no tail may be left."""
    a, b = MemoryReplica(name="a"), MemoryReplica(name="b")
    replicas = MemoryReplicaSet([a, b])
    async with AsyncExitStack() as stack:
        made = []
        for name in ("one", "two"):
            cache = MemoryCache()
            stack.push_async_callback(cache.aclose)
            (tmp_path / name).mkdir()
            spool = MemorySpool(str(tmp_path / name), cache, name)
            opened = pushing(tmp_path, replicas, spool, cache, MemoryHoldings())
            made.append(Node(spool, cache, await stack.enter_async_context(opened)))
        yield Nodes(a, b, replicas, *made)
        for node in made:
            assert node.spool.open == {}
            assert "tail" not in node.spool.sessions


@pytest.mark.parametrize("way", list(itertools.product(range(2), repeat=4)), ids=str)
async def test_every_request_may_come_to_another_node(nodes: Nodes, way: tuple[int, ...]) -> None:
    """POST, two PATCHes and the PUT, spread over the nodes in every way, give 201 and the blob at both replicas."""
    both = (nodes.one, nodes.two)
    at = await both[way[0]].start()
    at = await both[way[1]].append(at, LAYER[:1000])
    at = await both[way[2]].append(at, LAYER[1000:200_000])
    await both[way[3]].commit(at, LAYER[200_000:])
    nodes.assert_at_both()
    assert await nodes.one.under_test.intents() == {}
    for node in both:
        assert node.cache.read_small(DIGEST) in {None, LAYER}


async def test_docker_over_two_nodes(nodes: Nodes) -> None:
    """The whole layer in one PATCH to one node, the PUT without a body to the other."""
    at = await nodes.one.append(await nodes.one.start(), LAYER)
    await nodes.two.commit(at)
    nodes.assert_at_both()
    assert nodes.a.count("push_blob") == 0


async def test_bytes_that_another_node_took_in_their_place_are_the_ones_that_count(nodes: Nodes) -> None:
    """After a PATCH whose answer was lost, a repetition with other bytes at another node replaces the first one."""
    start = await nodes.one.start()
    await nodes.one.append(start, bytes(len(LAYER)))
    at = await nodes.two.append(start, LAYER)
    await nodes.one.commit(at)
    nodes.assert_at_both()
    assert nodes.one.cache.read_small(DIGEST) in {None, LAYER}
    assert nodes.one.spool.sessions == []


async def test_a_replica_that_is_down_at_the_commit_is_recorded(nodes: Nodes) -> None:
    """The copy at the committing node counts as the second one: fetched back, pinned, and on record."""
    at = await nodes.one.append(await nodes.one.start(), LAYER)
    nodes.replicas.down.add("b")
    await nodes.two.commit(at)
    assert nodes.two.cache.read_small(DIGEST) == LAYER
    assert nodes.two.spool.pins == {DIGEST}
    assert list((await nodes.one.under_test.intents()).values()) == [["b"]]


async def test_a_replica_that_lost_its_session_gets_the_blob_from_another(nodes: Nodes) -> None:
    """With both needed for the quorum and the session of one gone, it gets the blob from the other one."""
    nodes.replicas.write_quorum = 2
    at = await nodes.one.append(await nodes.one.start(), LAYER[:1000])
    nodes.b.uploads.clear()
    at = await nodes.two.append(at, LAYER[1000:])
    await nodes.one.commit(at)
    nodes.assert_at_both()
    assert await nodes.one.under_test.intents() == {}


async def test_a_blob_is_copied_only_when_the_whole_of_it_came_back(nodes: Nodes) -> None:
    """Nothing goes to the other replica until the first one has sent the whole blob; then all of it does."""
    nodes.replicas.write_quorum = 2
    at = await nodes.one.append(await nodes.one.start(), LAYER)
    nodes.b.uploads.clear()
    nodes.a.body_gate = asyncio.Event()
    commit = spawn(nodes.two.commit(at), "commit")
    await until(lambda: nodes.a.count("open_blob") == 1)
    assert nodes.b.count("push_blob") == 0
    nodes.a.body_gate.set()
    await commit
    nodes.assert_at_both()


async def test_a_copy_that_fails_keeps_nothing_and_acknowledges_nothing(nodes: Nodes) -> None:
    """Without a quorum in the end nothing stays pinned for a replica that misses nothing."""
    nodes.replicas.write_quorum = 2
    at = await nodes.one.append(await nodes.one.start(), LAYER)
    nodes.b.uploads.clear()
    nodes.b.errors["push_blob"] = UpstreamUnavailableError("the connection broke")
    assert (await refused(nodes.two.commit(at))).status == 503
    assert nodes.two.spool.pins == set()
    assert await nodes.two.under_test.intents() == {}


async def test_an_end_that_is_repeated_is_acknowledged_again(nodes: Nodes) -> None:
    """After the death of the node with the PUT, the other node finds the blob in place of the session."""
    at = await nodes.one.append(await nodes.one.start(), LAYER)
    for location in [*nodes.a.uploads]:
        await nodes.a.commit_upload(location, DIGEST)
    nodes.b.uploads.clear()
    await nodes.two.commit(at)
    nodes.assert_at_both()


async def test_an_upload_that_is_lost_is_not_taken_for_another_blob(nodes: Nodes) -> None:
    """An existing blob of that digest with another size than the upload does not complete it."""
    for replica in (nodes.a, nodes.b):
        replica.add_blob(REPOSITORY, b"other")
    at = await nodes.two.append(await nodes.one.append(await nodes.one.start(), LAYER[:1000]), LAYER[1000:])
    nodes.a.uploads.clear()
    nodes.b.uploads.clear()
    error = await refused(nodes.one.commit(at, digest=digest_of(b"other")))
    assert (error.status, error.code) == (404, ErrorCode.BLOB_UPLOAD_UNKNOWN)


async def test_a_full_disk_keeps_nothing_and_acknowledges_nothing(nodes: Nodes) -> None:
    """A blob that one replica misses and this node cannot keep is not acknowledged."""
    at = await nodes.one.append(await nodes.one.start(), LAYER)
    nodes.b.uploads.clear()
    nodes.two.spool.is_full = nodes.two.cache.is_full = True
    assert (await refused(nodes.two.commit(at))).status == 503


async def test_without_any_session_the_upload_is_unknown(nodes: Nodes) -> None:
    """When no replica has the earlier bytes, PATCH, PUT and status are 404, and the client starts again."""
    at = await nodes.one.append(await nodes.one.start(), LAYER[:1000])
    nodes.a.uploads.clear()
    nodes.b.uploads.clear()
    error = await refused(nodes.two.append(at, LAYER[1000:]))
    assert (error.status, error.code) == (404, ErrorCode.BLOB_UPLOAD_UNKNOWN)
    error = await refused(nodes.two.commit(at, LAYER[1000:]))
    assert (error.status, error.code) == (404, ErrorCode.BLOB_UPLOAD_UNKNOWN)
    error = await refused(nodes.two.under_test.push.upload_status(ref(at)))
    assert (error.status, error.code) == (404, ErrorCode.BLOB_UPLOAD_UNKNOWN)
    assert nodes.a.blobs == nodes.b.blobs == {}
    await nodes.one.commit(at, LAYER[1000:])  # the node that has it all still can
    nodes.assert_at_both()


@pytest.mark.parametrize("last", [b"", b"tail"])
async def test_a_wrong_digest_is_refused_by_node_or_replicas(nodes: Nodes, last: bytes) -> None:
    """A wrong digest is refused here where the Location has the hash, else by the replicas; nothing is stored."""
    at = await nodes.one.append(await nodes.one.start(), LAYER)
    error = await refused(nodes.two.commit(at, last, digest_of(b"other")))
    assert (error.status, error.code) == (400, ErrorCode.DIGEST_INVALID)
    assert nodes.a.blobs == nodes.b.blobs == {}
    assert nodes.two.spool.pins == set()


async def test_status_and_cancel_through_another_node(nodes: Nodes) -> None:
    """Any node reports an upload's progress, also with an older part of it, and cancels it at the replicas."""
    at = await nodes.one.append(await nodes.one.start(), LAYER[:1000])
    at = await nodes.two.append(at, LAYER[1000:2000])
    push = nodes.one.under_test.push
    nodes.a.uploads.clear()  # one replica with the upload is enough
    status = await push.upload_status(ref(at))
    assert status.offset == 2000
    await push.cancel_upload(ref(status))
    assert nodes.a.uploads == nodes.b.uploads == {}
    assert nodes.one.spool.sessions == nodes.two.spool.sessions == []
