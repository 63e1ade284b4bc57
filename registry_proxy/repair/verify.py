"""Comparing the replicas of an upstream without the journal, and having repaired what differs (docs/decisions/21).

A comparison covers tags, which the protocol lists, and the manifests on record, which were pushed through us. From
these everything else follows. Manifests that were pushed past us without a tag cannot be found.
"""

import time
from asyncio import gather
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

from registry_proxy.operations.contents import ask, links_of, unless_absent
from registry_proxy.operations.fallback_tags import FallbackTags
from registry_proxy.ports.errors import StoreUnavailableError, UpstreamUnavailableError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.repair import Comparison, Difference, Failure
from registry_proxy.ports.replicas import ReplicaClient, ReplicaSet, StorageKind
from registry_proxy.ports.store import Store, Table, revision_of
from registry_proxy.protocol.descriptor import Manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, kept_digest, parse_digest, subject_of
from registry_proxy.protocol.referrers import Referrer, parse_referrers
from registry_proxy.repair.copies import is_nowhere
from registry_proxy.repair.exceptions import Exceptions
from registry_proxy.replication.intents import record_of
from registry_proxy.replication.journal import Journal
from registry_proxy.replication.manifests import recorded_repositories, write_lease
from registry_proxy.replication.marks import JournalMarks
from registry_proxy.replication.tag_records import choose, held_at

_T = TypeVar("_T")


