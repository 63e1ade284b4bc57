"""All operations of clients, their times and answers, checked against a registry that loses nothing.

Each operation lies between two moments. An acknowledged one happened between them; a failed one may have happened, in
between or not at all; one that was cut off may also still happen for a while. A tag is a register: a push writes it, a
delete of a digest empties it where it is that digest, and a reader must see one of the values that are possible then.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

LINGERING_SECONDS = 45.0
"""Time for which a write whose client was cut off may still run: it may wait 30 s for its turn."""

_WRITES_TOLD_SECONDS, _READS_TOLD_SECONDS = 60.0, 5.0
"""Time before a violation within which operations are part of its story."""


class Kind(StrEnum):
    """The kind of an operation."""

    PUSH = "push"
    DELETE = "delete"
    READ = "read a tag"
    PULL = "pull a digest"
    LIST = "list tags"
    CATALOG = "catalog"
    ATTACH = "attach"
    REFERRERS = "list referrers"


_PUTS = frozenset({Kind.PUSH, Kind.ATTACH})


class Outcome(StrEnum):
    """The answer that the client received."""

    DONE = "done"
    ABSENT = "absent"
    REFUSED = "refused"
    BROKEN = "broken"
    UNFINISHED = "unfinished"


@dataclass
class Operation:
    """One operation on a tag or a digest; times in seconds from the beginning.

    ``digest`` was written, deleted or found; ``names`` is the content of a list; ``says`` has details of a failure.
    ``subject`` is the manifest that a referrer or a list of referrers belongs to.
    """

    kind: Kind
    client: str
    repository: str
    started_at: float
    tag: str = ""
    digest: str = ""
    ended_at: float = math.inf
    outcome: Outcome = Outcome.UNFINISHED
    says: str = ""
    names: frozenset[str] = frozenset()
    subject: str = ""

    @property
    def is_over_at(self) -> float:
        """The moment after which it can have no effect any more."""
        return self.ended_at + (LINGERING_SECONDS if self.outcome is Outcome.BROKEN else 0)

    def __str__(self) -> str:
        what = f"{self.repository}:{self.tag}" if self.tag else self.repository
        digest = f" {short(self.digest)}" if self.digest else ""
        digest += f" of {short(self.subject)}" if self.subject else ""
        end = "" if math.isinf(self.ended_at) else f"{self.ended_at:.2f}"
        says = f" ({self.says})" if self.says else ""
        return f"{self.started_at:7.2f} - {end:7} {self.client:8} {self.kind} {what}{digest}: {self.outcome}{says}"


def short(digest: str) -> str:
    """Return the part of a digest by which a person tells digests apart."""
    return digest.removeprefix("sha256:")[:10]


@dataclass(frozen=True)
class Window:
    """A fault, and its length until everything had healed.

    ``stops_writes``: pushes may fail meanwhile, as Redis or the quorum was away. ``stops_reads``: no node could
    answer, as all replicas were away, or no user was known. ``repeats``: a request may be sent twice, as nginx
    repeats it at the other node when one dies over it.
    """

    name: str
    started_at: float
    ended_at: float
    stops_writes: bool = False
    stops_reads: bool = False
    repeats: bool = False

    def __str__(self) -> str:
        return f"{self.started_at:7.2f} - {self.ended_at:7.2f} === {self.name}"

    def meets(self, one: Operation) -> bool:
        """Tell whether an operation was under way meanwhile."""
        return self.started_at <= one.ended_at and one.started_at <= self.ended_at


@dataclass(frozen=True)
class Violation:
    """A broken promise: ``about`` is the operation that shows it."""

    rule: str
    about: Operation


@dataclass
class History:
    """All operations and faults of a run.

    Args:
        may_be_unavailable: reads may fail with a clean error: faults were not healed before the next.
        forgetting_seconds: time after a delete for which another node may still serve a manifest by its digest.
    """

    may_be_unavailable: bool = False
    forgetting_seconds: float = 0.0
    operations: list[Operation] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)

    # ------------------------------------------------------------ possible states

    def writes(self, repository: str, tag: str) -> list[Operation]:
        """Return the pushes of a tag."""
        return [one for one in self._of({Kind.PUSH}, repository) if one.tag == tag]

    def deletes(self, repository: str, digest: str) -> list[Operation]:
        """Return the deletes of a digest."""
        return [one for one in self._of({Kind.DELETE}, repository) if one.digest == digest]

    def _of(self, kinds: Collection[Kind], repository: str) -> Iterator[Operation]:
        return (one for one in self.operations if one.kind in kinds and one.repository == repository)

    def may_be(self, repository: str, tag: str, digest: str, read: Operation) -> bool:
        """Tell whether a reader could see the tag as ``digest``."""
        writes = self.writes(repository, tag)
        return any(
            write.started_at <= read.ended_at and not self._overwritten(write, writes, read)
            for write in writes
            if write.digest == digest
        )

    def _overwritten(self, write: Operation, writes: Sequence[Operation], read: Operation) -> bool:
        others = [*(one for one in writes if one is not write), *self.deletes(write.repository, write.digest)]
        return any(
            one.outcome is Outcome.DONE and one.started_at > write.is_over_at and one.ended_at < read.started_at
            for one in others
        )

    def may_be_absent(self, repository: str, tag: str, read: Operation) -> bool:
        """Tell whether a reader could find the tag absent."""
        writes = self.writes(repository, tag)
        acknowledged = [one for one in writes if one.outcome is Outcome.DONE and one.ended_at < read.started_at]
        if not acknowledged:
            return True
        return any(
            delete.started_at <= read.ended_at and not any(one.started_at > delete.is_over_at for one in acknowledged)
            for write in writes
            for delete in self.deletes(repository, write.digest)
            if self._was_it_at(write, writes, delete)
        )

    @staticmethod
    def _was_it_at(write: Operation, writes: Sequence[Operation], delete: Operation) -> bool:
        """Tell whether the tag may still have had the value of ``write`` when that was deleted."""
        return write.started_at <= delete.is_over_at and not any(
            one.outcome is Outcome.DONE
            and one.digest != write.digest
            and one.started_at > write.is_over_at
            and one.ended_at < delete.started_at
            for one in writes
        )

    def must_hold(self, repository: str, digest: str, at: Operation) -> bool:
        """Tell whether a digest was acknowledged before, without any later attempt to delete it."""
        pushes = [
            one
            for one in self._of(_PUTS, repository)
            if one.digest == digest and one.outcome is Outcome.DONE and one.ended_at < at.started_at
        ]
        deletes = [one for one in self.deletes(repository, digest) if one.started_at <= at.ended_at]
        return any(all(push.started_at > delete.is_over_at for delete in deletes) for push in pushes)

    def may_hold(self, repository: str, digest: str, at: Operation) -> bool:
        """Tell whether a digest may exist: after an attempt to push it came no acknowledged delete."""
        deletes = [
            one
            for one in self.deletes(repository, digest)
            if one.outcome is Outcome.DONE and one.ended_at < at.started_at - self.forgetting_seconds
        ]
        return any(
            push.started_at <= at.ended_at and not any(one.started_at > push.is_over_at for one in deletes)
            for push in self._of(_PUTS, repository)
            if push.digest == digest
        )

    # ------------------------------------------------------------ judging

    def violations(self) -> list[Violation]:
        """Return every broken promise, in the order in which clients saw it."""
        found = [Violation(rule, one) for one in self.operations for rule in self._broken_rules(one)]
        return sorted(found, key=lambda violation: violation.about.ended_at)

    def _broken_rules(self, one: Operation) -> Iterator[str]:
        if one.outcome is Outcome.UNFINISHED:
            yield "it never ended"
        elif one.outcome is Outcome.BROKEN and "wrong bytes" in one.says:
            yield "wrong bytes"
        elif one.kind is Kind.READ:
            yield from self._judge_read(one)
        elif one.kind is Kind.PULL:
            yield from self._judge_pull(one)
        elif one.kind is Kind.LIST and one.outcome is Outcome.DONE:
            yield from self._judge_list(one)
        elif one.kind is Kind.CATALOG and one.outcome is Outcome.DONE:
            yield from self._judge_catalog(one)
        elif one.kind is Kind.REFERRERS and one.outcome is Outcome.DONE:
            yield from self.judge_referrers(one)
        elif one.kind is Kind.DELETE and one.outcome is Outcome.ABSENT:
            deletes = self.deletes(one.repository, one.digest)
            is_first = all(other is one or other.started_at > one.ended_at for other in deletes)
            is_repeated = any(window.repeats and window.meets(one) for window in self.windows)
            if is_first and not is_repeated and self._was_pushed(one):
                yield "a manifest that was acknowledged is said not to exist"

    def _was_pushed(self, delete: Operation) -> bool:
        return any(
            push.digest == delete.digest and push.outcome is Outcome.DONE and push.ended_at < delete.started_at
            for push in self._of(_PUTS, delete.repository)
        )

    def _judge_read(self, read: Operation) -> Iterator[str]:
        where = read.repository, read.tag
        if read.outcome is Outcome.DONE:
            if not self.may_be(*where, read.digest, read):
                yield "an older, deleted or unknown tag was served"
        elif self.may_be_absent(*where, read):
            return
        elif read.outcome is Outcome.ABSENT:
            yield "a tag that was acknowledged is said not to exist"
        elif not self._may_fail(read):
            yield "a pull of an acknowledged tag failed"

    def _judge_pull(self, pull: Operation) -> Iterator[str]:
        if pull.outcome is Outcome.DONE:
            if not self.may_hold(pull.repository, pull.digest, pull):
                yield "a deleted manifest was served"
        elif not self.must_hold(pull.repository, pull.digest, pull):
            return
        elif pull.outcome is Outcome.ABSENT:
            yield "an image that was acknowledged is said not to exist"
        elif not self._may_fail(pull):
            yield "a pull of an acknowledged image failed"

    def _may_fail(self, read: Operation) -> bool:
        """Tell whether a read may have ended with a clean error."""
        return self.may_be_unavailable or any(window.stops_reads and window.meets(read) for window in self.windows)

    def tags(self, repository: str) -> set[str]:
        return {one.tag for one in self._of({Kind.PUSH}, repository)}

    def _judge_list(self, listed: Operation) -> Iterator[str]:
        for tag in sorted(self.tags(listed.repository)):
            is_there = tag in listed.names
            possible = {one.digest for one in self.writes(listed.repository, tag)}
            if is_there and not any(self.may_be(listed.repository, tag, digest, listed) for digest in possible):
                yield f"the deleted tag {tag} is listed"
            if not is_there and not self.may_be_absent(listed.repository, tag, listed):
                yield f"the tag {tag} is not listed"

    def _judge_catalog(self, listed: Operation) -> Iterator[str]:
        for repository in sorted({one.repository for one in self.operations if one.kind is Kind.PUSH}):
            if repository not in listed.names and any(
                not self.may_be_absent(repository, tag, listed) for tag in self.tags(repository)
            ):
                yield f"the repository {repository} is not in the catalog"

    def judge_referrers(self, listed: Operation) -> Iterator[str]:
        """Yield the violations of a list of referrers: missing entries, and deleted ones that are still in it."""
        attached = {one.digest for one in self._of({Kind.ATTACH}, listed.repository) if one.subject == listed.subject}
        for digest in sorted(attached | listed.names):
            is_there = digest in listed.names
            if is_there and not self.may_hold(listed.repository, digest, listed):
                yield f"the referrer {short(digest)}, which was deleted or never was, is listed"
            if not is_there and self.must_hold(listed.repository, digest, listed):
                yield f"the referrer {short(digest)} is not listed"

    # ------------------------------------------------------------ telling

    def in_write_window(self, one: Operation) -> bool:
        """Tell whether an operation ran while writes were impossible."""
        return any(window.stops_writes and window.meets(one) for window in self.windows)

    def timeline(self, violation: Violation) -> str:
        """Return the operations on the same key, and the faults, that came before a violation, in order."""
        about = violation.about
        digests = {about.digest} - {""}
        if about.tag:
            digests |= {one.digest for one in self.writes(about.repository, about.tag)}
        if about.subject:
            attached = self._of({Kind.ATTACH}, about.repository)
            digests |= {one.digest for one in attached if one.subject == about.subject}
        related: Iterable[Operation | Window] = [
            *(
                one
                for one in self.operations
                if one.repository == about.repository
                and (one is about or (about.tag and one.tag == about.tag) or one.digest in digests)
                and one.started_at <= about.ended_at
                and one.ended_at
                > about.started_at
                - (_WRITES_TOLD_SECONDS if one.kind in {*_PUTS, Kind.DELETE} else _READS_TOLD_SECONDS)
            ),
            *(
                window
                for window in self.windows
                if window.ended_at > about.started_at - _WRITES_TOLD_SECONDS and window.started_at <= about.ended_at
            ),
        ]
        lines = [str(one) for one in sorted(related, key=lambda one: one.started_at)]
        return "\n".join([f"*** {violation.rule}", f"    {about}", "  before it:", *(f"    {line}" for line in lines)])

    def summary(self) -> str:
        """Return a table of the operations and their outcomes."""
        kinds = [kind for kind in Kind if any(one.kind is kind for one in self.operations)]
        rows = ["| operation | done | absent | refused | broken | worst s |", "|---|---|---|---|---|---|"]
        for kind in kinds:
            of_kind = [one for one in self.operations if one.kind is kind]
            counts = [sum(one.outcome is outcome for one in of_kind) for outcome in list(Outcome)[:4]]
            worst = max(one.ended_at - one.started_at for one in of_kind)
            rows.append(f"| {kind} | {' | '.join(str(count) for count in counts)} | {worst:.1f} |")
        return "\n".join(rows)
