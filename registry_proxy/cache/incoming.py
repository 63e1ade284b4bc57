"""Fills in progress, read from their files: a worker that was killed leaves nothing behind in a counter."""

import contextlib
import os
from dataclasses import dataclass

from registry_proxy.cache.layout import CachePaths
from registry_proxy.files.lock import lock_tried


@dataclass(frozen=True, slots=True)
class Incoming:
    """Bytes that what comes in holds and may write next; ``unwritten_bytes`` of them are promised, not on disk yet."""

    size_bytes: int
    unwritten_bytes: int


def read_fills(paths: CachePaths, step_bytes: int) -> Incoming:
    """Return what the fills take, with what is in quarantine.

    A fill whose size is known has the step that it is in for itself, up to that size.
    """
    written: dict[str, int] = {}
    announced: dict[str, int] = {}
    for directory in (paths.fills, paths.quarantine):
        with os.scandir(directory) as entries:
            for entry in entries:
                name, _, kind = entry.name.rpartition(".")
                with contextlib.suppress(FileNotFoundError, ValueError):
                    if kind == "size":
                        with open(entry.path, encoding="ascii") as file:
                            announced[name] = int(file.read())
                    else:
                        written[name if kind == "part" else entry.name] = entry.stat().st_size
    steps = {name: (written.get(name, 0) // step_bytes + 1) * step_bytes for name in announced}
    held = {name: max(written.get(name, 0), min(size, steps[name])) for name, size in announced.items()}
    total = sum((written | held).values())
    return Incoming(total, total - sum(written.values()))


def remove_dead_fills(paths: CachePaths) -> bool:
    """Remove the fills whose worker died and that nobody took over; return whether there were any."""
    names = [name.removesuffix(".part") for name in os.listdir(paths.fills) if name.endswith(".part")]
    removed = [_remove_if_dead(f"{paths.fills}/{name}.part", f"{paths.fills}/{name}.size") for name in names]
    return any(removed)


def _remove_if_dead(part: str, size: str) -> bool:
    with contextlib.suppress(OSError), lock_tried(part, os.O_RDONLY) as is_free:
        if is_free:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(size)
            os.unlink(part)
            return True
    return False
