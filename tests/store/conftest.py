"""Fixtures of the tests of stores."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_proxy.store.changes import ChangePage


@pytest.fixture
def page(tmp_path: Path) -> Iterator[ChangePage]:
    """The page of a node."""
    page = ChangePage(str(tmp_path / "page"))
    yield page
    page.close()
