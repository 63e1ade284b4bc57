"""A store for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.events.support import Bench, open_bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """An empty store."""
    async with open_bench(tmp_path) as opened:
        yield opened
