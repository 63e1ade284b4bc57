"""Error codes of the registry protocol, each with its status: the only such table (spec, "Error Codes")."""

import json
from collections.abc import Mapping
from enum import Enum
from typing import Self


class ErrorCode(Enum):
    """A code of spec "Error Codes" or of CNCF distribution's ``errcode``; ``status`` is its HTTP status."""

    status: int

    BLOB_UNKNOWN = ("BLOB_UNKNOWN", 404)
    BLOB_UPLOAD_INVALID = ("BLOB_UPLOAD_INVALID", 400)
    BLOB_UPLOAD_UNKNOWN = ("BLOB_UPLOAD_UNKNOWN", 404)
    DENIED = ("DENIED", 401)
    DIGEST_INVALID = ("DIGEST_INVALID", 400)
    MANIFEST_BLOB_UNKNOWN = ("MANIFEST_BLOB_UNKNOWN", 400)
    MANIFEST_INVALID = ("MANIFEST_INVALID", 400)
    MANIFEST_UNKNOWN = ("MANIFEST_UNKNOWN", 404)
    NAME_INVALID = ("NAME_INVALID", 400)
    NAME_UNKNOWN = ("NAME_UNKNOWN", 404)
    PAGINATION_NUMBER_INVALID = ("PAGINATION_NUMBER_INVALID", 400)
    RANGE_INVALID = ("RANGE_INVALID", 416)
    SIZE_INVALID = ("SIZE_INVALID", 400)
    TAG_INVALID = ("TAG_INVALID", 400)
    TOOMANYREQUESTS = ("TOOMANYREQUESTS", 429)
    UNAUTHORIZED = ("UNAUTHORIZED", 401)
    UNAVAILABLE = ("UNAVAILABLE", 503)
    UNKNOWN = ("UNKNOWN", 500)
    UNSUPPORTED = ("UNSUPPORTED", 405)

    def __new__(cls, code: str, status: int) -> Self:
        """Keep the code as the value and the status beside it."""
        member = object.__new__(cls)
        member._value_ = code
        member.status = status
        return member


class RegistryError(Exception):
    """An answer of the protocol that is an error.

    Args:
        code: the spec's code; decides the status unless ``status`` is given.
        message: a sentence of our own. Docker retries for 50 s on the standard text, so it is never that.
        detail: any JSON value; made non-null in the body for the same reason.
        status: where one code has two statuses (DENIED: 401 by default, 403 where no token can change it;
            UNAVAILABLE: 503 by default, 502 where an upstream misbehaves).
        headers: sent with the answer, such as Retry-After.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        detail: object = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.detail = detail
        self.status = code.status if status is None else status
        self.headers: Mapping[str, str] = headers or {}

    def __str__(self) -> str:
        detail = "" if self.detail is None else f" ({self.detail})"
        return f"{self.code.value}: {self.message}{detail}"


def format_errors(code: str, message: str, detail: object) -> bytes:
    """Return the JSON body of an error answer, ``{"errors":[{"code","message","detail"}]}``.

    A ``detail`` that JSON cannot hold is written as text: an error must not fail for its own description.
    """
    error = {"code": code, "message": message, "detail": {} if detail is None else detail}
    return json.dumps({"errors": [error]}, default=str).encode()


def unavailable(message: str, *, detail: object = None) -> RegistryError:
    """Return the 503 for what cannot be known now: never a 404, which makes CI rebuild or delete."""
    return RegistryError(ErrorCode.UNAVAILABLE, message, detail=detail, headers={"Retry-After": "5"})


def bad_gateway(message: str, *, detail: object = None) -> RegistryError:
    """Return the 502 for an upstream that misbehaves or refuses our credentials."""
    return RegistryError(ErrorCode.UNAVAILABLE, message, detail=detail, status=502)
