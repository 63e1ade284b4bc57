"""Manifests on their way to the replicas."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from registry_proxy.ports.history import Cause
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.descriptor import Manifest
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Tag


@dataclass(frozen=True, slots=True)
class WrittenManifest:
    """An acknowledged manifest: the ``revision`` of what is recorded of it, and the names of replicas that miss it."""

    revision: int
    missing: Sequence[str]


class ManifestReplicas(Protocol):
    """Writes manifests and tags to the replicas of an upstream."""

    def lease(self, routed: RoutedRepository, digest: Digest, tag: Tag | None) -> AbstractAsyncContextManager[None]:
        """Serialise the writes of a digest and of a tag over all workers and nodes."""

    def referrers_lease(self, routed: RoutedRepository, tag: Tag) -> AbstractAsyncContextManager[None]:
        """Serialise those who read an index of referrers, and write it with another entry, over all nodes."""

    async def put(
        self,
        routed: RoutedRepository,
        tag: Tag | None,
        manifest: Manifest,
        cause: Cause | None,
        *,
        refuse_move: RegistryError | None,
    ) -> WrittenManifest:
        """Write at a quorum, and record what misses it, under the lease.

        ``refuse_move`` is raised where the tag exists with another digest; None where it may be moved.

        Without a cause there is no event, and no move in the history.
        """
