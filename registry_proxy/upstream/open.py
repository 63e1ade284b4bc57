"""Opening the upstreams of a worker: the replicas of each, and the readers over them."""

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

from registry_proxy.ports.journal import MarkSource
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.replicas import RegistryReader, UpstreamReader
from registry_proxy.upstream.failover import FailoverReader, ProvesAbsent
from registry_proxy.upstream.replicas import Inspect, UpstreamConfig, UpstreamReplicas
from registry_proxy.upstream.separation import Remembered
from registry_proxy.upstream.sharing import SharedLists

PATIENCE_SECONDS = 5.0
"""How long a request waits for a replica to come back: docker gives up a pull at its first 503."""


@dataclass(frozen=True, slots=True)
class Upstreams:
    """The open upstreams, by name: their replicas, readers for clients, and readers that wait for no replica."""

    replicas: Mapping[str, UpstreamReplicas]
    readers: Mapping[str, UpstreamReader]
    impatient_readers: Mapping[str, RegistryReader]


@contextlib.asynccontextmanager
async def open_upstreams(
    configs: Iterable[UpstreamConfig],
    *,
    marks: MarkSource,
    observer: Observer,
    remembered: Remembered,
    inspect: Inspect,
    proves_absent: ProvesAbsent,
) -> AsyncIterator[Upstreams]:
    """Probe all replicas, and go on in the background for the length of a with block.

    Args:
        configs: the upstreams.
        marks: what each replica misses.
        observer: receives states, pending marks and requests.
        remembered: what this node remembers of the replicas' answers.
        inspect: looks at the replicas of upstreams whose replicas can differ.
        proves_absent: tells of tags of recorded upstreams; see ``FailoverReader``.

    Raises:
        OSError, ssl.SSLError: a ``ca_file`` cannot be used.
    """
    replicas: dict[str, UpstreamReplicas] = {}
    readers: dict[str, UpstreamReader] = {}
    impatient_readers: dict[str, RegistryReader] = {}
    lists = SharedLists()
    async with contextlib.AsyncExitStack() as stack:
        for config in configs:
            name = config.name
            opened = UpstreamReplicas(config, marks, observer, remembered, inspect if config.can_differ else None)
            stack.push_async_callback(opened.aclose)
            await opened.start()
            replicas[name] = opened
            proof = proves_absent if config.is_recorded else None
            readers[name] = FailoverReader(opened, marks, PATIENCE_SECONDS, proof, lists)
            impatient_readers[name] = FailoverReader(opened, marks, 0, proof)
        yield Upstreams(replicas, readers, impatient_readers)
