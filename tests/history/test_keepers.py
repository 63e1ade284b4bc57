"""The content that is kept: of the newest moves, and of those that are not too old."""

import pytest

from registry_proxy.history.keepers import KeepLimits
from registry_proxy.ports.history import Move, MoveKind
from registry_proxy.protocol.reference import KEEPER_PREFIX, digest_of, is_tag, keeper_tag, kept_digest

DIGESTS = {name: str(digest_of(name.encode())) for name in "abcd"}


def moves(*named: tuple[str, float]) -> list[Move]:
    """Return moves to digests at times in seconds, newest first; ``x`` is a delete."""
    return [
        Move(kind=MoveKind.PUSH, digest=DIGESTS.get(name), number=int(at * 1_000_000)) for name, at in reversed(named)
    ]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (KeepLimits(1, 0), "d"),
        (KeepLimits(2, 0), "dc"),
        (KeepLimits(1, 60), "dcb"),
        (KeepLimits(9, 0), "dcba"),
        (KeepLimits(0, 60), ""),
    ],
)
def test_the_newest_and_the_young_are_kept(limits: KeepLimits, expected: str) -> None:
    """The longer one of both bounds counts, a delete is no content, and no moves means nothing."""
    found = limits.wanted(moves(("a", 10), ("b", 50), ("c", 60), ("x", 70), ("d", 80)), 100)
    assert [str(digest) for digest in found] == [DIGESTS[name] for name in expected]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_keeper_is_a_tag_of_our_own(algorithm: str) -> None:
    """Its name is a valid tag, reserved, and not that of a wrapper, which each registry keeps in its own way."""
    tag = keeper_tag(digest_of(b"content", algorithm))
    assert is_tag(tag)
    assert tag.startswith(KEEPER_PREFIX)
    assert kept_digest(tag) is None
