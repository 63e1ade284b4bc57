"""Hedging: the time and the number of second requests."""

from registry_proxy.upstream.hedging import SAMPLES_MIN, Hedging


def test_the_usual_time_is_learned_from_the_quickest_replica() -> None:
    """An unknown usual time is half a second; then it is the quickest replica's 95th percentile, from 50 ms to 1 s."""
    hedging = Hedging()
    assert hedging.begin() == 0.5
    for _ in range(SAMPLES_MIN - 1):
        hedging.answered("a", 0.2)
    assert hedging.begin() == 0.5
    hedging.answered("a", 0.2)
    assert hedging.begin() == 0.2
    for _ in range(SAMPLES_MIN):
        hedging.answered("b", 0.1)
    assert hedging.begin() == 0.1
    hedging.answered("b", 3.0)
    assert hedging.begin() == 0.1, "one in twenty may take longer"
    for _ in range(SAMPLES_MIN):
        hedging.answered("b", 0.001)
        hedging.answered("a", 7.0)
    for _ in range(200):
        hedging.answered("b", 0.001)
    assert hedging.begin() == 0.05
    for _ in range(200):
        hedging.answered("b", 7.0)
    assert hedging.begin() == 1.0


def test_a_tenth_may_be_asked_twice() -> None:
    """Ten requests are hedged at once, and then one in ten: a slow upstream is not slowed further."""
    hedging = Hedging()
    taken = 0
    for _ in range(1000):
        hedging.begin()
        taken += hedging.take()
    assert 100 <= taken <= 111
