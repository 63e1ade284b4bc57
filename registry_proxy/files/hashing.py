"""Hashes of open files, a piece at a time."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

_PIECE_BYTES = 1024 * 1024


def hash_file(fd: int, hasher: "_Hash", offset: int, size_bytes: int = sys.maxsize) -> int:
    """Add a part of a file to a hash; return the number of bytes, which is smaller at the end of the file alone.

    Args:
        fd: of the file; its position is neither used nor moved.
        hasher: has the bytes before ``offset`` already.
        offset: where the part begins.
        size_bytes: of the part; by default all that follows.

    Raises:
        OSError: it cannot be read.
    """
    done_bytes = 0
    while piece := os.pread(fd, min(_PIECE_BYTES, size_bytes - done_bytes), offset + done_bytes):
        hasher.update(piece)
        done_bytes += len(piece)
    return done_bytes
