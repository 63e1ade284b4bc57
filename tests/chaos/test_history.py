"""The judge of the chaos test finds each kind of broken promise, and none where there is none."""

import pytest

from tests.chaos.history import History, Kind, Operation, Outcome, Window

A, B, C = ("sha256:" + letter * 64 for letter in "abc")
REPOSITORY = "team/app"

DONE, ABSENT, REFUSED, BROKEN = Outcome.DONE, Outcome.ABSENT, Outcome.REFUSED, Outcome.BROKEN


def push(begin: float, end: float, digest: str, outcome: Outcome = DONE) -> Operation:
    """Return a push of the tag."""
    return Operation(Kind.PUSH, "p", REPOSITORY, begin, "1", digest, end, outcome)


def delete(begin: float, end: float, digest: str, outcome: Outcome = DONE) -> Operation:
    """Return a delete."""
    return Operation(Kind.DELETE, "d", REPOSITORY, begin, "", digest, end, outcome)


def read(begin: float, end: float, digest: str = "", outcome: Outcome = DONE) -> Operation:
    """Return a read of the tag."""
    return Operation(Kind.READ, "r", REPOSITORY, begin, "1", digest, end, outcome)


def pull(begin: float, end: float, digest: str, outcome: Outcome = DONE, says: str = "") -> Operation:
    """Return a pull by digest."""
    return Operation(Kind.PULL, "r", REPOSITORY, begin, "", digest, end, outcome, says)


def listed(begin: float, end: float, *tags: str) -> Operation:
    """Return a list of the tags."""
    return Operation(Kind.LIST, "r", REPOSITORY, begin, ended_at=end, outcome=DONE, names=frozenset(tags))


def catalog(begin: float, end: float, *repositories: str) -> Operation:
    """Return a list of the repositories."""
    return Operation(Kind.CATALOG, "r", "", begin, ended_at=end, outcome=DONE, names=frozenset(repositories))


def attach(begin: float, end: float, digest: str, outcome: Outcome = DONE) -> Operation:
    """Return a push of a manifest that refers to the image C."""
    return Operation(Kind.ATTACH, "p", REPOSITORY, begin, "", digest, end, outcome, subject=C)


def referrers(begin: float, end: float, *digests: str) -> Operation:
    """Return a list of the referrers of the image C."""
    names = frozenset(digests)
    return Operation(Kind.REFERRERS, "r", REPOSITORY, begin, ended_at=end, outcome=DONE, names=names, subject=C)


def rules(*operations: Operation, may_be_unavailable: bool = False) -> list[str]:
    """Return the rules that were broken."""
    history = History(operations=list(operations), may_be_unavailable=may_be_unavailable)
    return [violation.rule for violation in history.violations()]


OLDER = "an older, deleted or unknown tag was served"


@pytest.mark.parametrize(
    "operations",
    [
        [read(0, 1, outcome=ABSENT)],
        [push(0, 1, A), read(2, 3, A), push(4, 5, B), read(6, 7, B)],
        [push(0, 1, A), push(2, 5, B), read(3, 4, A), read(3, 4, B)],  # either, while it is under way
        [push(0, 1, A), push(2, 3, B, REFUSED), read(4, 5, A), read(4, 5, B)],  # both are possible, without an end
        [push(0, 3, A), push(1, 2, B), read(4, 5, A), read(4, 5, B)],  # the order of the two is unknown
        [push(0, 1, A), push(2, 3, B, BROKEN), push(4, 5, C), read(6, 7, B)],  # it may still be waiting
        [push(0, 1, A), delete(2, 3, A), read(4, 5, outcome=ABSENT), pull(4, 5, A, ABSENT)],
        [push(0, 1, A), delete(2, 3, A, REFUSED), read(4, 5, A), read(4, 5, outcome=ABSENT)],
        [push(0, 1, A), delete(2, 3, A), push(4, 5, A), read(6, 7, A), pull(6, 7, A)],
        [push(0, 1, A), push(2, 3, B), delete(4, 5, A), read(6, 7, B), pull(6, 7, A, ABSENT)],
        [push(0, 1, A), pull(2, 3, A), listed(2, 3, "1"), catalog(2, 3, REPOSITORY)],
        [push(0, 1, A, REFUSED), read(2, 3, outcome=REFUSED), pull(2, 3, A, REFUSED)],
        [push(0, 1, A), delete(2, 3, A), delete(4, 5, A, ABSENT), listed(4, 5), listed(2, 3, "1")],
        [attach(0, 1, A), referrers(2, 3, A), attach(4, 7, B), referrers(5, 6, A), referrers(5, 6, A, B)],
        [attach(0, 1, A), delete(2, 3, A), referrers(4, 5), pull(4, 5, A, ABSENT)],
        [attach(0, 1, A, REFUSED), referrers(2, 3), referrers(2, 3, A)],
        [push(0, 1, C), attach(2, 3, A), delete(4, 5, C), referrers(6, 7, A)],  # a deleted subject
    ],
)
def test_answers_that_a_registry_may_give(operations: list[Operation]) -> None:
    """No violation is found where each answer is possible."""
    assert rules(*operations) == []


