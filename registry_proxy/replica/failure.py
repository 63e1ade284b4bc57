"""Failures of a replica, in our words: foreign answers and exceptions are translated here and nowhere else."""

import asyncio
import errno
import json
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import aiohttp

from registry_proxy.ports.errors import UpstreamLimitError, UpstreamUnavailableError
from registry_proxy.ports.metrics import UpstreamOutcome
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.times import parse_retry_after

ERROR_BODY_MAX_BYTES = 256 * 1024
_WORDS_MAX = 500
_RETRY_AFTER_MAX_SECONDS = 24 * 3600.0
_RETRY_AFTER_DEFAULT_SECONDS = 1.0


_OUTCOMES: Mapping[int, UpstreamOutcome] = {2: "2xx", 3: "3xx", 4: "4xx"}
_OUR_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})
"""Errors of a connection that are this machine's own, whichever host is at the other end."""


class ReplicaFailedError(UpstreamUnavailableError):
    """One replica could not answer.

    Args:
        reason: for the log and the detail of a 503, with the replica's name, without secrets.
        outcome: the label of registry_proxy_upstream_requests_total: connect, timeout, stall, cut, mismatch, 4xx, 5xx.
        is_elsewhere: it is not the replica that failed, but the storage or the token endpoint to which it sends us, or
            this machine, which has no descriptor or port left.
    """

    def __init__(self, reason: str, outcome: UpstreamOutcome, *, is_elsewhere: bool = False) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.is_elsewhere = is_elsewhere


class WrongBytesError(ReplicaFailedError):
    """A replica sent something else than the digest it was asked for."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "mismatch")


class _BadGatewayError(RegistryError):
    """A 502; ``reason`` is for its detail and for health."""

    outcome: UpstreamOutcome
    text: str

    def __init__(self, replica: str, reason: str) -> None:
        detail = {"replica": replica, "reason": reason}
        super().__init__(ErrorCode.UNAVAILABLE, self.text, detail=detail, status=502)
        self.reason = reason


class BadUpstreamError(_BadGatewayError):
    """A 502: the replica answers, and wrongly."""

    outcome = "mismatch"
    text = "the upstream registry does not answer as a registry should"


class SlowListError(BadUpstreamError):
    """A 502: a list takes longer than clients may wait for one."""

    text = "the upstream registry needs too long for this list"


class AccessRefusedError(_BadGatewayError):
    """A 502: the replica refuses one request, or, where a probe meets it, our credentials.

    ``answered`` is the status that said so, None where we did not send what was demanded.
    """

    outcome = "4xx"
    text = "the upstream registry refuses this proxy access"

    def __init__(self, replica: str, reason: str, answered: int | None = None) -> None:
        super().__init__(replica, reason)
        self.answered = answered


def outcome_of(status: int) -> UpstreamOutcome:
    """Return the outcome of a request that was answered with a status; one that HTTP does not know is a failure."""
    return _OUTCOMES.get(status // 100, "5xx")


@contextmanager
def translated(replica: str, *, in_body: bool = False, is_elsewhere: bool = False) -> Iterator[None]:
    """Turn what aiohttp raises into ReplicaFailedError; ``in_body`` once the headers have arrived."""
    try:
        yield
    except (aiohttp.ClientError, OSError, UnicodeError, asyncio.IncompleteReadError) as error:
        reason, outcome = _judge(error, in_body=in_body)
        is_elsewhere = is_elsewhere or getattr(error, "errno", None) in _OUR_SHORTAGES
        raise ReplicaFailedError(f"{replica}: {reason}", outcome, is_elsewhere=is_elsewhere) from error


def _judge(error: Exception, *, in_body: bool) -> tuple[str, UpstreamOutcome]:
    """Return why a request failed, and its outcome: "connect" only where no connection was made."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return "no connection in time", "timeout"
        case TimeoutError():
            return ("no more bytes came in time", "stall") if in_body else ("no answer in time", "timeout")
        case aiohttp.ClientConnectorError() | aiohttp.InvalidURL() | UnicodeError():  # the last: no name of a host
            return f"no connection ({_why(error)})", "connect"
        case aiohttp.ClientResponseError():
            return "what it answers is no HTTP", "cut"
        case _:
            return "the connection was cut", "cut"


def _why(error: Exception) -> str:
    """Return what the operating system says; of an error of TLS, which has numbers of its own, the name."""
    cause = getattr(error, "os_error", error)
    if isinstance(cause, socket.gaierror):
        return str(cause.strerror)
    if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno:
        return os.strerror(cause.errno)
    return type(error).__name__


def has_errors(body: bytes) -> bool:
    """Tell whether a body is a registry's error document, of any type and with any codes."""
    try:
        return isinstance(json.loads(body)["errors"], list)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def parse_errors(body: bytes) -> list[tuple[ErrorCode, object]]:
    """Return (code, detail) of each error in a registry's error body whose code we know; empty for anything else."""
    try:
        errors = json.loads(body)["errors"]
        pairs = [(str(error["code"]), error.get("detail")) for error in errors]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    known = {code.value: code for code in ErrorCode}
    return [(known[code], detail) for code, detail in pairs if code in known]


def _most_telling(errors: Sequence[tuple[ErrorCode, object]], default: ErrorCode) -> ErrorCode:
    """Return the code that says what is wrong: distribution puts bare ``UNKNOWN`` errors before the cause."""
    ranked = sorted(errors, key=lambda error: (error[0] is ErrorCode.UNKNOWN, not error[1]))
    return ranked[0][0] if ranked else default


def refusal(replica: str, status: int, body: bytes, default: ErrorCode) -> RegistryError:
    """Return a registry's refusal (4xx) as our error.

    Args:
        replica: its name.
        status: of its answer; kept.
        body: of its answer. The error has the code that says most of all in it; its ``detail`` is the detail that came
            with that code, or the list of details when several errors have that code (the missing digests of
            MANIFEST_BLOB_UNKNOWN).
        default: the code when the body has none.
    """
    errors = parse_errors(body)
    code = _most_telling(errors, default)
    details = [detail for other, detail in errors if other is code and detail]
    return RegistryError(
        code,
        f"the upstream registry {replica} refused it with {code.value}",
        detail=(details[0] if len(details) == 1 else details) or {"replica": replica},
        status=status,
    )


def limit_error(replica: str, headers: Mapping[str, str], body: bytes) -> UpstreamLimitError:
    """Return the error of a 429: with what it says to people, and its Retry-After (RFC 9110, 10.2.3)."""
    words = _words(body, headers.get("Content-Type", ""))
    seconds = parse_retry_after(headers.get("Retry-After"), time.time())
    wait = _RETRY_AFTER_DEFAULT_SECONDS if seconds is None else min(seconds, _RETRY_AFTER_MAX_SECONDS)
    return UpstreamLimitError(f"{replica}: it answers 429 (too many requests)", words, wait)


def _words(body: bytes, media_type: str) -> str:
    """Return what an error body says to people, on one line; "" where that is not known."""
    try:
        text = "; ".join(str(error["message"]) for error in json.loads(body)["errors"])
    except (ValueError, KeyError, TypeError, RecursionError):
        text = body.decode(errors="replace") if media_type.startswith("text/plain") else ""
    return " ".join("".join(one if one.isprintable() else " " for one in text[:_WORDS_MAX]).split())
