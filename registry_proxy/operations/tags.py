"""The present value of a tag: asked of the upstream, remembered for the upstream's TTL."""

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from registry_proxy.operations.flight import SingleFlight
from registry_proxy.ports.content import CachedTag, Holdings
from registry_proxy.ports.errors import StoreUnavailableError, UpstreamLimitError, UpstreamUnavailableError
from registry_proxy.ports.metrics import Observer, StaleAnswer
from registry_proxy.ports.names import RoutedRepository, StaleReason
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.ports.tags import TagFinding, TagRecord
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Tag

_RACES_MAX = 3
_OLDER_WARNING = '299 - "the replicas that can be asked have only an older state of the tag"'
_REASONS = {
    StaleReason.UNAVAILABLE: "no replica of the upstream could be asked",
    StaleReason.REFUSED: "the upstream refuses to say what the tag is",
    StaleReason.ABSENT: "the upstream does not have the tag any more",
}

ReadTagRecord = Callable[[RoutedRepository, Tag], Awaitable[TagRecord]]
"""Returns what the store knows of a tag. Raises StoreUnavailableError."""

FindTag = Callable[[RoutedRepository, Tag], Awaitable[TagFinding | None]]
"""Asks every replica for a tag; None while it is being written. Raises StoreUnavailableError."""

FindContent = Callable[[RoutedRepository, Digest], Awaitable[Descriptor | None]]
"""Returns the descriptor of a manifest that can be served; None where it cannot."""


@dataclass(frozen=True, slots=True)
class TagRules:
    """The rules for tags of an upstream: ``ttl_seconds`` without asking, despite ``stale_on`` as before.

    ``is_recorded``: every move of a tag is on record, so that an answer can be held against it.
    """

    ttl_seconds: float
    stale_on: frozenset[StaleReason] = frozenset({StaleReason.UNAVAILABLE})
    is_recorded: bool = False


@dataclass(frozen=True, slots=True)
class RecordedTags:
    """The records of tags, which answers of replicas are held against.

    Args:
        read: reads the record of a tag.
        find: asks every replica for one.
        see: takes note of what a replica newly said that a tag is, without waiting; None for nothing.
        is_shared: other nodes write records, too, so that each read of a tag has to ask whether one did.
    """

    read: ReadTagRecord
    find: FindTag
    see: Callable[[RoutedRepository, Tag, Digest], None] | None = None
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class ResolvedTag:
    """The value of a tag; ``was_asked``: whether a replica said it for this request.

    ``warning`` is the value of a Warning header (spec, "Warnings") where the answer may be older than the TTL.
    """

    descriptor: Descriptor
    was_asked: bool
    warning: str | None = None

    @property
    def digest(self) -> Digest:
        """The descriptor that identifies it."""
        return self.descriptor.digest


