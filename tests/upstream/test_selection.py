"""The order of replicas, and the vote on a 404: tables."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.ports.replicas import StorageKind
from registry_proxy.upstream.selection import Standing, is_absent, order_for_read

A, B, C = Standing("a"), Standing("b"), Standing("c")
DOWN_B = replace(B, is_askable=False)
BEHIND_B = replace(B, is_current=False)
EXEMPT_B = replace(B, is_exempt=True, is_current=False)
DELETED_B = replace(B, is_deleted=True, is_current=False)
BEHIND_A = replace(A, is_current=False)


def test_replicas_that_cannot_or_must_not_be_asked_are_left_out() -> None:
    """Replicas that are down, exempt (with outdated answers) or deleted are not asked."""
    for one in (DOWN_B, EXEMPT_B, DELETED_B):
        assert order_for_read([A, one], "key") == ["a"]


def test_current_before_behind_and_undoubted_before_doubted() -> None:
    """For any key a replica that lied about it comes last, and one that is behind after the current ones."""
    doubted_a = replace(A, is_doubted=True)
    for key in "abcdefgh":
        assert order_for_read([BEHIND_A, B], key) == ["b", "a"]
        assert order_for_read([doubted_a, BEHIND_B], key) == ["b", "a"]


def test_keys_are_spread_and_stay() -> None:
    """Different contents come from different replicas; the same one from the same, also when another goes away."""
    keys = [f"sha256:{i}" for i in range(3000)]
    first = {key: order_for_read([A, B, C], key)[0] for key in keys}
    assert all(count > 800 for count in Counter(first.values()).values())
    for key in keys:
        without_b = order_for_read([A, DOWN_B, C], key)[0]
        assert first[key] in {"b", without_b}


@pytest.mark.parametrize(
    ("standings", "absent", "expected"),
    [
        ([A, B], {"a", "b"}, True),
        ([A, B], {"a"}, False),  # b failed
        ([A, DOWN_B], {"a"}, False),  # b may hold it
        ([A, BEHIND_B], {"a", "b"}, True),  # b says no, and a has everything that was acknowledged
        ([BEHIND_A, BEHIND_B], {"a", "b"}, False),  # nobody's 404 counts
        ([BEHIND_A, DOWN_B], {"a"}, False),
        ([A, EXEMPT_B], {"a"}, True),  # b has only an outdated state of this key
        ([BEHIND_A, EXEMPT_B], {"a"}, False),
        ([EXEMPT_B], set(), False),
        ([A, DELETED_B], {"a"}, True),
        ([DOWN_B, DELETED_B], set(), False),
        ([DELETED_B], set(), True),
        ([A], {"a"}, True),
        ([A], set(), False),
        ([DOWN_B], set(), False),
    ],
)
def test_when_independent_replicas_prove_absence(standings: list[Standing], absent: set[str], expected: bool) -> None:  # noqa: FBT001 - table
    """404 only when every replica that counts said so, and one of them is current."""
    assert is_absent(standings, absent, StorageKind.INDEPENDENT) is expected


def test_over_shared_storage_one_word_is_enough() -> None:
    """Any replica's 404 counts when all use one store."""
    assert is_absent([A, DOWN_B], {"a"}, StorageKind.SHARED)
    assert not is_absent([A, DOWN_B], set(), StorageKind.SHARED)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=5))
def test_a_silent_replica_that_may_hold_it_is_never_outvoted(flags: list[tuple[bool, bool, bool, bool]]) -> None:
    """With one that neither answered nor is exempt nor deleted there is no 404, whatever the others are."""
    standings = [
        Standing(str(i), is_askable=a, is_current=b, is_exempt=c, is_deleted=d) for i, (a, b, c, d) in enumerate(flags)
    ]
    said_so = set(order_for_read(standings, "key"))
    silent = Standing("silent", is_askable=False)
    assert not is_absent([*standings, silent], said_so, StorageKind.INDEPENDENT)
