"""A manifest on its way to one replica: its missing parts are sent when the replica refuses the manifest."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from registry_proxy.operations.contents import ask, has, links_of, parts_of
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet
from registry_proxy.protocol.descriptor import Manifest
from registry_proxy.protocol.errors import RegistryError, unavailable
from registry_proxy.protocol.reference import Digest, Tag
from registry_proxy.replication.refusals import FinalRefusalError, final_refusal, may_be_final, may_lack_content

_DEPTH_MAX = 16
"""How deep indexes are followed at once: what lies deeper is a key of its own, and goes before the next round."""


class PartAbsentError(Exception):
    """A part of a manifest cannot be sent to a replica that misses it; the text says why.

    Args:
        reason: for people.
        may_come: whether somebody may still bring the part, so that a refusal of the manifest is not final.
    """

    def __init__(self, reason: str, *, may_come: bool = False) -> None:
        super().__init__(reason)
        self.may_come = may_come


SendPart = Callable[["Transfer", ContentKind, Digest], Awaitable[None]]
"""Sends a part that the replica of a transfer misses. Raises PartAbsentError, FinalRefusalError, and other errors that
end the transfer."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A manifest on its way to a replica with all its parts.

    Args:
        replica_set: of the replica.
        client: the replica.
        routed: the repository.
        send_part: where the parts come from.
        parts: those that were dealt with, and why the replica cannot have one, "" where it has it. Indexes may share
            children, and to ask for each by each way to it would double with each level.
        missed: the parts that may still come.
        depth: of the nesting.
    """

    replica_set: ReplicaSet
    client: ReplicaClient
    routed: RoutedRepository
    send_part: SendPart
    parts: dict[Digest, str] = field(default_factory=dict)
    missed: set[Digest] = field(default_factory=set)
    depth: int = 0

    async def put(self, tag_or_digest: Tag | Digest, manifest: Manifest) -> None:
        """Put a manifest; where it is refused, send the parts that the replica misses, and put it once more.

        The second try follows also where nothing is missing any more: another process may have sent it.

        Raises:
            FinalRefusalError: the replica has all of the parts that it can have, and refuses the manifest.
            RegistryError, UpstreamUnavailableError: the replica does not take the manifest, or a part of it, now.
        """
        try:
            await self.client.put_manifest(self.routed.repository, tag_or_digest, manifest)
        except RegistryError as refusal:
            if not (may_lack_content(refusal) or may_be_final(refusal)):
                raise
        else:
            return
        if self.depth >= _DEPTH_MAX:
            raise UpstreamUnavailableError(f"{tag_or_digest} lies {self.depth} indexes deep: the ones below go first")
        absent = await replace(self, depth=self.depth + 1).send_lacking(parts_of(links_of(manifest)))
        if not self.replica_set.is_writable(self.client.name):
            # Sending blobs may have taken longer than a pause of the replica waits for.
            raise unavailable("the replica cannot be written to any more", detail={"replica": self.client.name})
        try:
            await self.client.put_manifest(self.routed.repository, tag_or_digest, manifest)
        except RegistryError as refusal:
            if not may_be_final(refusal):
                raise
            raise final_refusal(refusal, absent) from refusal

    async def send_lacking(self, parts: list[tuple[ContentKind, Digest]]) -> dict[Digest, str]:
        """Send the parts that the replica misses; return those that it cannot have, and why."""
        for kind, digest in parts:
            if digest not in self.parts:
                self.parts[digest] = await self._send_unless_there(kind, digest)
        return {digest: self.parts[digest] for _, digest in parts if self.parts[digest]}

    async def _send_unless_there(self, kind: ContentKind, digest: Digest) -> str:
        # Where a replica answers for a blob in any repository, its answer says nothing about this one.
        is_told = kind is ContentKind.MANIFEST or not self.replica_set.separation.is_mixed(kind)
        if is_told and await has(ask(self.client, self.routed.repository, kind, digest)):
            return ""
        try:
            await self.send_part(self, kind, digest)
        except FinalRefusalError as refusal:
            return refusal.reason
        except PartAbsentError as absence:
            if absence.may_come:
                self.missed.add(digest)
            return str(absence)
        return ""
