"""open_store: URLs and their stores."""

from pathlib import Path

import pytest

from registry_proxy.store.open import open_store
from registry_proxy.store.sqlite import SqliteStore


async def test_three_slashes_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``sqlite:///a/b`` lies under the working directory, ``sqlite:////a/b`` does not."""
    monkeypatch.chdir(tmp_path)
    async with open_store("sqlite:///var/store.db", "var/page") as (store, _):
        assert isinstance(store, SqliteStore)
    assert (tmp_path / "var" / "store.db").is_file()
    async with open_store(f"sqlite:///{tmp_path}/other.db", "var/page"):
        pass
    assert (tmp_path / "other.db").is_file()


@pytest.mark.parametrize("url", ["", "sqlite:", "sqlite:///", "sqlite://x", "postgres://x", "rediss+other://a/b"])
async def test_other_urls_are_refused(url: str, tmp_path: Path) -> None:
    """A URL of an unknown store is refused in words, and leaves nothing open."""
    with pytest.raises(ValueError, match="a store is"):
        async with open_store(url, str(tmp_path / "page")):
            pass
