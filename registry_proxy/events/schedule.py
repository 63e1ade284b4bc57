"""The times of the tries of a delivery."""

import random

RETRIES_SOON = 10
_SOON_SECONDS = 10.0
_FIRST_SECONDS = 0.5
_BACK_OFF_SECONDS = 20.0
_LONGEST_SECONDS = 24 * 3600.0
_JITTER = 0.2


def wait_seconds(attempts: int, retry_after_seconds: float | None) -> float:
    """Return how long after its last try a delivery is tried again.

    The first retries follow within ten seconds of each other; the later ones back off, up to a day. A receiver's
    Retry-After is kept, up to a day.

    Args:
        attempts: number of tries so far, from 1.
        retry_after_seconds: the receiver's word; None without one.
    """
    if attempts <= RETRIES_SOON:
        wait = min(_FIRST_SECONDS * 2.0 ** (attempts - 1), _SOON_SECONDS / (1 + _JITTER))
    else:
        wait = min(_BACK_OFF_SECONDS * 2.0 ** min(attempts - RETRIES_SOON - 1, 20), _LONGEST_SECONDS / (1 + _JITTER))
    wait *= 1 + random.uniform(0, _JITTER)  # noqa: S311 - spreads retries, keeps no secret
    return max(wait, min(retry_after_seconds or 0.0, _LONGEST_SECONDS))
