"""Replicas made equal: repair, maintenance, and the comparison of replicas, as an administrator sees them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from registry_proxy.ports.journal import Exceptions, IntentKey, Pause
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.reference import Digest

_NOTED_MAX = 1000
_DOUBTFUL_CONTENTS = 10
_DOUBTFUL_PART = 10
_DOUBTFUL_NAMESPACES = 3
"""More than ten contents and a tenth of all, or some in more namespaces, that fail are no fault of single ones."""


@dataclass(slots=True)
class RepairStatus:
    """Progress of the repair of one replica, as far as this process does it.

    ``done`` and ``failed`` count keys since ``started_at`` (seconds since the epoch); ``error`` is the last failure.
    """

    is_running: bool = False
    started_at: float | None = None
    done: int = 0
    failed: int = 0
    error: str = ""


class Repairs(Protocol):
    """Repairs the replicas of one upstream."""

    @property
    def exceptions(self) -> Exceptions: ...
    def status(self, replica: str) -> RepairStatus: ...
    async def retry(self) -> None: ...
    def warnings(self) -> Sequence[str]: ...


class Maintains(Protocol):
    """Takes replicas of one upstream out of writes. Raises PauseRefusedError, StoreUnavailableError."""

    async def pause(self, replica: str, reason: str, by: str) -> None: ...
    async def resume(self, replica: str, by: str, *, force: bool = False) -> None: ...
    async def is_quiet(self, pause: Pause) -> bool: ...


@dataclass(frozen=True, slots=True)
class Difference:
    """A replica misses a content: ``found`` is the digest of the tag there instead, None for nothing.

    ``wanted`` is None where nothing decides about a tag: the replicas disagree, and no push through us decided.
    ``holders`` are the replicas that hold ``wanted``. Where ``replica`` is None, none of them does: it is lost.
    """

    key: IntentKey
    replica: str | None
    wanted: Digest | None
    found: Digest | None
    media_type: str
    holders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """A replica could not be asked for a key, and why; ``is_held``: another one has it, so it is not lost."""

    key: str
    routed: RoutedRepository
    replica: str
    reason: str
    is_held: bool

    @property
    def is_list(self) -> bool:
        """Whether it is the list of tags of a repository, and no tag or content."""
        return self.key == str(self.routed)

    @property
    def namespace(self) -> str:
        """The first component of the repository: that of one owner."""
        return self.routed.repository.partition("/")[0]


@dataclass(slots=True)
class Comparison:
    """Progress and findings of a comparison. Times in seconds since the epoch; ``error`` is why it ended early.

    ``differing`` counts objects that some replicas have and another one misses or has otherwise, ``lost`` those that
    none has and nobody dismissed, ``failed`` those without an answer. ``sparse`` counts children of indexes that no
    replica has, and that are not on record as pushed. ``differences`` and ``failures`` hold the first thousand;
    ``repaired`` were entered into the journal for repair.
    """

    started_at: float
    is_done: bool = False
    error: str = ""
    repositories: int = 0
    repositories_done: int = 0
    manifests: int = 0
    blobs: int = 0
    differing: int = 0
    undecided: int = 0
    lost: int = 0
    sparse: int = 0
    repaired: int = 0
    failed: int = 0
    differences: list[Difference] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def note(self, difference: Difference) -> None:
        """Count a difference, and keep the first ones."""
        is_lost = difference.replica is None
        self.differing += not is_lost
        self.undecided += difference.wanted is None
        self.lost += is_lost
        if len(self.differences) < _NOTED_MAX:
            self.differences.append(difference)

    def fail(self, failure: Failure) -> None:
        """Count what could not be asked, and keep the first ones."""
        self.failed += 1
        if len(self.failures) < _NOTED_MAX:
            self.failures.append(failure)

    def doubt_about(self, replica: str) -> str:
        """Return why it is not known that a replica has all that can be had; "" when it is.

        Few contents that fail are no reason: any pusher can make them, and reads find out where they are.
        """
        doubtful = [each for each in self.failures if each.replica == replica or not each.is_held]
        if self.failed > len(self.failures):
            return f"{self.failed} contents are unknown at a replica"
        unlisted = [each for each in doubtful if each.is_list]
        is_much = len(doubtful) > max(_DOUBTFUL_CONTENTS, (self.manifests + self.blobs) // _DOUBTFUL_PART)
        if unlisted or is_much or len({each.namespace for each in doubtful}) > _DOUBTFUL_NAMESPACES:
            first = next(iter(unlisted or doubtful))
            return f"{first.key} is unknown at {first.replica}: {first.reason}"
        return ""


class Verifies(Protocol):
    """Compares the replicas of one upstream."""

    def new(self) -> Comparison: ...
    async def compare(self, comparison: Comparison, *, repair: bool = False, prefer: str | None = None) -> None: ...
