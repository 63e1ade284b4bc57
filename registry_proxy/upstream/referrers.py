"""Referrers of a manifest at the replicas of an upstream: by their API, and under the tag that stands in for it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from registry_proxy.ports.replicas import HeldReferrers, ReplicaClient
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag
from registry_proxy.protocol.referrers import Referrer, merge_referrers, parse_referrers


@dataclass(frozen=True, slots=True)
class ReplicaReferrers:
    """The referrers that one replica holds; ``listed`` is None without their API, ``tag`` without a fallback tag."""

    listed: Sequence[Referrer] | None
    tag: Digest | None
    tagged: list[Referrer]


async def ask_referrers(client: ReplicaClient, repository: Repository, digest: Digest, tag: Tag) -> ReplicaReferrers:
    """Ask a replica for what refers to a manifest.

    Args:
        client: of the replica.
        repository: of the manifest.
        digest: of the manifest, which need not exist.
        tag: its fallback tag.

    Raises:
        RegistryError, UpstreamUnavailableError: the replica does not tell; never because there is nothing.
    """
    listed = await client.fetch_referrers(repository, digest)
    try:
        tagged = await client.resolve_tag(repository, tag)
        manifest = await client.fetch_manifest(repository, tagged.digest)
    except RegistryError as error:
        if error.status != 404:
            raise
        return ReplicaReferrers(listed, None, [])
    try:
        return ReplicaReferrers(listed, tagged.digest, parse_referrers(manifest.body, skips_malformed=True))
    except ValueError:  # somebody gave this name to something else
        return ReplicaReferrers(listed, tagged.digest, [])


def merge_replicas(
    answers: Mapping[str, ReplicaReferrers], has_tombstone: Callable[[str, Digest], bool], *, needs_tag: bool
) -> HeldReferrers:
    """Return what several replicas hold together.

    Args:
        answers: of each replica, by its name.
        has_tombstone: tells whether a replica still holds a manifest that was deleted.
        needs_tag: some replica is not known to have the API.
    """

    def existing(name: str, entries: Iterable[Referrer]) -> list[Referrer]:
        return [entry for entry in entries if not has_tombstone(name, entry.digest)]

    return HeldReferrers(
        listed=merge_referrers(*(existing(name, answer.listed or []) for name, answer in answers.items())),
        tagged=merge_referrers(*(existing(name, answer.tagged) for name, answer in answers.items())),
        tags=frozenset(answer.tag for answer in answers.values()),
        needs_tag=needs_tag,
    )