@pytest.mark.parametrize(
    ("operations", "rule"),
    [
        ([push(0, 1, A), push(2, 3, B), read(4, 5, A)], OLDER),
        ([push(0, 1, A), push(2, 3, B, REFUSED), push(4, 5, C), read(6, 7, B)], OLDER),
        ([push(0, 1, A), delete(2, 3, A), read(4, 5, A)], OLDER),
        ([push(0, 1, A), read(2, 3, B)], OLDER),
        ([push(0, 1, A), read(2, 3, outcome=ABSENT)], "a tag that was acknowledged is said not to exist"),
        (
            [push(0, 1, A), push(2, 3, B), delete(4, 5, A), read(6, 7, outcome=ABSENT)],
            "a tag that was acknowledged is said not to exist",
        ),
        ([push(0, 1, A), read(2, 3, outcome=REFUSED)], "a pull of an acknowledged tag failed"),
        ([push(0, 1, A), read(2, 3, outcome=BROKEN)], "a pull of an acknowledged tag failed"),
        ([push(0, 1, A), push(2, 3, B), pull(4, 5, A, ABSENT)], "an image that was acknowledged is said not to exist"),
        ([push(0, 1, A), pull(2, 3, A, REFUSED)], "a pull of an acknowledged image failed"),
        ([push(0, 1, A), pull(2, 3, A, BROKEN, "GET blob: wrong bytes")], "wrong bytes"),
        ([push(0, 1, A), delete(2, 3, A), pull(4, 5, A)], "a deleted manifest was served"),
        ([push(0, 1, A), delete(2, 3, A, ABSENT)], "a manifest that was acknowledged is said not to exist"),
        ([push(0, 1, A), listed(2, 3)], "the tag 1 is not listed"),
        ([push(0, 1, A), delete(2, 3, A), listed(4, 5, "1")], "the deleted tag 1 is listed"),
        ([push(0, 1, A), catalog(2, 3)], "the repository team/app is not in the catalog"),
        ([attach(0, 1, A), referrers(2, 3)], "the referrer aaaaaaaaaa is not listed"),
        ([attach(0, 1, A), attach(2, 3, B), referrers(4, 5, A)], "the referrer bbbbbbbbbb is not listed"),
        (
            [attach(0, 1, A), delete(2, 3, A), referrers(4, 5, A)],
            "the referrer aaaaaaaaaa, which was deleted or never was, is listed",
        ),
        ([referrers(0, 1, A)], "the referrer aaaaaaaaaa, which was deleted or never was, is listed"),
        ([attach(0, 1, A), pull(2, 3, A, ABSENT)], "an image that was acknowledged is said not to exist"),
        ([Operation(Kind.PUSH, "p", REPOSITORY, 0, "1", A)], "it never ended"),
    ],
)
def test_answers_that_a_registry_may_not_give(operations: list[Operation], rule: str) -> None:
    """Each broken promise is found, and reported once."""
    assert rules(*operations) == [rule]


def test_without_healing_an_error_is_an_answer() -> None:
    """With overlapping faults a read may fail; it may not answer "absent" or an older value."""
    done = [push(0, 1, A), read(2, 3, outcome=REFUSED), pull(2, 3, A, REFUSED)]
    assert rules(*done, may_be_unavailable=True) == []
    lies = [push(0, 1, A), push(2, 3, B), read(4, 5, A), read(4, 5, outcome=ABSENT), pull(4, 5, A, ABSENT)]
    assert len(rules(*lies, may_be_unavailable=True)) == 3


@pytest.mark.parametrize("repeats", [True, False])
def test_a_delete_that_nginx_repeats_may_find_nothing(*, repeats: bool) -> None:
    """The node that did the delete died before its answer; without such a fault the manifest counts as lost."""
    window = Window("SIGKILL node-1 for 1.0 s", 2.5, 3.5, repeats=repeats)
    history = History(operations=[push(0, 1, A), delete(2, 3, A, ABSENT)], windows=[window])
    assert bool(history.violations()) is not repeats


def test_the_story_of_a_violation() -> None:
    """The timeline names the operations on the same tag, and the faults, in order, and nothing else."""
    other = Operation(Kind.PUSH, "p", "team/other", 0.5, "1", C, 0.6, DONE)
    operations = [push(0, 1, A), other, push(2, 3, B), read(4, 5, A)]
    history = History(operations=operations, windows=[Window("SIGKILL replica-1 for 1.0 s", 1.5, 3.5)])
    (violation,) = history.violations()
    lines = history.timeline(violation).splitlines()
    assert lines[0] == f"*** {OLDER}"
    story = lines[3:]
    assert ["aaaaaaaaaa" in story[0], "===" in story[1], "bbbbbbbbbb" in story[2], "read" in story[3]] == [True] * 4
    assert len(story) == 4
