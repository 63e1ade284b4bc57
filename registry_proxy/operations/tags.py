"""The present value of a tag: asked of the upstream, remembered for the upstream's TTL."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from registry_proxy.operations.flight import SingleFlight
from registry_proxy.ports.content import CachedTag, Memberships
from registry_proxy.ports.errors import StoreUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.events import Observer
from registry_proxy.ports.names import RoutedRepository, StaleReason
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Tag

_RACES_MAX = 3
_REASONS = {
    StaleReason.UNAVAILABLE: "no replica of the upstream could be asked",
    StaleReason.REFUSED: "the upstream refuses to say what the tag is",
    StaleReason.ABSENT: "the upstream does not have the tag any more",
}

TagRevision = Callable[[RoutedRepository, Tag], Awaitable[int]]
"""Returns the revision of a tag's record in the store, 0 without one. Raises StoreUnavailableError."""


@dataclass(frozen=True, slots=True)
class TagRules:
    """The rules for tags of an upstream: ``ttl_seconds`` without asking, in spite of ``stale_on`` as before."""

    ttl_seconds: float
    stale_on: frozenset[StaleReason] = frozenset({StaleReason.UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class ResolvedTag:
    """The value of a tag; ``was_asked`` tells whether a replica said it for this request.

    ``warning`` is the value of a Warning header (spec, "Warnings") where the answer may be older than the TTL.
    """

    descriptor: Descriptor
    was_asked: bool
    warning: str | None = None

    @property
    def digest(self) -> Digest:
        """The descriptor that identifies it."""
        return self.descriptor.digest


class TagResolver:
    """Resolves tags, one request to the upstream at a time for each.

    Args:
        readers: by upstream; wait for a replica to come back.
        impatient_readers: by upstream; used where an older answer could stand in.
        memberships: where tags are remembered.
        observer: is told of stale answers.
        rules: by upstream.
        revision: where other nodes move tags, too: tells whether one did. None where ``memberships`` knows every move.
    """

    def __init__(
        self,
        *,
        readers: Mapping[str, RegistryReader],
        impatient_readers: Mapping[str, RegistryReader],
        memberships: Memberships,
        observer: Observer,
        rules: Mapping[str, TagRules],
        revision: TagRevision | None = None,
    ) -> None:
        self._readers = readers
        self._impatient_readers = impatient_readers
        self._memberships = memberships
        self._observer = observer
        self._rules = rules
        self._revision = revision
        self._flights: SingleFlight[ResolvedTag] = SingleFlight()

    async def resolve(self, routed: RoutedRepository, tag: Tag) -> ResolvedTag:
        """Return what the tag is.

        Raises:
            RegistryError: MANIFEST_UNKNOWN, NAME_UNKNOWN when every current replica said so.
            UpstreamUnavailableError: it cannot be known, and never was.
        """
        recorded = await self._recorded(routed, tag)
        cached = self._memberships.find_tag(routed, tag)
        if cached is not None and self._is_current(routed, cached, recorded):
            return ResolvedTag(cached.descriptor, was_asked=False)
        # A request after a push at another node, or a delete, must not join a question that was asked before it.
        key = (routed, tag, recorded, self._memberships.moment())
        resolved, _ = await self._flights.run(key, lambda: self._ask(routed, tag, recorded))
        return resolved

    async def _recorded(self, routed: RoutedRepository, tag: Tag) -> int | None:
        """Return the revision of the tag's record; None where it cannot be known now, or nobody else moves tags."""
        if self._revision is None:
            return None
        try:
            return await self._revision(routed, tag)
        except StoreUnavailableError:
            return None

    def _is_current(self, routed: RoutedRepository, cached: CachedTag, recorded: int | None) -> bool:
        return cached.age_seconds < self._rules[routed.upstream].ttl_seconds and self._is_last(cached, recorded)

    def _is_last(self, cached: CachedTag, recorded: int | None) -> bool:
        """Tell whether no node has moved or deleted the tag since it was learned; no where that cannot be known."""
        return self._revision is None or (recorded is not None and cached.recorded == recorded)

    async def _ask(self, routed: RoutedRepository, tag: Tag, recorded: int | None) -> ResolvedTag:
        for _ in range(_RACES_MAX):
            asked_at, before = self._memberships.moment(), self._memberships.find_tag(routed, tag)
            readers = self._readers if before is None else self._impatient_readers
            try:
                descriptor = await readers[routed.upstream].resolve_tag(routed.repository, tag)
            except (RegistryError, UpstreamUnavailableError) as error:
                return self._stand_in(routed, tag, before, recorded, error)
            if (after := await self._recorded(routed, tag)) != recorded:
                # Another node came between: the record may be gone again, and be told by nothing later.
                recorded = after
                continue
            version = None if before is None else before.version
            if self._memberships.remember_tag(routed, tag, descriptor, recorded=recorded, unless_changed_from=version):
                if self._memberships.moment() != asked_at:  # it may have been deleted meanwhile: true only until then
                    self._memberships.forget_tag(routed, tag)
                return ResolvedTag(descriptor, was_asked=True)
            # A push through us came between: it is right, this answer may be of before it.
            now = self._memberships.find_tag(routed, tag)
            if now is not None:
                return ResolvedTag(now.descriptor, was_asked=True)
        raise UpstreamUnavailableError(f"{routed}:{tag} is moved faster than it can be read")

    def _stand_in(
        self,
        routed: RoutedRepository,
        tag: Tag,
        before: CachedTag | None,
        recorded: int | None,
        error: RegistryError | UpstreamUnavailableError,
    ) -> ResolvedTag:
        """Return what the tag was where the upstream's rules allow it in spite of this error, else raise the error."""
        reason = _reason(error)
        now = self._memberships.find_tag(routed, tag)
        is_allowed = reason in self._rules[routed.upstream].stale_on
        if now is not None and is_allowed and self._is_last(now, recorded):
            self._observer.stale_answer(reason)
            return ResolvedTag(now.descriptor, was_asked=False, warning=_warning(reason, now.age_seconds))
        was_moved = now is not None and (before is None or now.version != before.version)
        if reason is StaleReason.ABSENT and not was_moved:
            self._memberships.forget_tag(routed, tag)
        raise error


def _reason(error: RegistryError | UpstreamUnavailableError) -> StaleReason:
    if isinstance(error, UpstreamUnavailableError):
        return StaleReason.UNAVAILABLE
    return StaleReason.ABSENT if error.status == 404 else StaleReason.REFUSED


def _warning(reason: StaleReason, age_seconds: float) -> str:
    return f'299 - "{_REASONS[reason]}; this is what it was {age_seconds:.0f} s ago"'
