"""A public listener for the tests of this directory."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fakes.public import PublicBench


@pytest.fixture
async def public(tmp_path: Path) -> AsyncIterator[PublicBench]:
    """Serve the public listener; it must leave no reader open."""
    async with PublicBench(tmp_path).serving() as bench:
        yield bench
        assert bench.cache.open_readers == 0
