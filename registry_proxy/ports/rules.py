"""Image rules: judged where a client moves or deletes a tag, by whichever way."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from registry_proxy.ports.history import Cause
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.protocol.descriptor import Manifest, ManifestLinks
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Tag


class RuleMode(StrEnum):
    """Whether a rule refuses, or only reports."""

    ENFORCE = "enforce"
    WARN = "warn"


class Condition(StrEnum):
    """A condition of a rule; the names are those of its fields."""

    LABELS = "labels"
    MAX_SIZE = "max_size_bytes"
    MAX_LAYERS = "max_layers"
    MEDIA_TYPES = "media_types"
    PLATFORMS = "platforms"
    NOT_ROOT = "not_root"
    MAX_AGE = "max_age_seconds"
    BASES = "bases"
    MAX_FLOORS = "max_floors"
    IMMUTABLE = "immutable"
    READABLE = "readable"
    """No field: an image that cannot be judged violates each rule that had to read it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of a write that may go on.

    Args:
        warnings: for the client, of rules that only warn.
        refuse_move: the refusal where the tag turns out to be another digest; None where it may be moved.
    """

    warnings: Sequence[str] = ()
    refuse_move: RegistryError | None = None


class ImageRules(Protocol):
    """Judges writes of tags. Where no rule covers a tag it costs nothing."""

    def judging(
        self, routed: RoutedRepository, tag: Tag | None, manifest: Manifest, links: ManifestLinks, cause: Cause | None
    ) -> AbstractAsyncContextManager[Verdict]:
        """Judge a write, which happens inside the block; the violation of a refusal that is raised there is reported.

        A push or promotion is judged by all conditions, another move by immutability alone.
        A write without tag or cause is not judged, nor one whose cause overrides rules.

        Raises:
            RegistryError: DENIED (403) with rule, condition and advice.
            UpstreamUnavailableError: the image cannot be read now.
            StoreUnavailableError: the rules cannot be known.
        """

    async def check_delete(
        self, routed: RoutedRepository, tag_or_digest: Tag | Digest, actor: Actor | None
    ) -> Sequence[Tag]:
        """Judge the deletion of a tag, or of a manifest with every tag on it; return the tags. Errors as ``judging``.

        The registries are asked for tags on the manifest, too, where a rule covers the repository; else none is
        returned.
        """
