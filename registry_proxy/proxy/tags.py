"""What a tag is now: asked of the upstream, remembered for the upstream's TTL."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from registry_proxy.ports import CachedTag, Memberships, RegistryReader, RoutedRepository, UpstreamUnavailableError
from registry_proxy.proxy.flight import SingleFlight
from registry_proxy.spec.descriptor import Descriptor
from registry_proxy.spec.errors import RegistryError
from registry_proxy.spec.reference import Digest, Tag

_ANNOUNCED_MAX = 4096
_RACES_MAX = 3


@dataclass(frozen=True, slots=True)
class ResolvedTag:
    """What a tag is.

    ``descriptor`` is None when only the digest is known here; ``was_asked`` tells whether a replica said it for this
    request; ``stale_seconds`` is how old the answer is when no replica could be asked, else None.
    """

    digest: Digest
    descriptor: Descriptor | None
    was_asked: bool
    stale_seconds: float | None = None


class TagResolver:
    """Resolves tags, one request to the upstream at a time for each.

    Args:
        readers: by upstream; wait for a replica to come back.
        impatient_readers: by upstream; used where an older answer could stand in.
        memberships: where tags are remembered.
        ttl_seconds: by upstream, how long a tag is answered without asking.
    """

    def __init__(
        self,
        *,
        readers: Mapping[str, RegistryReader],
        impatient_readers: Mapping[str, RegistryReader],
        memberships: Memberships,
        ttl_seconds: Mapping[str, float],
    ) -> None:
        self._readers = readers
        self._impatient_readers = impatient_readers
        self._memberships = memberships
        self._ttl_seconds = ttl_seconds
        self._flights: SingleFlight[ResolvedTag] = SingleFlight()
        # Media type and size as a HEAD told them: a second HEAD within the TTL then needs no upstream.
        self._announced: OrderedDict[tuple[RoutedRepository, Digest], Descriptor] = OrderedDict()

    async def resolve(self, routed: RoutedRepository, tag: Tag) -> ResolvedTag:
        """Return what the tag is.

        Raises:
            RegistryError: MANIFEST_UNKNOWN, NAME_UNKNOWN when every current replica said so.
            UpstreamUnavailableError: it cannot be known, and never was.
        """
        cached = self._memberships.find_tag(routed, tag)
        if cached is not None and cached.age_seconds < self._ttl_seconds[routed.upstream]:
            return ResolvedTag(cached.digest, self._announced.get((routed, cached.digest)), was_asked=False)
        resolved, _ = await self._flights.run((routed, tag), lambda: self._ask(routed, tag))
        return resolved

    async def _ask(self, routed: RoutedRepository, tag: Tag) -> ResolvedTag:
        for _ in range(_RACES_MAX):
            before = self._memberships.find_tag(routed, tag)
            readers = self._readers if before is None else self._impatient_readers
            try:
                descriptor = await readers[routed.upstream].resolve_tag(routed.repository, tag)
            except UpstreamUnavailableError:
                now = self._memberships.find_tag(routed, tag)
                if now is None:
                    raise
                return ResolvedTag(now.digest, None, was_asked=False, stale_seconds=now.age_seconds)
            except RegistryError as error:
                if error.status != 404 or self._moved(routed, tag, before):
                    raise
                self._memberships.forget_tag(routed, tag)
                raise
            version = None if before is None else before.version
            if self._memberships.remember_tag(routed, tag, descriptor.digest, unless_changed_from=version):
                self._announce(routed, descriptor)
                return ResolvedTag(descriptor.digest, descriptor, was_asked=True)
            # A push through us came between: it is right, this answer may be of before it.
            now = self._memberships.find_tag(routed, tag)
            if now is not None:
                return ResolvedTag(now.digest, None, was_asked=True)
        raise UpstreamUnavailableError(f"{routed}:{tag} is moved faster than it can be read")

    def _moved(self, routed: RoutedRepository, tag: Tag, before: CachedTag | None) -> bool:
        now = self._memberships.find_tag(routed, tag)
        return now is not None and (before is None or now.version != before.version)

    def _announce(self, routed: RoutedRepository, descriptor: Descriptor) -> None:
        self._announced[routed, descriptor.digest] = descriptor
        while len(self._announced) > _ANNOUNCED_MAX:
            self._announced.popitem(last=False)
