"""A registry that is killed in the middle of a download: the client gets the right bytes, without an error."""

import random
from pathlib import Path

import pytest

from tests.conftest import require_program
from tests.support.copied import Copies
from tests.support.product import digest_of
from tests.support.relayed import relayed

MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _programs() -> None:
    require_program("docker-registry")


@pytest.mark.parametrize(("kills", "mebibytes"), [(3, 16), pytest.param(20, 64, marks=pytest.mark.soak)])
def test_a_registry_killed_at_any_byte_is_not_noticed(
    tmp_path: Path, copies: Copies, kills: int, mebibytes: int
) -> None:
    """After kill -9 of the serving registry at random offsets of a large blob the whole right body arrives."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    offsets = [1, *(chance.randrange(mebibytes * MIB) for _ in range(kills - 1))]
    with relayed(tmp_path, copies=copies) as pair:
        for offset in offsets:
            blob = pair.add_blob(mebibytes * MIB)
            assert pair.kill_while_serving(digest_of(blob), offset).body == blob, f"killed at {offset}"


@pytest.mark.parametrize("first", [0, 10 * MIB], ids=["whole", "far range"])
def test_a_killed_registry_is_not_noticed_where_the_cache_takes_nothing(
    tmp_path: Path, copies: Copies, first: int
) -> None:
    """A stream past the cache, of too large a blob or a part far ahead, continues at the other registry."""
    settings = {"cache": {"max_size": "4MiB"}}
    with relayed(tmp_path, settings, copies) as pair:
        blob = pair.add_blob(16 * MIB)
        for offset in (1, 3 * MIB):
            assert pair.kill_while_serving(digest_of(blob), offset, first).body == blob[first:]
