"""The eviction queue: contents in their order of arrival, one file of records of a fixed size, read piece by piece.

It serves eviction alone. A record without its content is skipped and erased when eviction comes by; a content
without a record cannot be evicted, so a record is written before its content gets its name.
"""

import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from registry_proxy.protocol.reference import Digest

_RECORD = struct.Struct("=B7x64sqq")
_ALGORITHMS = ("", "sha256", "sha512")
_ERASED = bytes(_RECORD.size)
_PIECE_RECORDS = 1024


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One content. ``used_at_ns`` is its atime as eviction last saw it: a later one means it was used since."""

    number: int
    digest: Digest
    size_bytes: int
    used_at_ns: int

    def packed(self) -> bytes:
        """Return it as it stands in the file."""
        algorithm = _ALGORITHMS.index(self.digest.algorithm)
        return _RECORD.pack(algorithm, bytes.fromhex(self.digest.hex), self.size_bytes, self.used_at_ns)


class EvictionQueue:
    """An open eviction queue, begun when there is none. Every method raises OSError. The caller holds the locks."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, *records: QueueEntry) -> None:
        """Write records that follow each other, beginning at the number of the first."""
        if records:
            _write_whole(self._fd, b"".join(record.packed() for record in records), records[0].number * _RECORD.size)

    def erase(self, number: int) -> None:
        """Make the record none; its place is not used again before a rewrite."""
        _write_whole(self._fd, _ERASED, number * _RECORD.size)

    def read(self, first: int, end: int) -> Iterator[QueueEntry]:
        """Return the records from ``first`` up to, not with, ``end`` that were not erased."""
        for piece in range(first, end, _PIECE_RECORDS):
            count = min(_PIECE_RECORDS, end - piece)
            content = os.pread(self._fd, count * _RECORD.size, piece * _RECORD.size)
            for number, fields in enumerate(
                _RECORD.iter_unpack(content[: len(content) // _RECORD.size * _RECORD.size])
            ):
                algorithm, encoded, size_bytes, used_at_ns = fields
                if algorithm:
                    width = 32 if algorithm == 1 else 64
                    digest = Digest(_ALGORITHMS[algorithm], encoded[:width].hex())
                    yield QueueEntry(piece + number, digest, size_bytes, used_at_ns)

    def rewrite(self, path: str, end: int, is_wanted: Callable[[QueueEntry], bool], hand: int) -> tuple[int, int]:
        """Write the wanted records below ``end`` to a new file; return how many, and where ``hand`` is among them."""
        count = new_hand = 0
        with open(path, "wb") as file:
            for record in self.read(0, end):
                if is_wanted(record):
                    file.write(record.packed())
                    count += 1
                    new_hand += record.number < hand
        return count, new_hand


def _write_whole(fd: int, content: bytes, offset: int) -> None:
    written = os.pwrite(fd, content, offset)
    if written != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
