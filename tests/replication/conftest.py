"""Two replicas in memory, and the replication over them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.support.fakes.replicas import Bench, bench


@pytest_asyncio.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Bench]:
    """Give two replicas and the replication over them."""
    async with bench(tmp_path) as made:
        yield made
