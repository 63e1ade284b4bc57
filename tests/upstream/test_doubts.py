"""The time for which cuts and lies count against a replica."""

from registry_proxy.upstream.doubts import DOUBT_SECONDS, LIE_SECONDS, Doubts


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_cut_counts_for_its_content_and_a_lie_for_all() -> None:
    """A cut counts for its content for a minute; a lie counts for it for ten, and for all contents for a minute."""
    clock = _Clock()
    doubts = Doubts(clock)
    doubts.cut("a", "one")
    doubts.lied("b", "one")
    assert [doubts.is_doubted(name, key) for name in "ab" for key in ("one", "two")] == [True, False, True, True]
    assert [doubts.has_lied(name, key) for name in "ab" for key in ("one", "two")] == [False, False, True, False]
    clock.now += DOUBT_SECONDS
    assert not any(doubts.is_doubted(name, "one") for name in "ab")
    assert doubts.has_lied("b", "one")
    clock.now += LIE_SECONDS - DOUBT_SECONDS
    assert not doubts.has_lied("b", "one")


def test_memory_of_doubts_is_bounded() -> None:
    """Of many doubts the newest count."""
    doubts = Doubts(_Clock())
    for i in range(5000):
        doubts.lied("a", str(i))
    assert doubts.has_lied("a", "4999")
    assert not doubts.has_lied("a", "0")
