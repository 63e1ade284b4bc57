"""Byte ranges of requests and answers (RFC 9110, section 14; spec, "Pushing a blob in chunks")."""

import re
from dataclasses import dataclass

from registry_proxy.protocol.errors import ErrorCode, RegistryError

# [0-9], not \d: that one takes the digits of every script. Names of units are case-insensitive (14.1).
_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,19})-([0-9]{0,19})[ \t]*", re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})", re.IGNORECASE)
_CHUNK_RANGE = re.compile(r"(?:bytes[= ])?([0-9]{1,19})-([0-9]{1,19})(?:/(?:[0-9]{1,19}|\*))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A satisfiable range: ``first`` to ``last``, both included, as offsets in bytes."""

    first: int
    last: int

    @property
    def size_bytes(self) -> int:
        """The number of bytes that it spans."""
        return self.last - self.first + 1


def parse_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """Return the one range asked for of a body of ``size_bytes``; None means the whole body.

    A header that is malformed, in another unit, or of several ranges is ignored, as RFC 9110 14.2 allows. So is a
    suffix of empty content: it is satisfiable (14.1.2), but no Content-Range can express it. One that ends before it
    begins is refused, which 14.2 allows as well.

    Raises:
        RegistryError: RANGE_INVALID (416 with ``Content-Range: bytes */size``) when it cannot be satisfied.
    """
    match = _RANGE.fullmatch(header) if header else None
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        suffix_bytes = int(match[2])
        if size_bytes == 0 < suffix_bytes:
            return None
        first, last = max(size_bytes - suffix_bytes, 0), size_bytes - 1
    else:
        first, last = int(match[1]), min(int(match[2] or size_bytes), size_bytes - 1)
    if first >= size_bytes or first > last:
        raise RegistryError(
            ErrorCode.RANGE_INVALID,
            "the range lies beyond the end of the content, or ends before it begins",
            detail={"size": size_bytes},
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )
    return ByteRange(first, last)


def format_content_range(byte_range: ByteRange, size_bytes: int) -> str:
    """Return the Content-Range header of a 206."""
    return f"bytes {byte_range.first}-{byte_range.last}/{size_bytes}"


def parse_content_range(header: str | None) -> tuple[ByteRange, int] | None:
    """Return (range, total size in bytes) of a 206's Content-Range; None when absent or malformed."""
    match = _CONTENT_RANGE.fullmatch(header) if header else None
    if match is None:
        return None
    first, last, size_bytes = int(match[1]), int(match[2]), int(match[3])
    return (ByteRange(first, last), size_bytes) if first <= last < size_bytes else None


def parse_chunk_range(header: str) -> ByteRange:
    """Return the Content-Range of an upload's chunk, ``<start>-<end>`` (spec, "Pushing a blob in chunks").

    Raises:
        RegistryError: BLOB_UPLOAD_INVALID (400) when malformed.
    """
    match = _CHUNK_RANGE.fullmatch(header)
    if match is None or int(match[2]) < int(match[1]):
        raise RegistryError(
            ErrorCode.BLOB_UPLOAD_INVALID,
            "Content-Range is not <start>-<end>",
            detail={"content_range": header[:200]},
        )
    return ByteRange(int(match[1]), int(match[2]))
