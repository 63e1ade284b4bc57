"""Questions to the replicas of an upstream, and the answers of each."""

from dataclasses import dataclass, field

from registry_proxy.ports.journal import Marks
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Tag
from registry_proxy.upstream.doubts import Doubts
from registry_proxy.upstream.health import ReplicaHealth
from registry_proxy.upstream.selection import Standing


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the replicas: of a tag, of a digest, or (neither) of a list."""

    routed: RoutedRepository
    unknown: ErrorCode
    tag: Tag | None = None
    digest: Digest | None = None

    @property
    def key(self) -> str:
        return str(self.digest) if self.digest else f"{self.routed}:{self.tag}"

    @property
    def kind(self) -> ContentKind:
        return ContentKind.BLOB if self.unknown is ErrorCode.BLOB_UNKNOWN else ContentKind.MANIFEST

    @property
    def detail(self) -> dict[str, str]:
        fields = {"tag": self.tag, "digest": self.digest and str(self.digest)}
        return {key: value for key, value in fields.items() if value}

    def standing(self, name: str, marks: Marks, health: ReplicaHealth, doubts: Doubts) -> Standing:
        """Return what is known of a replica for this question."""
        return Standing(
            name,
            is_askable=health.is_up and doubts.limit(name, self.routed) is None,
            is_current=not marks.misses_any(name, self.routed),
            is_exempt=self._is_exempt(name, marks),
            is_deleted=self.digest is not None and marks.has_tombstone(name, self.routed, self.digest),
            is_doubted=health.is_suspect or doubts.is_doubted(name, self.key),
            has_lied=doubts.has_lied(name, self.key),
        )

    def _is_exempt(self, name: str, marks: Marks) -> bool:
        if self.digest is not None:
            return marks.refuses(name, self.routed, self.digest)
        return self.tag is not None and marks.misses_tag(name, self.routed, self.tag)


@dataclass(slots=True)
class Round:
    """The answers of the replicas to one question."""

    question: Question
    standings: list[Standing]
    absent: dict[str, RegistryError] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
