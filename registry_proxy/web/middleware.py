"""What happens around every request, in this order: its ID, its measure, its errors."""

import itertools
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp.web import StreamResponse

from registry_proxy.ports import Observer
from registry_proxy.tasks import request_id
from registry_proxy.web.exchange import Exchange, Handler, as_registry_error, drain_body, error_response
from registry_proxy.web.origin import Origins
from registry_proxy.web.server import expect_no_body

LogRequest = Callable[[Mapping[str, Any]], None]
"""Takes the fields of a request that has ended, and returns at once."""

CLIENT_LEFT = 499
"""The status, in log and metrics, of a request whose answer was cut; nginx's number for a client that left."""


def with_request_id(handler: Handler, origins: Origins) -> Handler:
    """Give each request an ID: in the answer, in every log line, and sent upstream."""
    prefix, numbers = secrets.token_hex(4), itertools.count(1)

    async def handle(exchange: Exchange) -> StreamResponse:
        identifier = origins.request_id(exchange.request) or f"{prefix}-{next(numbers):x}"
        request_id.set(identifier)
        exchange.answer_headers.update({"X-Request-ID": identifier, "Server": "registry-proxy"})
        response = await handler(exchange)
        if not response.prepared:
            response.headers.update(exchange.answer_headers)
        return response

    return handle


def with_measure(handler: Handler, observer: Observer, log_request: LogRequest) -> Handler:
    """Count and log each request; never its query, which may hold an upload's signed state."""

    async def handle(exchange: Exchange) -> StreamResponse:
        started = time.perf_counter()
        status = CLIENT_LEFT
        try:
            response = await handler(exchange)
            status = response.status
            return response
        finally:
            seconds = time.perf_counter() - started
            method = exchange.request.method
            observer.request(exchange.route, method, status, seconds)
            log_request(
                {
                    "method": method,
                    "path": exchange.path[:1000],
                    "route": exchange.route,
                    "status": status,
                    "seconds": round(seconds, 6),
                    "bytes": exchange.sent_bytes,
                    "address": exchange.address,
                    "subject": exchange.subject,
                }
            )

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
        if not exchange.request.content.at_eof() and not await drain_body(exchange):
            response.force_close()
            if exchange.awaits_continue:
                expect_no_body(exchange.request)
        return response

    return handle
