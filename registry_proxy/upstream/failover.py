"""Reading from whichever replica can answer: the next one before the first byte, 404 only when it is certain."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from registry_proxy.ports.content import ByteStream
from registry_proxy.ports.errors import (
    AbsenceUnknownError,
    UpstreamLimitError,
    UpstreamUnavailableError,
    WrongContentError,
)
from registry_proxy.ports.journal import Marks, MarkSource
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.replicas import ReplicaState, StorageKind
from registry_proxy.protocol.descriptor import Descriptor, Manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag
from registry_proxy.tasks import spawn
from registry_proxy.upstream.client import HttpReplicaClient
from registry_proxy.upstream.doubts import Doubts
from registry_proxy.upstream.failure import AccessRefusedError, BadUpstreamError, ReplicaFailedError, WrongBytesError
from registry_proxy.upstream.health import ReplicaHealth
from registry_proxy.upstream.replicas import UpstreamReplicas
from registry_proxy.upstream.selection import Standing, is_absent, order_for_read

_T = TypeVar("_T")
ProvesAbsent = Callable[[RoutedRepository, Tag, Collection[str]], Awaitable[bool]]
_Ask = Callable[[HttpReplicaClient], Awaitable[_T]]
_RETRY_PAUSE_SECONDS = 0.5
"""How soon a patient reader looks again when no replica changed its state: marks are cleared without a word."""

_DOUBTFUL_OUTCOMES = frozenset({"5xx", "timeout", "cut", "stall", "mismatch"})


@dataclass(frozen=True, slots=True)
class _Question:
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
class _Round:
    """The answers of the replicas to one question."""

    question: _Question
    standings: list[Standing]
    absent: dict[str, RegistryError] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)


class _ReportedStream:
    """A ``ByteStream`` that tells its failures."""

    def __init__(self, stream: ByteStream, failed: Callable[[UpstreamUnavailableError], None]) -> None:
        self._stream = stream
        self._failed = failed

    @property
    def offset(self) -> int:
        return self._stream.offset

    @property
    def size_bytes(self) -> int | None:
        return self._stream.size_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        except UpstreamUnavailableError as error:
            self._failed(error)
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()


class FailoverReader:
    """A ``RegistryReader`` over all replicas of an upstream.

    Besides RegistryError (404 when certain; 502 when every replica answers wrongly or refuses us) its methods raise
    AbsenceUnknownError and UpstreamUnavailableError, which name each replica and its reason, and UpstreamLimitError.

    Args:
        replicas: started.
        marks: what each replica misses.
        patience_seconds: how long to wait for a replica to come back before giving up; 0 for not at all.
        proves_absent: tells of a tag that a replica says to be absent whether others that cannot be asked, or are
            behind, cannot hold it either; None where nothing tells.
    """

    def __init__(
        self,
        replicas: UpstreamReplicas,
        marks: MarkSource,
        patience_seconds: float,
        proves_absent: ProvesAbsent | None = None,
    ) -> None:
        self._replicas = replicas
        self._marks = marks
        self._patience_seconds = patience_seconds
        self._proves_absent = proves_absent

    # ------------------------------------------------------------ RegistryReader

    async def resolve_tag(self, repository: Repository, tag: Tag) -> Descriptor:
        question = _Question(self._routed(repository), ErrorCode.MANIFEST_UNKNOWN, tag=tag)
        return await self._ask_hedged(question, lambda client: client.resolve_tag(repository, tag))

    async def fetch_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        question = _Question(self._routed(repository), ErrorCode.MANIFEST_UNKNOWN, digest=digest)
        return await self._ask_hedged(question, lambda client: client.fetch_manifest(repository, digest))

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        question = _Question(self._routed(repository), ErrorCode.BLOB_UNKNOWN, digest=digest)
        return await self._ask_hedged(question, lambda client: client.stat_blob(repository, digest))

    @asynccontextmanager
    async def open_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> AsyncIterator[ByteStream]:
        """Open a blob at the first replica whose headers arrive; a failure after them is for the caller to go on from.

        An error of the caller that says the content was wrong (WrongContentError) counts against the replica, and
        leaves with the replica's name.
        """
        question = _Question(self._routed(repository), ErrorCode.BLOB_UNKNOWN, digest=digest)
        async with AsyncExitStack() as stack:

            async def ask(client: HttpReplicaClient) -> tuple[str, ByteStream]:
                return client.name, await stack.enter_async_context(client.open_blob(repository, digest, offset))

            name, stream = await self._ask(question, ask)
            try:
                yield _ReportedStream(stream, lambda error: self._failed(name, question, error))
            except WrongContentError as error:
                error.sender = f"{self._replicas.upstream}/{name}"
                if error.is_proven:
                    self._replicas.report_lie(name, question.key)
                else:  # or the one that sent the bytes before lied
                    self._replicas.doubts.cut(name, question.key)
                raise

    async def list_tags(self, repository: Repository) -> list[Tag]:
        question = _Question(self._routed(repository), ErrorCode.NAME_UNKNOWN)

        async def attempt() -> list[Tag]:
            marks = await self._marks.marks(of_all_nodes=True)
            turn = self._round(question, marks)
            lists = await self._ask_all(turn, lambda client: client.list_tags(repository))
            current = {one.name for one in turn.standings if one.is_current}
            self._check_whole(turn, lists, current)
            # One that is behind may list what was deleted: it is heard only where all are behind.
            heard = {name: tags for name, tags in lists.items() if name in current} or lists
            return sorted(
                {
                    tag
                    for name, tags in heard.items()
                    for tag in tags
                    if not marks.misses_tag(name, question.routed, tag)
                }
            )

        return await self._patiently(question, attempt)

    async def list_repositories(self) -> list[Repository]:
        # No repository has this name: marks are per repository, and say nothing about a list of them.
        question = _Question(self._routed(Repository("")), ErrorCode.NAME_UNKNOWN)

        async def attempt() -> list[Repository]:
            marks = await self._marks.marks()
            turn = self._round(question, marks)
            lists = await self._ask_all(turn, lambda client: client.list_repositories())
            self._check_whole(turn, lists, {n for n in lists if not marks.pending(n, self._replicas.upstream)})
            return sorted({name for names in lists.values() for name in names})

        return await self._patiently(question, attempt)

    # ------------------------------------------------------------ asking

    def _routed(self, repository: Repository) -> RoutedRepository:
        return RoutedRepository(self._replicas.upstream, repository)

    async def _ask(self, question: _Question, ask: _Ask[_T]) -> _T:
        return await self._patiently(question, lambda: self._attempt(question, ask, self._ask_in_order))

    async def _ask_hedged(self, question: _Question, ask: _Ask[_T]) -> _T:
        """Do as ``_ask``; where an answer takes unusually long, the next replica is asked as well."""
        return await self._patiently(question, lambda: self._attempt(question, ask, self._ask_overlapping))

    async def _attempt(
        self, question: _Question, ask: _Ask[_T], ask_some: Callable[[_Round, _Ask[_T], Marks], Awaitable[_T | None]]
    ) -> _T:
        # A tag means what was last acknowledged by whatever node. A digest means the same for ever.
        marks = await self._marks.marks(of_all_nodes=question.digest is None)
        turn = self._round(question, marks)
        answer = await ask_some(turn, ask, marks)
        if answer is None:
            raise await self._final_verdict(turn)
        return answer

    async def _ask_in_order(self, turn: _Round, ask: _Ask[_T], marks: Marks) -> _T | None:
        for name in order_for_read(turn.standings, turn.question.key):
            if (answer := await self._ask_one(turn, name, ask, marks)) is not None:
                return answer
            if self._is_settled(turn):
                break
        return None

    async def _ask_overlapping(self, turn: _Round, ask: _Ask[_T], marks: Marks) -> _T | None:
        """Ask in order, and the next one already when an answer takes longer than usual; the first answer wins.

        Whoever lost to one that was asked later is asked last for a while, and probed.
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

    async def _ask_timed(self, turn: _Round, name: str, ask: _Ask[_T], marks: Marks) -> _T | None:
        began = time.monotonic()
        answer = await self._ask_one(turn, name, ask, marks)
        if answer is not None or name in turn.absent:
            self._replicas.hedging.answered(name, time.monotonic() - began)
        return answer

    async def _ask_one(self, turn: _Round, name: str, ask: _Ask[_T], marks: Marks) -> _T | None:
        answer = await self._try(turn, name, ask)
        if isinstance(answer, Descriptor) and marks.has_tombstone(name, turn.question.routed, answer.digest):
            # A tag on a manifest that was deleted through us: it went with it.
            turn.absent[name] = self._not_found(turn.question)
            return None
        return answer

    async def _try(self, turn: _Round, name: str, ask: _Ask[_T]) -> _T | None:
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

    def _is_settled(self, turn: _Round) -> bool:
        """Tell whether nobody else has to be asked: over shared storage one 404 is the truth."""
        return bool(turn.absent) and self._replicas.storage is StorageKind.SHARED

    async def _ask_all(self, turn: _Round, ask: _Ask[_T]) -> Mapping[str, _T]:
        """Ask every replica at once; return what those that answered said, at least one."""
        names = order_for_read(turn.standings, turn.question.key)
        answers = await asyncio.gather(*(self._try(turn, name, ask) for name in names))
        heard = {name: answer for name, answer in zip(names, answers, strict=True) if answer is not None}
        if not heard:
            raise self._verdict(turn)
        return heard

    def _check_whole(self, turn: _Round, lists: Iterable[str], current: set[str]) -> None:
        """Raise an error unless a current replica was heard, or all: what is listed must lack nothing."""
        heard = {*lists, *turn.absent}
        if current & heard or len(heard) == len(turn.standings):
            return
        behind = UpstreamUnavailableError("it has not yet got everything")
        raise self._cannot_answer(turn, self._problems(turn) | dict.fromkeys(lists, behind))

    async def _patiently(self, question: _Question, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat an attempt that no replica could answer, as long as there is patience.

        Where it was the key that replicas failed with, tries become rare, also those of other requests.
        """
        deadline = time.monotonic() + self._patience_seconds
        retries, (routed, key) = self._replicas.retries, (question.routed, question.key)
        problem = retries.standing(routed, key, self._replicas.changes)
        may_try = problem is None
        while True:
            changes = self._replicas.changes
            if may_try or problem is None:
                try:
                    answer = await attempt()
                except UpstreamLimitError:
                    raise
                except UpstreamUnavailableError as error:
                    problem = error
                    self._note_failure(question, error, changes)
                else:
                    retries.answered(routed, key)
                    return answer
            remaining = deadline - time.monotonic()
            if isinstance(problem, AbsenceUnknownError):
                # Most likely it is absent. Waiting is for a replica that restarts, not for one long dead.
                remaining = min(remaining, self._patience_seconds - self._seconds_since_change())
            if remaining <= 0:
                raise problem
            await self._replicas.wait_for_change(min(remaining, _RETRY_PAUSE_SECONDS), changes)
            is_standing = retries.standing(routed, key, self._replicas.changes) is not None
            may_try = not is_standing and retries.take(routed, key)

    def _note_failure(self, question: _Question, error: UpstreamUnavailableError, changes: int) -> None:
        """Remember a failure that is one of the key: a replica that is down says nothing about it."""
        if any(self._replicas.doubts.has_failed(name, question.key) for name in self._replicas.health()):
            self._replicas.retries.failed(question.routed, question.key, error, changes)

    def _seconds_since_change(self) -> float:
        return time.monotonic() - max(health.changed_at for health in self._replicas.health().values())

    # ------------------------------------------------------------ judging

    def _round(self, question: _Question, marks: Marks) -> _Round:
        return _Round(question, self._standings(question, marks))

    def _standings(self, question: _Question, marks: Marks) -> list[Standing]:
        return [
            question.standing(name, marks, health, self._replicas.doubts)
            for name, health in self._replicas.health().items()
        ]

    def _note(self, turn: _Round, name: str, error: RegistryError | UpstreamUnavailableError) -> None:
        if isinstance(error, RegistryError) and error.status == 404:
            self._replicas.report_success(name)
            turn.absent[name] = error
        else:
            turn.failures[name] = error
            self._failed(name, turn.question, error)

    def _failed(self, name: str, question: _Question, error: Exception) -> None:
        if isinstance(error, WrongBytesError):
            self._replicas.report_lie(name, question.key)
        elif isinstance(error, UpstreamLimitError):
            self._replicas.doubts.limited(name, question.routed, error)
        elif isinstance(error, ReplicaFailedError) and (error.is_elsewhere or error.outcome in _DOUBTFUL_OUTCOMES):
            self._replicas.doubts.cut(name, question.key)
        self._replicas.report_failure(name, error)

    async def _final_verdict(self, turn: _Round) -> Exception:
        """Return the verdict; "absent" only by marks that know every write that any node acknowledged until now."""
        verdict = self._verdict(turn)
        if isinstance(verdict, AbsenceUnknownError) and await self._is_proven_absent(turn):
            return self._not_found(turn.question)
        if turn.question.digest is None or not (isinstance(verdict, RegistryError) and verdict.status == 404):
            return verdict
        turn.standings = self._standings(turn.question, await self._marks.marks(of_all_nodes=True))
        return self._verdict(turn)

    async def _is_proven_absent(self, turn: _Round) -> bool:
        if self._proves_absent is None or turn.question.tag is None:
            return False
        silent = [
            one.name for one in turn.standings if not one.is_exempt and not (one.name in turn.absent and one.is_current)
        ]
        return await self._proves_absent(turn.question.routed, turn.question.tag, silent)

    def _verdict(self, turn: _Round) -> Exception:
        if is_absent(turn.standings, turn.absent, self._replicas.storage):
            return next(iter(turn.absent.values()), self._not_found(turn.question))
        return self._cannot_answer(turn, self._problems(turn))

    def _cannot_answer(self, turn: _Round, problems: Mapping[str, Exception]) -> Exception:
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
        told = "; ".join(f"{name}: {reason}" for name, reason in sorted(reasons.items()))
        if turn.absent:
            return AbsenceUnknownError(
                f"it cannot be known whether upstream {self._replicas.upstream} holds it: {told}"
            )
        return UpstreamUnavailableError(f"no replica of upstream {self._replicas.upstream} can answer: {told}")

    def _problems(self, turn: _Round) -> dict[str, Exception]:
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
    def _not_found(question: _Question) -> RegistryError:
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
