"""The frame of every request, whichever way it is answered: its ID, its count and its line in the log."""

import itertools
import secrets
import time
from collections.abc import Callable, Mapping
from contextvars import Token
from dataclasses import dataclass
from typing import Any, NamedTuple

from registry_proxy.edge.exchange import Exchange
from registry_proxy.edge.origin import Caller, Origins
from registry_proxy.ports.metrics import ClientRequest, Observer, SentBytes
from registry_proxy.tasks import request_id

LogRequest = Callable[[Mapping[str, Any]], None]
"""Takes the fields of a request that has ended, and returns at once."""


class RequestIds:
    """Names requests: as a trusted proxy named them, else by a number of this process.

    Args:
        origins: knows the trusted proxies.
    """

    def __init__(self, origins: Origins) -> None:
        self._origins = origins
        self._prefix, self._numbers = secrets.token_hex(4), itertools.count(1)

    def name(self, request: Caller) -> str:
        """Return the ID of a new request."""
        return self._origins.request_id(request) or f"{self._prefix}-{next(self._numbers):x}"


@dataclass(frozen=True, slots=True)
class Frame:
    """Names each request, and counts and logs it once it has ended.

    Args:
        ids: names requests.
        observer: counts.
        log_request: receives the fields of each request; never its query, which may hold an upload's signed state.
    """

    ids: RequestIds
    observer: Observer
    log_request: LogRequest

    def begin(self, exchange: Exchange) -> "Begun":
        """Give a request its ID: in the answer, in every log line, and sent upstream."""
        identifier = self.ids.name(exchange)
        exchange.answer_headers["X-Request-ID"] = identifier
        exchange.answer_headers["Server"] = "registry-proxy"
        return Begun(time.perf_counter(), request_id.set(identifier))

    @staticmethod
    def leave(begun: "Begun") -> None:
        """Go on with another request in the same context."""
        request_id.reset(begun.replaced)

    def end(self, exchange: Exchange, begun: "Begun") -> None:
        """Count and log a request that has ended."""
        seconds = time.perf_counter() - begun.at
        if exchange.source is not None:
            self.observer.observe(SentBytes(exchange.source, exchange.sent_bytes))
        self.observer.observe(ClientRequest(exchange.route, exchange.method, exchange.status, seconds))
        self.log_request(
            {
                "method": exchange.method,
                "path": exchange.path[:1000],
                "route": exchange.route,
                "status": exchange.status,
                "seconds": round(seconds, 6),
                "bytes": exchange.sent_bytes,
                "address": exchange.address,
                "subject": exchange.subject,
            }
        )


class Begun(NamedTuple):
    """The beginning of a request: its time, by ``perf_counter``, and what its ID replaced."""

    at: float
    replaced: Token[str]
