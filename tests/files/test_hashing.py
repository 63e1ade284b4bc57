"""A file is hashed in pieces, as a whole or in part."""

import hashlib
import os
from pathlib import Path

import pytest

from registry_proxy.files import hashing
from registry_proxy.files.hashing import hash_file


def test_a_part_of_a_file_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are joined, the part has the given start and end, and the end of the file ends it, too."""
    monkeypatch.setattr(hashing, "_PIECE_BYTES", 3)
    content = b"0123456789"
    (tmp_path / "a").write_bytes(content)
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    for offset, size_bytes in [(0, 10), (0, 100), (2, 5), (2, 6), (7, 3), (10, 1), (3, 0)]:
        hasher = hashlib.sha256(content[:offset])
        part = content[offset : offset + size_bytes]
        assert hash_file(fd, hasher, offset, size_bytes) == len(part)
        assert hasher.digest() == hashlib.sha256(content[:offset] + part).digest()
    hasher = hashlib.sha256()
    assert hash_file(fd, hasher, 0) == 10
    assert hasher.digest() == hashlib.sha256(content).digest()
    os.close(fd)
