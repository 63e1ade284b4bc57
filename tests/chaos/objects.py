"""One object in the storage of a docker-registry, damaged for a while."""

import hashlib
from collections.abc import Callable
from pathlib import Path

_RECENT = 20
_ASIDE = ".kept"


def recent_object(data: Path, pick: float) -> Path | None:
    """Return one of the objects stored last, None where there is none; ``pick`` from 0 to 1 chooses it."""
    objects = sorted(data.glob("docker/registry/v2/blobs/sha256/*/*/data"), key=lambda each: each.stat().st_mtime)
    recent = objects[-_RECENT:]
    return recent[int(pick * len(recent))] if recent else None


def garble(path: Path) -> Callable[[], None]:
    """Make the registry serve wrong bytes for an object; return the function that restores it."""
    right = path.read_bytes()
    path.write_bytes(bytes(byte ^ 0xFF for byte in right))

    def repair() -> None:
        path.write_bytes(right)
        assert hashlib.sha256(right).hexdigest() == path.parent.name

    return repair


def break_off(path: Path) -> Callable[[], None]:
    """Make the registry answer 500 for an object, which it cannot open; return the function that restores it."""
    kept = path.with_name(path.name + _ASIDE)
    path.rename(kept)
    path.symlink_to(path.name)

    def repair() -> None:
        kept.rename(path)

    return repair
