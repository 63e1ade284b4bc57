"""Requests that began together have limits that end apart."""

import asyncio
from pathlib import Path

import pytest

from registry_proxy.http.limits import scattered
from tests.support.fakes.public import PublicBench


def test_times_that_begin_together_end_apart() -> None:
    """Each time is as long as configured, or up to half as long again."""
    ends = sorted(scattered(10) for _ in range(1000))
    assert 10 <= ends[0] < 11
    assert 14 < ends[-1] <= 15
    assert len(set(ends)) > 900


@pytest.mark.parametrize(
    ("where", "begin"), [("edge.exchange", b"Content-Length: 60000\r\n\r\ng"), ("http.guarded", b"")]
)
async def test_withheld_requests_end_scattered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, begin: bytes
) -> None:
    """Forms and heads that thousands withhold from the same moment on do not all end in one turn."""
    asked: list[float] = []

    def at_once(seconds: float) -> float:
        asked.append(seconds)
        return 0.05

    monkeypatch.setattr(f"registry_proxy.{where}.scattered", at_once)
    async with PublicBench(tmp_path).serving() as public:
        reader, writer = await asyncio.open_connection("127.0.0.1", public.port)
        writer.write(b"POST /auth/token HTTP/1.1\r\nHost: x\r\n" + begin)
        async with asyncio.timeout(8):
            await reader.read()
        writer.close()
    assert asked in ([10.0], [15.0])
