"""The judge: holds writes of tags against the rules, and reports each violation (ports.rules.ImageRules)."""

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from registry_proxy.operations.contents import tags_on
from registry_proxy.ports.errors import ConflictError, StoreUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.history import Cause, MoveKind
from registry_proxy.ports.metrics import Observer, RuleViolation
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor, EventType, Outbox
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.ports.rules import Condition, RuleMode, Verdict
from registry_proxy.ports.store import Store, Table
from registry_proxy.protocol.descriptor import Manifest, ManifestLinks
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import RESERVED_TAG_PREFIX, Digest, Repository, Tag, is_referrers_tag
from registry_proxy.rules.bases import KnownImages
from registry_proxy.rules.current import CurrentRules
from registry_proxy.rules.floors import chain_ids, floors_below, matches_base
from registry_proxy.rules.image import JudgedImage
from registry_proxy.rules.judgement import Violation, violations_of
from registry_proxy.rules.reading import PushedImages
from registry_proxy.rules.rule import DELETE, OVERWRITE, Rule

_log = logging.getLogger(__name__)
_JUDGED_WHOLE = frozenset({MoveKind.PUSH, MoveKind.PROMOTION})
_SAID_MAX = 5
"""Limit of the violations in the message of a refusal; the others are in its detail."""


@dataclass(frozen=True, slots=True)
class _Write:
    """A write of a tag, or its deletion, as reports name it."""

    routed: RoutedRepository
    repository: Repository
    tag: Tag
    digest: str
    actor: Actor


