"""Link headers: the address of the next page of a list."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.protocol.challenge import parse_challenges
from registry_proxy.protocol.link import parse_next


@pytest.mark.parametrize(
    ("headers", "target"),
    [
        ([], None),
        (['</v2/a/tags/list?n=1&last=x>; rel="next"'], "/v2/a/tags/list?n=1&last=x"),
        (["</a>; rel=next"], "/a"),
        (["</a>;REL=Next"], "/a"),
        (['</a>; rel="prev next"'], "/a"),
        (['</a>; title="a, \\"b\\"; <c>"; rel="next"'], "/a"),
        (['</a>; rel="prev", </b,c>; rel="next"'], "/b,c"),
        (['</a>; rel="prev"', '</b>; rel="next"'], "/b"),
        (["</a>; hreflang; rel=next"], "/a"),
        (['</a>; rel="prev"', "nonsense", '</b> ; rel = "next" '], "/b"),
        (['</a>; rel="nextone"'], None),
        (['</a>; title="rel=next"'], None),
        (["</a>", "<", "</a", '<a>; rel="next'], None),
    ],
)
def test_the_next_page_is_found(headers: list[str], target: str | None) -> None:
    """The first link whose relations include ``next`` counts; an unreadable one counts as none."""
    assert parse_next(headers) == target


@given(st.text(alphabet='<>;,="\\ \trelnextab/', max_size=200))
def test_any_text_is_read(text: str) -> None:
    """No text raises; a target never holds the character that ends one."""
    target = parse_next([text])
    assert target is None or not {"<", ">"} & set(target)


@pytest.fixture
def in_a_minute() -> Iterator[None]:
    """End a test that runs too long."""

    def give_up(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


PIECES = [
    "<",
    "<a>",
    "<a>;",
    "<a>;b=",
    '<a>;b="',
    '<a>;"',
    '"',
    "\\",
    '\\"',
    ";",
    ";a",
    ", ",
    " ",
    "rel=",
    "a=b,",
    "a ",
    "a",
]


@pytest.mark.usefixtures("in_a_minute")
@pytest.mark.parametrize("piece", PIECES)
def test_the_time_is_in_proportion_to_the_length(piece: str) -> None:
    """64 KiB of difficult text are read; at the square of the length it would take minutes."""
    for head in ("", "<a>", '<a>;b="', "<a>; ", "Bearer ", 'Bearer a="'):
        text = head + piece * (2**16 // len(piece))
        assert parse_next([text]) in {None, "a"}
        parse_challenges([text])
