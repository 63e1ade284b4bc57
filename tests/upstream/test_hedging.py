"""When a question is asked twice, and how often."""

from registry_proxy.upstream.hedging import SAMPLES_MIN, Hedging


def test_what_is_usual_is_learned_from_the_quickest_replica() -> None:
    """Unknown it is half a second; then what 95 % of the quickest replica's answers take, from 50 ms to 1 s."""
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
    """Ten at once, and then one in ten questions: a slow upstream is not made slower by asking more."""
    hedging = Hedging()
    taken = 0
    for _ in range(1000):
        hedging.begin()
        taken += hedging.take()
    assert 100 <= taken <= 111
