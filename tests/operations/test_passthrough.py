"""Bytes past the cache: how often a sender that breaks off is asked to go on."""

import pytest

from registry_proxy.operations.passthrough import PassThrough
from registry_proxy.ports.errors import FillFailedError
from registry_proxy.protocol.byterange import ByteRange
from tests.support.fakes.cache import MIB, Answer, Source, content
from tests.support.fakes.upstream import read_all


@pytest.mark.parametrize("byte_range", [None, ByteRange(10, MIB - 1)], ids=["whole", "part"])
async def test_a_byte_for_each_connection_is_no_progress(byte_range: ByteRange | None) -> None:
    """A sender that breaks off after a byte, again and again, is given up, and not asked once for each byte."""
    body, digest = content(MIB)
    source = Source(Answer(body, cut_after=1))
    stream = PassThrough(source, digest, MIB, byte_range)
    await stream.open()
    with pytest.raises(FillFailedError):
        await read_all(stream)
    await stream.aclose()
    assert len(source.offsets) <= 10
    assert source.open == 0


async def test_a_sender_that_is_cut_now_and_then_is_gone_on_with() -> None:
    """However often it breaks off, each stream that brings much is followed by another."""
    body, digest = content(2 * MIB)
    source = Source(Answer(body, cut_after=100_000))
    stream = PassThrough(source, digest, len(body), None)
    await stream.open()
    assert await read_all(stream) == body
    await stream.aclose()
