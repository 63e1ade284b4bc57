"""Answers as values: a status, headers and a body, of which nothing is written yet."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import NamedTuple

from registry_proxy.edge.exchange import Exchange, Source
from registry_proxy.operations.passthrough import PassThrough
from registry_proxy.ports.content import BlobReader, OpenSource
from registry_proxy.protocol.byterange import ByteRange
from registry_proxy.protocol.errors import RegistryError, format_errors

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


@dataclass(frozen=True, slots=True)
class FilePart:
    """A part of a file that may still be growing; of an empty file, ``ByteRange(0, -1)``.

    ``rest`` opens the same content, at an offset, at its source: for bytes that the disk fails to give.
    """

    reader: BlobReader
    part: ByteRange
    rest: OpenSource

    @property
    def size_bytes(self) -> int:
        """The size of the part."""
        return self.part.size_bytes

    async def aclose(self) -> None:
        """Close the file."""
        self.reader.close()


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes from an upstream that are sent as they come."""

    stream: PassThrough
    size_bytes: int

    async def aclose(self) -> None:
        """Let go of the upstream's connection."""
        await self.stream.aclose()


class Answer(NamedTuple):
    """An answer to a request; its receiver writes it, and closes its body.

    ``source`` is None where the body is no content. The answer to a
    HEAD may have the Content-Length of a body that it does not carry.
    """

    status: int = 200
    headers: Mapping[str, str] = _NO_HEADERS
    body: bytes | FilePart | Stream = b""
    source: Source | None = None

    @property
    def size_bytes(self) -> int:
        """The size of the body."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.size_bytes


def json_answer(value: object, headers: Mapping[str, str] = _NO_HEADERS) -> Answer:
    """Return a 200 with a JSON body."""
    return Answer(headers={"Content-Type": "application/json", **headers}, body=json.dumps(value).encode())


def error_answer(error: RegistryError) -> Answer:
    """Return the answer of an error."""
    headers = {**error.headers, "Content-Type": "application/json"}
    return Answer(error.status, headers, format_errors(error.code.value, error.message, error.detail))


def head_of(exchange: Exchange, answer: Answer) -> dict[str, str]:
    """Return all headers of an answer but those about the connection."""
    headers = {**answer.headers, **exchange.answer_headers}
    if answer.status not in _WITHOUT_BODY:
        size = headers.setdefault("Content-Length", str(answer.size_bytes))
        if size != "0":
            headers.setdefault("Content-Type", "application/octet-stream")
    headers["Date"] = _format_date(int(time.time()))
    return headers


@lru_cache(maxsize=1)
def _format_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)
