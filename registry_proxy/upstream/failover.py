"""Reading from whichever replica can answer: the next one before the first byte, 404 only when it is certain."""

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TypeVar

from registry_proxy.ports.content import ByteStream
from registry_proxy.ports.errors import (
    AbsenceUnknownError,
    UpstreamLimitError,
    UpstreamUnavailableError,
    WrongContentError,
)
from registry_proxy.ports.journal import Marks, MarkSource, Moment
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.replicas import HeldReferrers, ReplicaState, StorageKind
from registry_proxy.protocol.descriptor import Descriptor, Manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, fallback_tags
from registry_proxy.replica.client import HttpReplicaClient
from registry_proxy.replica.failure import (
    AccessRefusedError,
    BadUpstreamError,
    ReplicaFailedError,
    SlowListError,
    WrongBytesError,
)
from registry_proxy.replica.listing import merged
from registry_proxy.replica.streams import ReportedStream
from registry_proxy.tasks import spawn
from registry_proxy.upstream.patience import Patience
from registry_proxy.upstream.question import Question, Round
from registry_proxy.upstream.referrers import ask_referrers, merge_replicas
from registry_proxy.upstream.replicas import UpstreamReplicas
from registry_proxy.upstream.selection import Standing, is_absent, order_for_read
from registry_proxy.upstream.sharing import FRESH_MAX_SECONDS, SharedFetch, SharedLists

_T = TypeVar("_T")
ProvesAbsent = Callable[[RoutedRepository, Tag, Collection[str]], Awaitable[bool]]
_Version = tuple[Moment, int]
_Ask = Callable[[HttpReplicaClient], Awaitable[_T]]
LIST_SECONDS = 60.0
"""Time that a list of one replica may take while clients wait for it."""

_LISTINGS_MAX = 8
"""Number of lists that are read at once from the replicas of an upstream."""

_DOUBTFUL_OUTCOMES = frozenset({"5xx", "timeout", "cut", "stall", "mismatch"})