class RuleJudge:
    """Judges writes.

    Args:
        rules: as they are now.
        known: the images on which others stand.
        images: reads those that are pushed.
        readers: by upstream; know the tags that are on no record.
        store: knows what tags are; holds the outbox.
        outbox: makes the events.
        local_name: returns the canonical name of a repository, None where no route leads to it.
        observer: receives each violation.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        rules: CurrentRules,
        known: KnownImages,
        images: PushedImages,
        *,
        readers: Mapping[str, RegistryReader],
        store: Store,
        outbox: Outbox,
        local_name: Callable[[RoutedRepository], Repository | None],
        observer: Observer,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rules = rules
        self._known = known
        self._images = images
        self._readers = readers
        self._store = store
        self._outbox = outbox
        self._local_name = local_name
        self._observer = observer
        self._clock = clock

    @asynccontextmanager
    async def judging(
        self, routed: RoutedRepository, tag: Tag | None, manifest: Manifest, links: ManifestLinks, cause: Cause | None
    ) -> AsyncIterator[Verdict]:
        known = () if tag is None or cause is None or cause.overrides_rules else await self._rules.current()
        name = self._local_name(routed) if known else None
        covering = [rule for rule in known if name is not None and tag is not None and rule.covers(name, tag)]
        is_floor = _is_floor(known, covering, f"{name}:{tag}")
        if name is None or tag is None or cause is None or not (covering or is_floor):
            yield Verdict()
            return
        write = _Write(routed, name, tag, str(manifest.descriptor.digest), cause.actor)
        reading = [rule for rule in covering if rule.reads_images] if cause.kind in _JUDGED_WHOLE else []
        with_configs = is_floor or any(rule.reads_configs for rule in reading)
        images: Sequence[JudgedImage] = ()
        if reading or (is_floor and cause.kind in _JUDGED_WHOLE):
            images = await self._images.read(routed, manifest, links, with_configs=with_configs)
        if any(rule.reads_floors for rule in reading):
            images = await self._with_floors(images, name)
        judged = [(_without_base(rule, f"{name}:{tag}"), images) for rule in reading]
        found = [each for rule, its in judged for each in violations_of(rule, its, self._clock())]
        fixing = [] if is_referrers_tag(tag) else [rule for rule in covering if OVERWRITE in rule.immutable]
        moved = [_moved(rule, tag) for rule in fixing]
        refuse_move = _refusal(write, enforced) if (enforced := _enforced(moved)) else None
        if tolerated := [each for each in moved if not each.rule.is_enforced]:
            record = await self._store.get(Table.TAGS, f"{routed}|{tag}")
            found += tolerated if record is not None and record.value["digest"] != write.digest else []
        await self._settle(write, found)
        try:
            yield Verdict([str(each) for each in found], refuse_move)
        except RegistryError as error:
            if error is refuse_move:
                await self._report(write, enforced, is_refused=True)
            raise
        if is_floor:
            await self._remember(images, f"{name}:{tag}")

    async def check_delete(
        self, routed: RoutedRepository, tag_or_digest: Tag | Digest, actor: Actor | None
    ) -> Sequence[Tag]:
        known = [rule for rule in await self._rules.current() if DELETE in rule.immutable] if actor else []
        name = self._local_name(routed) if known else None
        covering = [rule for rule in known if name is not None and rule.covers_repository(name)]
        if name is None or actor is None or not covering:
            return ()
        tags = await self._tags(routed, tag_or_digest, must_know=any(rule.is_enforced for rule in covering))
        for tag, digest in tags:
            found = [_deleted(rule, tag) for rule in covering if rule.covers(name, tag) and not is_referrers_tag(tag)]
            await self._settle(_Write(routed, name, tag, digest, actor), found)
        return [tag for tag, _ in tags]

    async def _tags(
        self, routed: RoutedRepository, tag_or_digest: Tag | Digest, *, must_know: bool
    ) -> Sequence[tuple[Tag, str]]:
        """Return the tags of clients that a deletion ends, with their digests.

        Of a manifest these are the tags on record and those at the registries: a tag that was not made through us, or
        before the store was new, is on no record.
        """
        if not isinstance(tag_or_digest, Digest):
            record = await self._store.get(Table.TAGS, f"{routed}|{tag_or_digest}")
            return [(tag_or_digest, "" if record is None else record.value["digest"])]
        digest = str(tag_or_digest)
        records = await self._store.list(Table.TAGS, f"{routed}|")
        tags = {Tag(each.key.rpartition("|")[2]) for each in records if each.value["digest"] == digest}
        try:
            tags.update(await tags_on(self._readers[routed.upstream], routed.repository, tag_or_digest))
        except (RegistryError, UpstreamUnavailableError) as error:
            if must_know:
                raise
            _log.warning("the rules that warn judge only tags on record of %s@%s: %s", routed, digest, error)
        return [(tag, digest) for tag in sorted(tags) if not tag.startswith(RESERVED_TAG_PREFIX)]

    async def _with_floors(self, images: Sequence[JudgedImage], repository: str) -> Sequence[JudgedImage]:
        """Return images with the known ones on which each stands."""
        chains = {image.digest: chain_ids(image.config.diff_ids) for image in images if image.config is not None}
        known = await self._known.find([chain for each in chains.values() for chain in each])
        return [
            replace(image, floors=floors_below(chains.get(image.digest, ()), known, repository)) for image in images
        ]

    async def _remember(self, images: Sequence[JudgedImage], name: str) -> None:
        """Put pushed images on record, which others may stand on from now on."""
        try:
            for image in images:
                if image.is_image and image.config is not None and image.config.diff_ids:
                    await self._known.remember(chain_ids(image.config.diff_ids)[-1], name)
        except StoreUnavailableError as error:
            _log.warning("%s is not remembered as a base, push it again: %s", name, error)

    async def _settle(self, write: _Write, found: Sequence[Violation]) -> None:
        """Report violations, and refuse the write where one of the rules is enforced."""
        if enforced := _enforced(found):
            await self._report(write, enforced, is_refused=True)
            raise _refusal(write, enforced)
        if found:
            await self._report(write, found, is_refused=False)

    async def _report(self, write: _Write, found: Sequence[Violation], *, is_refused: bool) -> None:
        """Log, count and announce violations. A store that is away keeps no refusal from its client."""
        verb = "refused" if is_refused else "let through"
        for each in found:
            mode = RuleMode.ENFORCE if each.rule.is_enforced else RuleMode.WARN
            self._observer.observe(RuleViolation(each.condition, mode))
            below = f" It stands on {each.hidden}." if each.hidden else ""
            _log.warning("%s %s:%s by %s: %s%s", verb, write.repository, write.tag, write.actor.subject, each, below)
        detail = {"refused": is_refused, "violations": _documents(found)}
        try:
            entry = await self._outbox.entry(
                EventType.RULE_VIOLATED, write.routed, write.actor, tag=write.tag, digest=write.digest, detail=detail
            )
            await self._store.commit([] if entry is None else [entry])
        except (StoreUnavailableError, ConflictError) as error:
            _log.warning("the event of a violated rule is lost: %s", error)


def _is_floor(known: Iterable[Rule], covering: Iterable[Rule], name: str) -> bool:
    """Tell whether others may stand on an image: it is a base of some rule, or its own rule counts floors."""
    return any(rule.max_floors is not None for rule in covering) or any(
        matches_base(rule.bases, name) for rule in known
    )


def _without_base(rule: Rule, name: str) -> Rule:
    """Return a rule for an image by this name: an allowed base needs no other one below."""
    return replace(rule, bases=()) if matches_base(rule.bases, name) else rule


def _enforced(found: Sequence[Violation]) -> Sequence[Violation]:
    return [each for each in found if each.rule.is_enforced]


def _moved(rule: Rule, tag: Tag) -> Violation:
    reason = f"the tag {tag} exists with another digest, and is never moved"
    return Violation(rule, Condition.IMMUTABLE, reason, "push under a new tag")


def _deleted(rule: Rule, tag: Tag) -> Violation:
    remedy = "ask an administrator to except it from the rule"
    return Violation(rule, Condition.IMMUTABLE, f"the tag {tag} is never deleted", remedy)


def _documents(found: Sequence[Violation]) -> list[dict[str, str]]:
    return [
        {"rule": each.rule.name, "condition": each.condition.value, "reason": each.reason, "remedy": each.remedy}
        for each in found
    ]


def _refusal(write: _Write, found: Sequence[Violation]) -> RegistryError:
    more = len(found) - _SAID_MAX
    message = " | ".join(map(str, found[:_SAID_MAX])) + (f" | and {more} more" if more > 0 else "")
    detail = {"repository": write.repository, "tag": write.tag, "violations": _documents(found)}
    return RegistryError(ErrorCode.DENIED, message, detail=detail, status=403)
