"""The frame of every request, in this order: its ID, its measure, its errors."""

import itertools
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp.web import StreamResponse

from registry_proxy.edge.exchange import Exchange, Handler, as_registry_error, drain_body, error_response
from registry_proxy.edge.origin import Caller, Origins
from registry_proxy.edge.server import expect_no_body
from registry_proxy.http.limits import CLIENT_LEFT
from registry_proxy.ports.metrics import ClientRequest, Observer
from registry_proxy.tasks import request_id

LogRequest = Callable[[Mapping[str, Any]], None]
"""Takes the fields of a request that has ended, and returns at once."""


class RequestIds:
    """Names requests: as a trusted proxy named them, else by a number of this process.

    Args:
        origins: knows whom to trust.
    """

    def __init__(self, origins: Origins) -> None:
        self._origins = origins
        self._prefix, self._numbers = secrets.token_hex(4), itertools.count(1)

    def name(self, request: Caller) -> str:
        """Return the ID of a new request."""
        return self._origins.request_id(request) or f"{self._prefix}-{next(self._numbers):x}"


def answer_headers(identifier: str) -> dict[str, str]:
    """Return the headers that every answer has, whatever it is about."""
    return {"X-Request-ID": identifier, "Server": "registry-proxy"}


def with_request_id(handler: Handler, ids: RequestIds) -> Handler:
    """Give each request an ID: in the answer, in every log line, and sent upstream."""

    async def handle(exchange: Exchange) -> StreamResponse:
        identifier = ids.name(exchange.request)
        request_id.set(identifier)
        exchange.answer_headers.update(answer_headers(identifier))
        response = await handler(exchange)
        if not response.prepared:
            response.headers.update(exchange.answer_headers)
        return response

    return handle


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that has ended; fields as in ``Exchange``."""

    method: str
    path: str
    route: str
    status: int
    sent_bytes: int
    address: str
    subject: str


class Measure:
    """Counts and logs each request; never its query, which may hold an upload's signed state.

    Args:
        observer: counts.
        log_request: logs.
    """

    def __init__(self, observer: Observer, log_request: LogRequest) -> None:
        self._observer = observer
        self._log_request = log_request

    def take(self, ended: Ended, seconds: float) -> None:
        """Count and log a request that took so long."""
        self._observer.observe(ClientRequest(ended.route, ended.method, ended.status, seconds))
        self._log_request(
            {
                "method": ended.method,
                "path": ended.path[:1000],
                "route": ended.route,
                "status": ended.status,
                "seconds": round(seconds, 6),
                "bytes": ended.sent_bytes,
                "address": ended.address,
                "subject": ended.subject,
            }
        )


def with_measure(handler: Handler, measure: Measure) -> Handler:
    """Measure each request, however it ends."""

    async def handle(exchange: Exchange) -> StreamResponse:
        started = time.perf_counter()
        status = CLIENT_LEFT
        try:
            response = await handler(exchange)
            status = response.status
            return response
        finally:
            ended = Ended(
                exchange.request.method,
                exchange.path,
                exchange.route,
                status,
                exchange.sent_bytes,
                exchange.address,
                exchange.subject,
            )
            measure.take(ended, time.perf_counter() - started)

    return handle


def with_errors(handler: Handler) -> Handler:
    """Turn errors into answers. A body that nobody read is drained first: some clients hang when refused mid-way."""

    async def handle(exchange: Exchange) -> StreamResponse:
        try:
            response = await handler(exchange)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets our body and the log the rest
            response = error_response(as_registry_error(error))
        if not exchange.request.content.at_eof() and (
            response.status == HTTPStatus.REQUEST_TIMEOUT or not await drain_body(exchange)
        ):
            response.force_close()
            if exchange.awaits_continue or response.status == HTTPStatus.REQUEST_TIMEOUT:
                expect_no_body(exchange.request)
        return response

    return handle