class FailoverReader:
    """An ``UpstreamReader`` over all replicas of an upstream.

    Besides RegistryError (404 when certain; 502 when every replica answers wrongly or refuses us) its methods raise
    AbsenceUnknownError and UpstreamUnavailableError, which name each replica and its reason, and UpstreamLimitError.

    Args:
        replicas: started.
        marks: what each replica misses.
        patience_seconds: how long to wait for a replica to come back before giving up; 0 for not at all.
        proves_absent: tells of a tag that a replica says to be absent whether others that cannot be asked, or are
            behind, cannot hold it either; None where nothing tells.
        lists: those of all upstreams; None for a bound of its own.
    """

    def __init__(
        self,
        replicas: UpstreamReplicas,
        marks: MarkSource,
        patience_seconds: float,
        proves_absent: ProvesAbsent | None = None,
        lists: SharedLists | None = None,
    ) -> None:
        self._replicas = replicas
        self._marks = marks
        self._patience = Patience(replicas, patience_seconds)
        self._proves_absent = proves_absent
        self._listings = asyncio.Semaphore(_LISTINGS_MAX)
        self._repositories: SharedFetch[Sequence[Repository]] = SharedFetch(FRESH_MAX_SECONDS)
        self._lists = lists or SharedLists()
        self._have_referrers: dict[str, bool] = {}  # by replica, as far as it was asked

    # ------------------------------------------------------------ RegistryReader

    async def resolve_tag(self, repository: Repository, tag: Tag) -> Descriptor:
        question = Question(self._routed(repository), ErrorCode.MANIFEST_UNKNOWN, tag=tag)
        return await self._ask_hedged(question, lambda client: client.resolve_tag(repository, tag))

    async def fetch_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        question = Question(self._routed(repository), ErrorCode.MANIFEST_UNKNOWN, digest=digest)
        return await self._ask_hedged(question, lambda client: client.fetch_manifest(repository, digest))

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        question = Question(self._routed(repository), ErrorCode.BLOB_UNKNOWN, digest=digest)
        return await self._ask_hedged(question, lambda client: client.stat_blob(repository, digest))

    @asynccontextmanager
    async def open_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> AsyncIterator[ByteStream]:
        """Open a blob at the first replica whose headers arrive; a failure after them is for the caller to go on from.

        An error of the caller that says the content was wrong (WrongContentError) counts against the replica, and
        leaves with the replica's name.
        """
        question = Question(self._routed(repository), ErrorCode.BLOB_UNKNOWN, digest=digest)
        async with AsyncExitStack() as stack:

            async def ask(client: HttpReplicaClient) -> tuple[str, ByteStream]:
                return client.name, await stack.enter_async_context(client.open_blob(repository, digest, offset))

            name, stream = await self._ask(question, ask)
            try:
                yield ReportedStream(stream, lambda error: self._failed(name, question, error))
            except WrongContentError as error:
                error.sender = f"{self._replicas.upstream}/{name}"
                if error.is_proven:
                    self._replicas.report_lie(name, question.key)
                else:  # or the one that sent the bytes before lied
                    self._replicas.doubts.cut(name, question.key)
                raise

    async def list_tags(self, repository: Repository) -> Sequence[Tag]:
        """Return all. A list of several pages stands for some seconds, unless the repository was written to."""
        question = Question(self._routed(repository), ErrorCode.NAME_UNKNOWN)

        async def attempt() -> Sequence[Tag]:
            marks = await self._marks.marks(of_all_nodes=True)

            def is_current_at(name: str, tag: Tag) -> bool:
                return not marks.misses_tag(name, question.routed, tag)

            turn = self._round(question, marks)
            lists = await self._ask_all(turn, lambda client: self._in_time(client, client.list_tags(repository)))
            current = {one.name for one in turn.standings if one.is_current}
            self._check_whole(turn, lists, current)
            # One that is behind may list what was deleted: it is heard only where all are behind.
            heard = {name: tags for name, tags in lists.items() if name in current} or lists
            return await merged([(tags, partial(is_current_at, name)) for name, tags in heard.items()])

        def is_same(then: _Version, _: Sequence[Tag]) -> bool:
            return self._is_same(then, repository.__ne__)

        version, fetch = await self._version(), partial(self._patience.repeat, question, attempt)
        return await self._lists.get_names(question, version, fetch, is_same)

    async def list_referrers(self, repository: Repository, digest: Digest) -> HeldReferrers:
        """Return what all replicas hold; of one that cannot be asked, as much must be known as for a fallback tag."""
        tag = fallback_tags(digest)[0]
        question = Question(self._routed(repository), ErrorCode.MANIFEST_UNKNOWN, tag=tag)

        async def attempt() -> HeldReferrers:
            marks = await self._marks.marks(of_all_nodes=True)
            turn = self._round(question, marks)
            answers = await self._ask_all(
                turn, lambda client: self._in_time(client, ask_referrers(client, repository, digest, tag))
            )
            current = {one.name for one in turn.standings if one.is_current}
            self._check_whole(turn, answers, current)
            self._have_referrers |= {name: answer.listed is not None for name, answer in answers.items()}
            silent = {one.name for one in turn.standings if not one.is_exempt} - answers.keys()
            heard = {name: answer for name, answer in answers.items() if name in current} or answers
            is_tagged = any(answer.tag is not None for answer in heard.values())
            if silent and not is_tagged and not await self._hold_no_more(question.routed, tag, silent):
                raise self._cannot_answer(turn, self._problems(turn))
            needs_tag = not all(self._have_referrers.get(name) for name in self._replicas.health())
            return merge_replicas(
                heard, lambda name, entry: marks.has_tombstone(name, question.routed, entry), needs_tag=needs_tag
            )

        return await self._lists.get(question, lambda: self._patience.repeat(question, attempt))

    async def list_repositories(self) -> Sequence[Repository]:
        """Return all. A list that took long stands for some seconds, unless a push may have made a repository."""
        # No repository has this name: marks are per repository, and say nothing about a list of them.
        question = Question(self._routed(Repository("")), ErrorCode.NAME_UNKNOWN)

        async def attempt() -> Sequence[Repository]:
            marks = await self._marks.marks()
            turn = self._round(question, marks)
            lists = await self._ask_all(turn, lambda client: self._in_time(client, client.list_repositories()))
            self._check_whole(turn, lists, {n for n in lists if not marks.pending(n, self._replicas.upstream)})
            return await merged([(names, bool) for names in lists.values()])

        def is_same(then: _Version, names: Sequence[Repository]) -> bool:
            return self._is_same(then, lambda name: bisect_left(names, name) < bisect_right(names, name))

        version = await self._version()
        return await self._repositories.get(version, lambda: self._patience.repeat(question, attempt), is_same)

    async def _version(self) -> _Version:
        """Return what a list depends on: the writes that any node acknowledged until now, and the replicas' states."""
        await self._marks.marks(of_all_nodes=True)
        return self._marks.moment(), self._replicas.changes

    def _is_same(self, then: _Version, stands_after_write: Callable[[Repository], bool]) -> bool:
        """Tell whether a list stands, by the repositories that were written to since."""
        moment, changes = then
        leave_intents = self._replicas.storage is not StorageKind.SHARED
        written = self._marks.written_since(moment, self._replicas.upstream, leave_intents=leave_intents)
        return changes == self._replicas.changes and written is not None and all(map(stands_after_write, written))

    async def _hold_no_more(self, routed: RoutedRepository, tag: Tag, silent: Collection[str]) -> bool:
        """Tell whether silent replicas hold nothing beyond the ones that answered."""
        if self._replicas.read_only or self._replicas.storage is StorageKind.SHARED:
            return True
        return self._proves_absent is not None and await self._proves_absent(routed, tag, silent)

    async def _in_time(self, client: HttpReplicaClient, listing: Awaitable[_T]) -> _T:
        """Await a list of a replica for as long as a client may wait for it. Raises SlowListError."""
        async with self._listings:
            try:
                async with asyncio.timeout(LIST_SECONDS):
                    return await listing
            except TimeoutError as error:
                raise SlowListError(client.name, f"its list takes longer than {LIST_SECONDS:.0f} s") from error

    # ------------------------------------------------------------ asking

    def _routed(self, repository: Repository) -> RoutedRepository:
        return RoutedRepository(self._replicas.upstream, repository)

    async def _ask(self, question: Question, ask: _Ask[_T]) -> _T:
        return await self._patience.repeat(question, lambda: self._attempt(question, ask, self._ask_in_order))

    async def _ask_hedged(self, question: Question, ask: _Ask[_T]) -> _T:
        """Do as ``_ask``; where an answer takes unusually long, the next replica is asked as well."""
        return await self._patience.repeat(question, lambda: self._attempt(question, ask, self._ask_overlapping))

    async def _attempt(
        self, question: Question, ask: _Ask[_T], ask_some: Callable[[Round, _Ask[_T], Marks], Awaitable[_T | None]]
    ) -> _T:
        # A tag means the last acknowledged push through any node. A digest means the same for ever.
        marks = await self._marks.marks(of_all_nodes=question.digest is None)
        turn = self._round(question, marks)
        answer = await ask_some(turn, ask, marks)
        if answer is None:
            raise await self._final_verdict(turn)
        return answer

    async def _ask_in_order(self, turn: Round, ask: _Ask[_T], marks: Marks) -> _T | None:
        for name in order_for_read(turn.standings, turn.question.key):
            if (answer := await self._ask_one(turn, name, ask, marks)) is not None:
                return answer
            if self._is_settled(turn):
                break
        return None

    async def _ask_overlapping(self, turn: Round, ask: _Ask[_T], marks: Marks) -> _T | None:
        """Ask in order, and the next one already when an answer takes longer than usual; the first answer wins.

        A replica that lost to a later one is asked last for a while, and probed.
        """
        names, hedging = order_for_read(turn.standings, turn.question.key), self._replicas.hedging
        running: dict[asyncio.Task[_T | None], str] = {}
        is_hedged = False
        patience: float | None = hedging.begin()
        try:
            for name in names:
                latest = spawn(self._ask_timed(turn, name, ask, marks), f"ask {name}")
                running[latest] = name
                winner = await _first_answer(running, None if name == names[-1] else patience)
                if running and winner is None and not hedging.take():
                    winner = await _first_answer(running, None)
                if winner is not None:
                    self._report_overtaken(name for task, name in running.items() if task is not latest)
                    if is_hedged:
                        self._replicas.report_hedged("later" if winner is latest else "first")
                    return winner.result()
                if self._is_settled(turn):
                    break
                if running:  # two at a time are enough
                    patience, is_hedged = None, True
            if is_hedged:
                self._replicas.report_hedged("none")
            return None
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _report_overtaken(self, names: Iterable[str]) -> None:
        for name in names:
            self._replicas.report_slow(name)

    async def _ask_timed(self, turn: Round, name: str, ask: _Ask[_T], marks: Marks) -> _T | None:
        began = time.monotonic()
        answer = await self._ask_one(turn, name, ask, marks)
        if answer is not None or name in turn.absent:
            self._replicas.hedging.answered(name, time.monotonic() - began)
        return answer

    async def _ask_one(self, turn: Round, name: str, ask: _Ask[_T], marks: Marks) -> _T | None:
        answer = await self._try(turn, name, ask)
        if isinstance(answer, Descriptor) and marks.has_tombstone(name, turn.question.routed, answer.digest):
            # A tag on a manifest that was deleted through us: it went with it.
            turn.absent[name] = self._not_found(turn.question)
            return None
        return answer

    async def _try(self, turn: Round, name: str, ask: _Ask[_T]) -> _T | None:
        """Return what a replica answers; None when it has no answer, which is noted in ``turn``."""
        try:
            answer = await ask(self._replicas.client(name))
        except (RegistryError, UpstreamUnavailableError) as error:
            self._note(turn, name, error)
            return None
        self._replicas.report_success(name)
        question = turn.question
        if question.digest is not None:
            self._replicas.separation.answered(name, question.kind, question.routed.repository, question.digest)
        return answer

    def _is_settled(self, turn: Round) -> bool:
        """Tell whether nobody else has to be asked: over shared storage one 404 is the truth."""
        return bool(turn.absent) and self._replicas.storage is StorageKind.SHARED

    async def _ask_all(self, turn: Round, ask: _Ask[_T]) -> Mapping[str, _T]:
        """Ask every replica at once; return what those that answered said, at least one."""
        names = order_for_read(turn.standings, turn.question.key)
        answers = await asyncio.gather(*(self._try(turn, name, ask) for name in names))
        heard = {name: answer for name, answer in zip(names, answers, strict=True) if answer is not None}
        if not heard:
            raise self._verdict(turn)
        return heard

    def _check_whole(self, turn: Round, lists: Iterable[str], current: set[str]) -> None:
        """Raise an error unless a current replica was heard, or all: a list must be whole."""
        heard = {*lists, *turn.absent}
        if current & heard or len(heard) == len(turn.standings):
            return
        behind = UpstreamUnavailableError("it has not yet got everything")
        raise self._cannot_answer(turn, self._problems(turn) | dict.fromkeys(lists, behind))

    # ------------------------------------------------------------ judging

    def _round(self, question: Question, marks: Marks) -> Round:
        return Round(question, self._standings(question, marks))

    def _standings(self, question: Question, marks: Marks) -> list[Standing]:
        return [
            question.standing(name, marks, health, self._replicas.doubts)
            for name, health in self._replicas.health().items()
        ]

    def _note(self, turn: Round, name: str, error: RegistryError | UpstreamUnavailableError) -> None:
        if isinstance(error, RegistryError) and error.status == 404:
            self._replicas.report_success(name)
            turn.absent[name] = error
        else:
            turn.failures[name] = error
            self._failed(name, turn.question, error)

    def _failed(self, name: str, question: Question, error: Exception) -> None:
        if isinstance(error, WrongBytesError):
            self._replicas.report_lie(name, question.key)
        elif isinstance(error, UpstreamLimitError):
            self._replicas.doubts.limited(name, question.routed, error)
        elif isinstance(error, ReplicaFailedError) and (error.is_elsewhere or error.outcome in _DOUBTFUL_OUTCOMES):
            self._replicas.doubts.cut(name, question.key)
        self._replicas.report_failure(name, error)

    async def _final_verdict(self, turn: Round) -> Exception:
        """Return the verdict; "absent" only by marks that know every write that any node acknowledged until now."""
        verdict = self._verdict(turn)
        if isinstance(verdict, AbsenceUnknownError) and await self._is_proven_absent(turn):
            return self._not_found(turn.question)
        if turn.question.digest is None or not (isinstance(verdict, RegistryError) and verdict.status == 404):
            return verdict
        turn.standings = self._standings(turn.question, await self._marks.marks(of_all_nodes=True))
        return self._verdict(turn)

    async def _is_proven_absent(self, turn: Round) -> bool:
        if self._proves_absent is None or turn.question.tag is None:
            return False
        silent = [
            one.name for one in turn.standings if not one.is_exempt and not (one.name in turn.absent and one.is_current)
        ]
        return await self._proves_absent(turn.question.routed, turn.question.tag, silent)

    def _verdict(self, turn: Round) -> Exception:
        if is_absent(turn.standings, turn.absent, self._replicas.storage):
            return next(iter(turn.absent.values()), self._not_found(turn.question))
        return self._cannot_answer(turn, self._problems(turn))

    def _cannot_answer(self, turn: Round, problems: Mapping[str, Exception]) -> Exception:
        """Return what a question ends in that no replica has answered; ``problems`` is why each has not."""
        limits = [problem for problem in problems.values() if isinstance(problem, UpstreamLimitError)]
        if limits:
            return min(limits, key=lambda limit: limit.retry_after_seconds)
        if (
            problems
            and len(problems) == len(turn.standings)
            and all(isinstance(problem, RegistryError) for problem in problems.values())
        ):
            return next(iter(problems.values()))
        reasons = {name: str(problem).removeprefix(f"{name}: ") for name, problem in problems.items()}
        reasons |= dict.fromkeys(turn.absent, "does not hold it, which proves nothing while the others are not heard")
        explanation = "; ".join(f"{name}: {reason}" for name, reason in sorted(reasons.items()))
        if turn.absent:
            return AbsenceUnknownError(
                f"it cannot be known whether upstream {self._replicas.upstream} holds it: {explanation}"
            )
        return UpstreamUnavailableError(f"no replica of upstream {self._replicas.upstream} can answer: {explanation}")

    def _problems(self, turn: Round) -> dict[str, Exception]:
        """Return why each replica that said neither yes nor no did not: what it answered, or why it was not asked."""
        problems: dict[str, Exception] = {}
        health = self._replicas.health()
        for one in turn.standings:
            if one.name in turn.absent:
                continue
            if one.has_lied:
                problems[one.name] = BadUpstreamError(one.name, "it sent other bytes than those of this digest")
            elif one.name in turn.failures:
                problems[one.name] = turn.failures[one.name]
            elif one.is_exempt or one.is_deleted:
                problems[one.name] = UpstreamUnavailableError("it has not got the last write")
            elif health[one.name].state is ReplicaState.CREDENTIALS_REFUSED:
                problems[one.name] = AccessRefusedError(one.name, health[one.name].reason)
            elif health[one.name].state is ReplicaState.NOT_A_REGISTRY:
                problems[one.name] = BadUpstreamError(one.name, health[one.name].reason)
            else:
                limit = self._replicas.doubts.limit(one.name, turn.question.routed)
                problems[one.name] = limit or UpstreamUnavailableError(health[one.name].reason)
        return problems

    @staticmethod
    def _not_found(question: Question) -> RegistryError:
        return RegistryError(question.unknown, "no such content in the upstream registry", detail=question.detail)


async def _first_answer(
    running: "dict[asyncio.Task[_T | None], str]", timeout: float | None
) -> "asyncio.Task[_T | None] | None":
    """Return the first of some tasks that has an answer; None when none of them has one, or the time is over.

    Tasks without an answer are removed.
    """
    while running:
        done, _ = await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            return None
        for task in done:
            del running[task]
            if task.result() is not None:
                return task
    return None
