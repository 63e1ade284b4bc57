"""Byte ranges: the right bytes answer every request."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from registry_proxy.protocol.byterange import (
    ByteRange,
    format_content_range,
    parse_chunk_range,
    parse_content_range,
    parse_range,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError

SIZES = st.integers(0, 2**63)
NEAR_RANGES = st.text(alphabet="bytes=-0129, */BYTES\n٣", max_size=30)


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("bytes=0-0", 10, ByteRange(0, 0)),
        ("bytes=0-9", 10, ByteRange(0, 9)),
        ("bytes=2-5", 10, ByteRange(2, 5)),
        ("bytes=5-", 10, ByteRange(5, 9)),
        ("bytes=5-999", 10, ByteRange(5, 9)),
        ("bytes=-3", 10, ByteRange(7, 9)),
        ("bytes=-999", 10, ByteRange(0, 9)),
        ("Bytes=1-2", 10, ByteRange(1, 2)),  # RFC 9110 14.1: names of units are case-insensitive
        ("bytes= 1-2 ", 10, ByteRange(1, 2)),
        (None, 10, None),
        ("", 10, None),
        ("bytes=-", 10, None),
        ("bytes=", 10, None),
        ("bytes=0-1,3-4", 10, None),
        ("bytes=0-1, 3-4", 10, None),
        ("items=0-1", 10, None),
        ("bytes=a-b", 10, None),
        ("bytes=0x1-2", 10, None),
        ("bytes=1-2\n", 10, None),
        ("bytes=٣-٤", 10, None),
        ("bytes=--1", 10, None),
        ("bytes=+1-2", 10, None),
        ("bytes=" + "9" * 5000 + "-", 10, None),
        ("bytes=-5", 0, None),  # satisfiable, but no Content-Range can express it
    ],
)
def test_ranges(header: str | None, size: int, expected: ByteRange | None) -> None:
    """First, open and suffix ranges are cut to the content; all other texts mean the whole."""
    assert parse_range(header, size) == expected


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("bytes=10-", 10),
        ("bytes=10-20", 10),
        ("bytes=-0", 10),
        ("bytes=0-", 0),
        ("bytes=-0", 0),
        ("bytes=5-2", 10),
        ("bytes=12-11", 10),
    ],
)
def test_unsatisfiable_ranges(header: str, size: int) -> None:
    """A range beyond the end, or that ends before it begins, is a 416 with the size."""
    with pytest.raises(RegistryError) as caught:
        parse_range(header, size)
    assert caught.value.status == 416
    assert caught.value.code is ErrorCode.RANGE_INVALID
    assert caught.value.headers["Content-Range"] == f"bytes */{size}"


@given(st.one_of(st.text(), NEAR_RANGES), SIZES)
def test_any_header_gives_a_range_within_the_content(header: str, size: int) -> None:
    """Any header gives the whole, a range inside the content, or a 416."""
    try:
        found = parse_range(header, size)
    except RegistryError as error:
        assert error.status == 416  # noqa: PT017 - both outcomes are right, each for its headers
    else:
        assert found is None or 0 <= found.first <= found.last < size


@given(st.data(), st.integers(1, 200))
@example(None, 1)
def test_a_range_selects_the_bytes_python_selects(data: st.DataObject | None, size: int) -> None:
    """A range selects the same bytes as Python's own slicing."""
    content = bytes(i % 251 for i in range(size))
    first = 0 if data is None else data.draw(st.integers(0, size - 1))
    last = 0 if data is None else data.draw(st.integers(first, size * 2))
    suffix = 1 if data is None else data.draw(st.integers(1, size * 2))
    for header, expected in (
        (f"bytes={first}-{last}", content[first : last + 1]),
        (f"bytes={first}-", content[first:]),
        (f"bytes=-{suffix}", content[-suffix:]),
    ):
        found = parse_range(header, size)
        assert found is not None
        assert content[found.first : found.last + 1] == expected
        assert found.size_bytes == len(expected)


@given(SIZES, SIZES, SIZES)
def test_content_range_round_trips(first: int, length: int, rest: int) -> None:
    """The Content-Range of a 206 is read back unchanged, whatever the numbers."""
    last = first + length % 2**62
    size = last + 1 + rest % 2**62
    written = format_content_range(ByteRange(first, last), size)
    expected = (ByteRange(first, last), size) if len(str(size)) <= 19 else None
    assert parse_content_range(written) == expected


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes */10", "bytes 0-9/*", "bytes 5-4/10", "bytes 0-10/10", "bytes 0-9", "0-9/10", "bytes ٣-٤/9"],
)
def test_content_ranges_that_say_nothing(header: str | None) -> None:
    """A Content-Range without range or total, or one that contradicts itself, is not used."""
    assert parse_content_range(header) is None


@given(st.one_of(st.text(), NEAR_RANGES))
def test_any_content_range(header: str) -> None:
    """Any text is None or consistent."""
    found = parse_content_range(header)
    assert found is None or 0 <= found[0].first <= found[0].last < found[1]


@pytest.mark.parametrize("header", ["0-9", "bytes 0-9", "bytes=0-9", "bytes 0-9/10", "0-9/*"])
def test_chunk_ranges(header: str) -> None:
    """The range of a chunk is read in the spec's form and in HTTP's form."""
    assert parse_chunk_range(header) == ByteRange(0, 9)


@given(st.one_of(st.text(), NEAR_RANGES))
@example("9-0")
@example("")
@example("-5")
@example("5-")
def test_any_chunk_range(header: str) -> None:
    """Any text is a range or BLOB_UPLOAD_INVALID."""
    try:
        found = parse_chunk_range(header)
    except RegistryError as error:
        assert error.code is ErrorCode.BLOB_UPLOAD_INVALID  # noqa: PT017 - both outcomes are right
    else:
        assert 0 <= found.first <= found.last