@dataclass(frozen=True, slots=True, kw_only=True)
class TagResolver:
    """Resolves tags, one request to the upstream at a time for each.

    Args:
        readers: by upstream; wait for a replica to come back.
        impatient_readers: by upstream; used where an older answer could stand in.
        holdings: where tags are remembered.
        observer: receives stale answers.
        rules: by upstream.
        records: what the store knows of tags; None for nothing.
        content: knows whether a manifest can be served; goes with ``records``.
    """

    readers: Mapping[str, RegistryReader]
    impatient_readers: Mapping[str, RegistryReader]
    holdings: Holdings
    observer: Observer
    rules: Mapping[str, TagRules]
    records: RecordedTags | None = None
    content: FindContent | None = None
    _flights: SingleFlight[ResolvedTag] = field(default_factory=SingleFlight, init=False)

    @property
    def _is_shared(self) -> bool:
        return self.records is not None and self.records.is_shared

    def find(self, routed: RoutedRepository, tag: Tag) -> ResolvedTag | None:
        """Return what the tag is where nobody has to be asked, not even the store; else None."""
        cached = None if self._is_shared else self.holdings.find_tag(routed, tag)
        if cached is None or not self._is_current(routed, cached, None):
            return None
        return ResolvedTag(cached.descriptor, was_asked=False)

    async def resolve(self, routed: RoutedRepository, tag: Tag) -> ResolvedTag:
        """Return what the tag is.

        Raises:
            RegistryError: MANIFEST_UNKNOWN, NAME_UNKNOWN when every current replica said so.
            UpstreamUnavailableError: it cannot be known, and never was.
        """
        recorded = await self._revision(routed, tag)
        cached = self.holdings.find_tag(routed, tag)
        if cached is not None and self._is_current(routed, cached, recorded):
            return ResolvedTag(cached.descriptor, was_asked=False)
        # A request after a push at another node, or a delete, must not join a question that was asked before it.
        key = (routed, tag, recorded, self.holdings.moment(routed))
        resolved, _ = await self._flights.run(key, lambda: self._ask(routed, tag, recorded))
        return resolved

    async def _record(self, routed: RoutedRepository, tag: Tag) -> TagRecord | None:
        """Return the record of a tag; None where it cannot be known now, or answers are not held against it."""
        if self.records is None or not (self._is_shared or self.rules[routed.upstream].is_recorded):
            return None
        try:
            return await self.records.read(routed, tag)
        except StoreUnavailableError:
            return None

    async def _revision(self, routed: RoutedRepository, tag: Tag) -> int | None:
        """Return the revision of the tag's record; None where it cannot be known now, or nobody else moves tags."""
        record = await self._record(routed, tag) if self._is_shared else None
        return None if record is None else record.revision

    def _is_current(self, routed: RoutedRepository, cached: CachedTag, recorded: int | None) -> bool:
        return cached.age_seconds < self.rules[routed.upstream].ttl_seconds and self._is_last(cached, recorded)

    def _is_last(self, cached: CachedTag, recorded: int | None) -> bool:
        """Tell whether no node has moved or deleted the tag since it was learned; no where that cannot be known."""
        return not self._is_shared or (recorded is not None and cached.recorded == recorded)

    async def _ask(self, routed: RoutedRepository, tag: Tag, recorded: int | None) -> ResolvedTag:
        for _ in range(_RACES_MAX):
            asked_at, before = self.holdings.moment(routed), self.holdings.find_tag(routed, tag)
            try:
                resolved = await self._ask_replicas(routed, tag, before, recorded)
            except (RegistryError, UpstreamUnavailableError) as error:
                return self._stand_in(routed, tag, before, recorded, error)
            if not resolved.was_asked or resolved.warning is not None:
                return resolved
            record = await self._record(routed, tag)
            if self._is_shared and (after := None if record is None else record.revision) != recorded:
                # Another node came between: the record may be gone again, and nothing would show that later.
                recorded = after
                continue
            if self._is_recorded(routed) and record is not None and record.is_past(resolved.digest):
                settled = await self._settle(routed, tag)
                if settled is None or not settled.was_asked or settled.warning is not None:
                    return settled or resolved
                resolved = settled
            descriptor = resolved.descriptor
            version = None if before is None else before.version
            if self.holdings.remember_tag(routed, tag, descriptor, recorded=recorded, unless_changed_from=version):
                if self.holdings.moment(routed) != asked_at:  # it may be deleted meanwhile: true only until then
                    self.holdings.forget_tag(routed, tag)
                self._see(routed, tag, before, descriptor.digest)
                return ResolvedTag(descriptor, was_asked=True)
            # A push through us came between: it is right, this answer may be of before it.
            now = self.holdings.find_tag(routed, tag)
            if now is not None:
                return ResolvedTag(now.descriptor, was_asked=True)
        raise UpstreamUnavailableError(f"{routed}:{tag} is moved faster than it can be read")

    def _see(self, routed: RoutedRepository, tag: Tag, before: CachedTag | None, digest: Digest) -> None:
        """Have a digest that the tag did not have before compared with its history."""
        is_new = before is None or before.digest != digest
        if is_new and self.records is not None and self.records.see is not None:
            self.records.see(routed, tag, digest)

    def _is_recorded(self, routed: RoutedRepository) -> bool:
        return self.records is not None and self.rules[routed.upstream].is_recorded

    async def _ask_replicas(
        self, routed: RoutedRepository, tag: Tag, before: CachedTag | None, recorded: int | None
    ) -> ResolvedTag:
        """Ask the replicas; wait for one to come back where nothing can stand in.

        Raises:
            RegistryError, UpstreamUnavailableError: as ``resolve``.
        """
        upstream, is_recorded = routed.upstream, self._is_recorded(routed)
        readers = self.readers if before is None and not is_recorded else self.impatient_readers
        try:
            descriptor = await readers[upstream].resolve_tag(routed.repository, tag)
        except UpstreamUnavailableError as error:
            if not is_recorded or isinstance(error, UpstreamLimitError):
                raise
            settled = await self._settle(routed, tag)
            if settled is not None and settled.warning is None:
                return settled
            if before is not None and self._is_last(before, recorded):
                raise
            try:
                descriptor = await self.readers[upstream].resolve_tag(routed.repository, tag)
            except UpstreamUnavailableError:
                if settled is None:
                    raise
                return settled
        return ResolvedTag(descriptor, was_asked=True)

    async def _settle(self, routed: RoutedRepository, tag: Tag) -> ResolvedTag | None:
        """Return what a tag is where a replica is at odds with its record, or none that counts can be asked.

        None where it is being written: then the present answer may be right. With a warning, the earlier digest, where
        no replica has the recorded one.

        Raises:
            RegistryError: MANIFEST_UNKNOWN: it was deleted, and a replica that went back in time has it again.
        """
        assert self.records is not None  # noqa: S101 - there is no record to be at odds with otherwise
        try:
            finding = await self.records.find(routed, tag)
        except StoreUnavailableError:
            return None
        if finding is None:
            return None
        if finding.current is not None:
            return ResolvedTag(finding.current, was_asked=True)
        if finding.older is None:
            return None
        if finding.recorded is None:
            raise RegistryError(ErrorCode.MANIFEST_UNKNOWN, "the tag was deleted", detail={"tag": tag})
        recorded = None if self.content is None else await self.content(routed, finding.recorded)
        if recorded is not None:
            return ResolvedTag(recorded, was_asked=False)
        if StaleReason.UNAVAILABLE not in self.rules[routed.upstream].stale_on:
            raise UpstreamUnavailableError(f"the replicas that can be asked have only an older state of {routed}:{tag}")
        self.observer.observe(StaleAnswer(StaleReason.UNAVAILABLE))
        return ResolvedTag(finding.older, was_asked=True, warning=_OLDER_WARNING)

    def _stand_in(
        self,
        routed: RoutedRepository,
        tag: Tag,
        before: CachedTag | None,
        recorded: int | None,
        error: RegistryError | UpstreamUnavailableError,
    ) -> ResolvedTag:
        """Return the tag's last value where the upstream's rules allow it despite this error, else raise the error."""
        reason = _reason(error)
        now = self.holdings.find_tag(routed, tag)
        is_allowed = reason in self.rules[routed.upstream].stale_on
        if now is not None and is_allowed and self._is_last(now, recorded):
            self.observer.observe(StaleAnswer(reason))
            return ResolvedTag(now.descriptor, was_asked=False, warning=_warning(reason, now.age_seconds))
        was_moved = now is not None and (before is None or now.version != before.version)
        if reason is StaleReason.ABSENT and not was_moved:
            self.holdings.forget_tag(routed, tag)
        raise error


def _reason(error: RegistryError | UpstreamUnavailableError) -> StaleReason:
    if isinstance(error, UpstreamUnavailableError):
        return StaleReason.UNAVAILABLE
    return StaleReason.ABSENT if error.status == 404 else StaleReason.REFUSED


def _warning(reason: StaleReason, age_seconds: float) -> str:
    when = f"{age_seconds:.0f} s ago" if math.isfinite(age_seconds) else "before the clock of this node was put back"
    return f'299 - "{_REASONS[reason]}; this is what it was {when}"'
