"""The bounds of the record of moves: the oldest go, and no repository pays for another one."""

from collections.abc import Sequence

import pytest

from registry_proxy.history.bounds import HistoryBounds, HistoryLimits, share
from registry_proxy.history.record import TagHistory
from registry_proxy.ports.history import Move, MoveKind, moves_prefix, stored_move
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.store import Store, Table
from registry_proxy.protocol.reference import Repository, Tag
from registry_proxy.store.changes import StoreWatch
from tests.support.fakes.replicas import ROUTED

QUIET = RoutedRepository("main", Repository("team/quiet"))


async def enter(store: Store, routed: RoutedRepository, tag: str, numbers: Sequence[int]) -> None:
    """Enter moves of a tag with the given numbers."""
    prefix = moves_prefix(routed, tag)
    await store.commit([stored_move(prefix, Move(kind=MoveKind.PUSH, digest=f"sha256:{n}"), n) for n in numbers])


async def numbers(store: Store, routed: RoutedRepository, tag: str) -> list[int]:
    """Return the numbers of a tag's moves, newest first."""
    return [move.number for move in await TagHistory(store).moves(routed, Tag(tag))]


async def trim(opened: tuple[Store, StoreWatch], **limits: int) -> None:
    """Trim the record to the given limits."""
    store, changes = opened
    await HistoryBounds(store, changes, HistoryLimits(**limits)).trim()


async def test_a_tag_keeps_its_newest_moves(opened: tuple[Store, StoreWatch]) -> None:
    """Of a tag with too many moves the oldest go; another tag keeps all of its own."""
    store, _ = opened
    await enter(store, ROUTED, "busy", range(1, 8))
    await enter(store, ROUTED, "busy-too", [1, 2])
    await trim(opened, of_tag=3)
    assert await numbers(store, ROUTED, "busy") == [7, 6, 5]
    assert await numbers(store, ROUTED, "busy-too") == [2, 1]


async def test_a_repository_keeps_its_newest_moves(opened: tuple[Store, StoreWatch]) -> None:
    """Of a repository with too many moves the oldest of all its tags go, those of other repositories stay."""
    store, _ = opened
    await enter(store, ROUTED, "v1", [10, 11, 12])
    await enter(store, ROUTED, "v2", [13, 14, 15])
    await enter(store, QUIET, "old", [1, 2, 3])
    await trim(opened, of_repository=4)
    assert await numbers(store, ROUTED, "v1") == [12]
    assert await numbers(store, ROUTED, "v2") == [15, 14, 13]
    assert await numbers(store, QUIET, "old") == [3, 2, 1]


async def test_the_bound_of_all_is_paid_by_the_largest(opened: tuple[Store, StoreWatch]) -> None:
    """A repository with very many pushes loses moves for the sum of all, a quiet one none."""
    store, _ = opened
    await enter(store, ROUTED, "busy", range(100, 120))
    await enter(store, QUIET, "old", [1, 2, 3])
    await trim(opened, in_all=10)
    assert await numbers(store, ROUTED, "busy") == list(range(119, 112, -1))
    assert await numbers(store, QUIET, "old") == [3, 2, 1]
    assert await store.count(Table.MOVES) == 10


async def test_many_repositories_of_one_owner_take_nothing_from_others(opened: tuple[Store, StoreWatch]) -> None:
    """With more repositories than moves may be kept, those of another namespace keep all of theirs."""
    store, _ = opened
    for number in range(30):
        await enter(store, RoutedRepository("main", Repository(f"eve/r{number}")), "v1", [100 + number])
    await enter(store, QUIET, "old", [1, 2, 3])
    await trim(opened, in_all=20)
    assert await numbers(store, QUIET, "old") == [3, 2, 1]
    assert await store.count(Table.MOVES) <= 20


@pytest.mark.parametrize(
    ("counts", "total", "expected"),
    [([], 10, 0), ([3, 4], 10, 4), ([20, 3], 10, 7), ([20, 20], 10, 5), ([1, 20, 20], 10, 4)],
)
def test_a_share_lets_small_ones_be(counts: list[int], total: int, expected: int) -> None:
    """Repositories below the share keep all moves, and all others keep equally many."""
    assert share(counts, total) == expected
