"""Bytes past the cache: the number of requests to a sender that breaks off."""

import pytest

from registry_proxy.operations.passthrough import PassThrough
from registry_proxy.ports.errors import FillFailedError
from registry_proxy.protocol.byterange import ByteRange
from tests.support.fakes.cache import MIB, Answer, Source, content
from tests.support.fakes.upstream import read_all


@pytest.mark.parametrize("byte_range", [None, ByteRange(10, MIB - 1)], ids=["whole", "part"])
async def test_a_byte_for_each_connection_is_no_progress(byte_range: ByteRange | None) -> None:
    """A sender that breaks off after each byte is given up after a few requests, not asked once for each byte."""
    body, digest = content(MIB)
    source = Source(Answer(body, cut_after=1))
    stream = PassThrough(source, digest, MIB, byte_range)
    await stream.open()
    with pytest.raises(FillFailedError):
        await read_all(stream)
    await stream.aclose()
    assert len(source.offsets) <= 10
    assert source.open == 0


async def test_a_sender_that_is_cut_now_and_then_is_asked_to_continue() -> None:
    """A sender that breaks off is asked again as often as each stream brings much."""
    body, digest = content(2 * MIB)
    source = Source(Answer(body, cut_after=100_000))
    stream = PassThrough(source, digest, len(body), None)
    await stream.open()
    assert await read_all(stream) == body
    await stream.aclose()