@dataclass(slots=True)
class _Walk:
    """The comparison of one repository; ``lost`` is what every replica said that it does not have.

    ``revisions`` are those of its records as the walk began, by table and key. ``without_referrers`` are the replicas
    that have no referrers API.
    """

    comparison: Comparison
    routed: RoutedRepository
    prefer: str | None
    lost: set[IntentKey] = field(default_factory=set)
    revisions: dict[tuple[Table, str], int] = field(default_factory=dict)
    without_referrers: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Answers(Generic[_T]):
    """Answers of the replicas, by name, and the reasons of those that could not be asked; the others do not have it."""

    held: dict[str, _T] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class Verifier:
    """Compares the replicas of one upstream, one comparison at a time.

    Args:
        replica_set: the replicas.
        store: what was pushed through us.
        journal: what is known to be missing already, and where the rest is entered.
        referrers: merges what replicas list under a fallback tag: of two such lists neither is the right one.
    """

    def __init__(self, *, replica_set: ReplicaSet, store: Store, journal: Journal, referrers: FallbackTags) -> None:
        self._replica_set = replica_set
        self._store = store
        self._journal = journal
        self._exceptions = Exceptions(store)
        self._referrers = referrers

    def new(self) -> Comparison:
        """Return a comparison that has not begun."""
        return Comparison(time.time())

    async def compare(
        self, comparison: Comparison, *, repair: bool = False, prefer: str | None = None, only_at: str | None = None
    ) -> None:
        """Compare all replicas; errors end up in ``comparison``.

        Args:
            comparison: is brought up to date as it goes.
            repair: enter what differs and is decided into the journal, so that it is repaired. Nothing is ever deleted.
            prefer: a replica that decides what tags are where nothing else does.
            only_at: repair nothing but this replica.
        """
        try:
            await self._compare(comparison, repair=repair, prefer=prefer, only_at=only_at)
        except RegistryError as error:
            comparison.error = error.message
        except (UpstreamUnavailableError, StoreUnavailableError) as error:
            comparison.error = str(error)
        finally:
            comparison.is_done = True

    async def _compare(self, comparison: Comparison, *, repair: bool, prefer: str | None, only_at: str | None) -> None:
        if self._replica_set.storage is StorageKind.SHARED:
            return  # they cannot differ
        if self._replica_set.read_only and len(self._replica_set.replicas) == 1:
            return  # nor can one registry of others, which need not list its repositories, from what nobody pushed
        self._check_all_up()
        repositories = await self.repositories()
        comparison.repositories = len(repositories)
        for repository in sorted(repositories):
            walk = _Walk(comparison, RoutedRepository(self._replica_set.upstream, repository), prefer)
            marks, failed = await self._journal.current.marks(), comparison.failed
            async for difference in self._compare_repository(walk, marks):
                if not repair and await self._was_written(walk, difference):
                    continue
                comparison.note(difference)
                if not repair or only_at not in {None, difference.replica}:
                    continue
                if (subject := _subject_listed(difference)) is not None:
                    comparison.repaired += await self._merge(walk, difference, subject)
                elif difference.holders:
                    comparison.repaired += await self._enter(difference, is_chosen=prefer is not None)
            if failed == comparison.failed:
                await self._recover(walk, marks)
            comparison.repositories_done += 1

    def _check_all_up(self) -> None:
        away = [c.name for c in self._replica_set.replicas if not self._replica_set.is_writable(c.name)]
        if away:
            names = ", ".join(away)
            raise UpstreamUnavailableError(
                f"replicas can only be compared when all are up and none is paused; down or paused: {names}"
            )

    async def repositories(self) -> set[Repository]:
        """Return what a replica lists, or is on record; all replicas must be up.

        Raises:
            RegistryError, UpstreamUnavailableError: a replica does not give its list.
            StoreUnavailableError: the record cannot be read.
        """
        found: set[Repository] = set()
        for client in self._replica_set.replicas:
            found.update(await client.list_repositories())
        recorded = await recorded_repositories(self._store, f"{self._replica_set.upstream}/")
        lost = {key.routed for key in (await self._journal.current.marks()).lost_keys}
        return found | {
            routed.repository for routed in recorded | lost if routed.upstream == self._replica_set.upstream
        }

    async def _compare_repository(self, walk: _Walk, marks: JournalMarks) -> AsyncIterator[Difference]:
        tags = await self._store.list(Table.TAGS, f"{walk.routed}|")
        manifests = await self._store.list(Table.MANIFESTS, f"{walk.routed}|")
        for table, records in ((Table.TAGS, tags), (Table.MANIFESTS, manifests)):
            walk.revisions |= {(table, record.key): record.revision for record in records}
        recorded = {Tag(record.key.rpartition("|")[2]): parse_digest(record.value["digest"]) for record in tags}
        digests = {parse_digest(record.key.rpartition("|")[2]): str(record.value["media_type"]) for record in manifests}
        for tag, answers in (await self._tags(walk, marks, recorded)).items():
            digests |= {digest: "" for digest in answers.held.values() if digest not in digests}
            if kept_digest(tag) is not None:
                continue  # belongs to a manifest, which registries keep each in its own way
            async for difference in self._compare_tag(walk, tag, recorded.get(tag), answers, marks):
                yield replace(difference, media_type=digests.get(difference.wanted, "") if difference.wanted else "")
        async for difference in self._compare_contents(walk, marks, digests):
            yield difference

    async def _was_written(self, walk: _Walk, difference: Difference) -> bool:
        """Tell whether a key was or is being written since the walk began: its writers note who misses it.

        Otherwise a client that pushes without a pause would keep the replicas different for ever.
        """
        key, wanted = difference.key, difference.wanted
        intent = await self._journal.find(key)
        if intent is not None and intent.is_under_way(time.time()):
            return True
        if await self._is_record_changed(walk, key):
            return True
        if wanted is None or difference.replica is None:
            return False
        client = next(one for one in self._replica_set.replicas if one.name == difference.replica)
        try:
            return await held_at(client, key) == wanted
        except (RegistryError, UpstreamUnavailableError):
            return False

    async def _is_record_changed(self, walk: _Walk, key: IntentKey) -> bool:
        """Tell whether the record of a tag or manifest is another one than when the walk began."""
        if key.kind is IntentKind.BLOB:
            return False
        record = await self._store.get(*record_of(key))
        return revision_of(record) != walk.revisions.get(record_of(key), 0)

    # ------------------------------------------------------------ asking

    async def _ask(self, walk: _Walk, what: str, question: Callable[[ReplicaClient], Awaitable[_T]]) -> _Answers[_T]:
        """Ask all replicas at once; an answer that is neither the content nor a 404 ends nothing but this question.

        Raises:
            UpstreamUnavailableError: a replica failed, and is not up any more.
        """
        clients = self._replica_set.replicas
        answers: _Answers[_T] = _Answers()
        for client, answer in zip(clients, await gather(*map(question, clients), return_exceptions=True), strict=True):
            if isinstance(answer, RegistryError) and answer.status == 404:
                continue
            if isinstance(answer, RegistryError | UpstreamUnavailableError):
                answers.failures[client.name] = str(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                answers.held[client.name] = answer
        if answers.failures:
            self._check_all_up()
        for name, reason in answers.failures.items():
            walk.comparison.fail(Failure(what, walk.routed, name, reason, is_held=bool(answers.held)))
        return answers

    async def _tags(
        self, walk: _Walk, marks: JournalMarks, recorded: Collection[Tag]
    ) -> Mapping[Tag, _Answers[Digest]]:
        """Return what each tag is where, less those on what was deleted and is not deleted there yet."""
        repository = walk.routed.repository
        lists = await self._ask(walk, str(walk.routed), lambda client: client.list_tags(repository))
        found = {}
        for tag in sorted({*recorded, *(tag for tags in lists.held.values() for tag in tags)}):
            resolved = await self._ask(
                walk, f"{walk.routed}:{tag}", partial(_resolve, repository=repository, tag=tag, lists=lists.held)
            )
            held = {
                name: digest
                for name, digest in resolved.held.items()
                if not marks.has_tombstone(name, walk.routed, digest)
            }
            found[tag] = _Answers(held, resolved.failures | lists.failures)
        return found

    # ------------------------------------------------------------ comparing

    async def _compare_tag(
        self, walk: _Walk, tag: Tag, recorded: Digest | None, answers: _Answers[Digest], marks: JournalMarks
    ) -> AsyncIterator[Difference]:
        key = IntentKey(walk.routed, IntentKind.TAG, tag)
        open_at = {c.name for c in self._replica_set.replicas if marks.has_tag_intent(c.name, walk.routed, tag)}
        names = [c.name for c in self._replica_set.replicas if c.name not in open_at | answers.failures.keys()]
        held = {name: answers.held.get(name) for name in names}
        if not any(held.values()):
            is_open = bool(answers.failures) or any(not marks.refuses(name, walk.routed, tag) for name in open_at)
            if held and recorded is not None and not is_open and await self._lose(walk, key, recorded, ""):
                yield Difference(key, None, recorded, None, "", ())
            return
        wanted = _decide(recorded, held, walk.prefer)
        if answers.failures and wanted != recorded:
            return  # a replica that could not be asked may have another one
        holders = tuple(name for name, digest in held.items() if wanted is not None and digest == wanted)
        for name, digest in held.items():
            if wanted is None or digest != wanted:
                yield Difference(key, name, wanted, digest, "", holders)

    async def _untagged(self, walk: _Walk, digest: Digest) -> Mapping[Digest, str]:
        """Return what refers to a manifest by the referrers API of any replica, with media types: tags lead nowhere."""

        async def listed(client: ReplicaClient) -> Sequence[Referrer]:
            if client.name in walk.without_referrers:
                return []
            try:
                entries = await client.fetch_referrers(walk.routed.repository, digest)
            except RegistryError:  # a registry that refuses what it does not know keeps no replica from being compared
                entries = None
            if entries is None:
                walk.without_referrers.add(client.name)
            return entries or []

        answers = await self._ask(walk, f"{walk.routed}@{digest} referrers", listed)
        return {one.digest: str(one.fields["mediaType"]) for entries in answers.held.values() for one in entries}

    async def _compare_contents(
        self, walk: _Walk, marks: JournalMarks, digests: Mapping[Digest, str]
    ) -> AsyncIterator[Difference]:
        """Compare manifests, and what they refer to.

        ``digests`` are on record or named by a tag, with their media types. A child of an index that is neither may
        have been absent from the beginning (docs/decisions/73).
        """
        waiting, seen = dict(digests), set(digests)
        blobs, foreign, children = set[Digest](), set[Digest](), set[Digest]()
        repository = walk.routed.repository
        while waiting:
            digest, media_type = waiting.popitem()
            key = IntentKey(walk.routed, IntentKind.MANIFEST, str(digest))
            answers = await self._ask(walk, str(key), partial(_fetch, repository=repository, digest=digest))
            manifest = next(iter(answers.held.values()), None)
            found = dict(await self._untagged(walk, digest))
            if manifest is not None:
                media_type = manifest.descriptor.media_type
                links = links_of(manifest)
                found |= {child.digest: child.media_type for child in links.manifests}
                children.update(child.digest for child in links.manifests if child.digest not in digests)
                blobs.update(blob.digest for blob in links.blobs)
                foreign.update(layer.digest for layer in links.foreign)
            waiting |= {one: kind for one, kind in found.items() if one not in seen}
            seen.update(found)
            if digest in children and not answers.held and not answers.failures:
                walk.comparison.sparse += 1
                continue
            walk.comparison.manifests += 1
            async for difference in self._lacking(walk, key, digest, media_type, answers, marks):
                yield difference
        for digest in sorted(blobs | foreign, key=str):
            key = IntentKey(walk.routed, IntentKind.BLOB, str(digest))
            stats = await self._ask(
                walk, str(key), partial(ask, repository=repository, kind=ContentKind.BLOB, digest=digest)
            )
            if digest in blobs or stats.held:  # a foreign layer may lie elsewhere
                walk.comparison.blobs += 1
                async for difference in self._lacking(walk, key, digest, "", stats, marks):
                    yield difference

    async def _lacking(  # noqa: PLR0917 - a key, what it is, and all that is known of it
        self, walk: _Walk, key: IntentKey, digest: Digest, media_type: str, answers: _Answers[Any], marks: JournalMarks
    ) -> AsyncIterator[Difference]:
        """Give the replicas that miss a content that others have, or that it is lost."""
        names = [client.name for client in self._replica_set.replicas]
        deleted = {name for name in names if marks.has_tombstone(name, key.routed, digest)}
        holders = tuple(name for name in answers.held if name not in deleted)
        if not holders:
            if not deleted and not answers.failures and await self._lose(walk, key, digest, media_type):
                yield Difference(key, None, digest, None, media_type, ())
            return
        heard = deleted | answers.held.keys() | answers.failures.keys()
        for name in names:
            if name not in heard and not marks.refuses(name, key.routed, digest):
                yield Difference(key, name, digest, None, media_type, holders)

    # ------------------------------------------------------------ what is lost

    async def _lose(self, walk: _Walk, key: IntentKey, digest: Digest, media_type: str) -> bool:
        """Note that every replica said that it does not have a key; return whether that is news.

        A key that a replica is known to miss is left to its repair: some node may still have the content. One that was
        deleted since the walk began is not lost.
        """
        walk.lost.add(key)
        async with self._lease(key, digest):
            if await self._is_record_changed(walk, key):
                return False
            intent = await self._journal.find(key)
            if intent is not None and not intent.is_lost:
                return False
            if intent is not None:
                return not intent.is_dismissed
            if not await is_nowhere(self._replica_set, key):
                return False
            await self._exceptions.lose(key, digest, media_type)
        if not await is_nowhere(self._replica_set, key):
            await self._exceptions.recover(key)  # a blob was pushed meanwhile: its writers have no lease
            return False
        return True

    async def _recover(self, walk: _Walk, marks: JournalMarks) -> None:
        """End that keys of a repository are lost which some replica has, or to which nothing refers any more."""
        for key in marks.lost_keys:
            if key.routed == walk.routed and key not in walk.lost:
                await self._exceptions.recover(key)

    # ------------------------------------------------------------ repairing

    async def _enter(self, difference: Difference, *, is_chosen: bool = False) -> bool:
        """Enter a difference into the journal, if it is still one; return whether it is there now.

        Where a person has chosen what a tag is, that is on record from now on: it may be an earlier state.
        """
        key, wanted = difference.key, difference.wanted
        assert wanted is not None  # noqa: S101 - only what has holders is entered
        async with self._lease(key, wanted):
            clients = {client.name: client for client in self._replica_set.replicas}
            if await held_at(clients[difference.holders[0]], key) != wanted:
                return False
            if key.kind is IntentKind.TAG:
                if not await self._is_unmoved(key, wanted):
                    return False
                if is_chosen:
                    await choose(self._store, key, wanted)
            return await self._journal.miss(key, wanted, difference.media_type, difference.replica or "")

    async def _merge(self, walk: _Walk, difference: Difference, subject: Digest) -> bool:
        """Have all replicas list under a subject's fallback tag what each lists; return whether that was done."""
        key, tag, repository = difference.key, Tag(difference.key.name), difference.key.routed.repository
        tags: set[Digest | None] = set()
        entries: list[Referrer] = []
        try:
            for client in self._replica_set.replicas:
                found = await unless_absent(client.resolve_tag(repository, tag))
                tags.add(None if found is None else found.digest)
                if (
                    found is None
                    or (held := await unless_absent(client.fetch_manifest(repository, found.digest))) is None
                ):
                    continue
                with suppress(ValueError):  # somebody gave this name to something else
                    entries += parse_referrers(held.body, skips_malformed=True)
            await self._referrers.merge(key.routed, subject, tags, entries)
        except (RegistryError, UpstreamUnavailableError) as error:
            walk.comparison.fail(Failure(str(key), key.routed, difference.replica or "", str(error), is_held=True))
            return False
        return True

    def _lease(self, key: IntentKey, digest: Digest) -> AbstractAsyncContextManager[None]:
        tag = Tag(key.name) if key.kind is IntentKind.TAG else None
        return write_lease(self._store, key.routed, digest, tag)

    async def _is_unmoved(self, key: IntentKey, wanted: Digest) -> bool:
        """Tell whether no push through us made the tag something else since it was read."""
        record = await self._store.get(*record_of(key))
        intent = await self._journal.find(key)
        is_ours = record is None or record.value["digest"] == str(wanted)
        return (is_ours or intent is None) and (intent is None or intent.digest == wanted)


def _subject_listed(difference: Difference) -> Digest | None:
    """Return the manifest of whose referrers a replica has another list than others; None for another difference."""
    key = difference.key
    return subject_of(Tag(key.name)) if key.kind is IntentKind.TAG and difference.found is not None else None


def _decide(recorded: Digest | None, held: Mapping[str, Digest | None], prefer: str | None) -> Digest | None:
    """Return a tag's right digest: of its last push through us, of all replicas that have it, or of the preferred."""
    values = {digest for digest in held.values() if digest is not None}
    if recorded is not None and recorded in values:
        return recorded
    if len(values) == 1:  # moved past us, everywhere; or never pushed through us
        return next(iter(values))
    return None if prefer is None else held.get(prefer)


async def _resolve(
    client: ReplicaClient, *, repository: Repository, tag: Tag, lists: Mapping[str, Collection[Tag]]
) -> Digest:
    if tag not in lists.get(client.name, ()):
        raise RegistryError(ErrorCode.MANIFEST_UNKNOWN, "the registry does not list the tag")
    return (await client.resolve_tag(repository, tag)).digest


async def _fetch(client: ReplicaClient, *, repository: Repository, digest: Digest) -> Manifest:
    return await client.fetch_manifest(repository, digest)
