"""The log: one JSON object a line, with the request it belongs to."""

import io
import json
import logging
import threading

from registry_proxy.tasks import request_id
from registry_proxy.telemetry.logs import json_logging

_log = logging.getLogger("registry_proxy.tests")


def test_each_line_is_an_object_with_its_request() -> None:
    """Level, logger, message, time, extra fields and the request's ID; a traceback is a field, not more lines."""
    stream = io.StringIO()
    with json_logging(stream=stream, worker="3"):
        token = request_id.set("r-1")
        _log.info("hello %s", "world", extra={"status": 200})
        request_id.reset(token)
        _log.debug("not this")
        try:
            int("broken")
        except ValueError:
            _log.exception("it failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("INFO", "registry_proxy.tests", "hello world")
    assert (first["status"], first["request_id"], first["worker"]) == (200, "r-1", "3")
    assert first["time"].endswith("+00:00")
    assert "ValueError: invalid literal" in second["exc_info"]
    assert "request_id" not in second


def test_a_reader_that_stops_stalls_nobody() -> None:
    """When the lines cannot be written, those beyond a bound are dropped."""

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            # The writing thread waits here until the test has logged everything.
            done.wait(30)
            return super().write(text)

    done = threading.Event()
    stream = Stuck()
    with json_logging(stream=stream):
        for number in range(12_000):
            _log.info("line %d", number)
        done.set()
    assert 10_000 <= len(stream.getvalue().splitlines()) <= 10_002
