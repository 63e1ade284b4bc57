"""Deletions at the replicas."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.protocol.reference import Digest, Tag


class Deletions(Protocol):
    """Deletes at the replicas of an upstream, and sees to it that what was down deletes later.

    A delete without an actor makes no event.
    """

    def check_writable(self, upstream: str) -> None: ...
    async def check_rules(
        self, routed: RoutedRepository, tag_or_digest: Tag | Digest, actor: Actor | None
    ) -> Sequence[Tag]:
        """Refuse by the rules of images under the lease; return the tags as ``ImageRules.check_delete``."""

    def lease(self, routed: RoutedRepository, tag_or_digest: Tag | Digest) -> AbstractAsyncContextManager[None]:
        """Serialise with the pushes of a digest, or of a tag."""

    async def holds(self, routed: RoutedRepository, digest: Digest) -> bool:
        """Tell whether a manifest is on record, or at the first replica that answers."""

    async def delete_manifest(
        self, routed: RoutedRepository, digest: Digest, actor: Actor | None, *, is_known: bool, tags: Sequence[Tag] = ()
    ) -> None:
        """Delete it and every tag on it; MANIFEST_UNKNOWN when not ``is_known`` and no replica has it.

        ``tags`` are known to be on it; those that are on no record are entered in the history, too.
        """

    async def delete_tag(self, routed: RoutedRepository, tag: Tag, actor: Actor | None) -> Digest:
        """Delete a tag alone; return what it was. MANIFEST_UNKNOWN when no replica has it."""

    async def delete_blob(self, routed: RoutedRepository, digest: Digest, *, is_known: bool) -> None:
        """Delete it from the repository; BLOB_UNKNOWN when not ``is_known`` and no replica has it."""
