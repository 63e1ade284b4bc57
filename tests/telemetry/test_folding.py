"""Equal lines of the log, on a clock of the test."""

import io
import json
import logging

import pytest

from registry_proxy.telemetry.folding import FOLD_SECONDS, LINES_OF_A_KIND_MAX, Folding
from registry_proxy.telemetry.logs import json_logging


class Log:
    """A logger with a folding filter, and its output: each message with the number of lines left out."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines: list[tuple[str, int]] = []
        self.folding = Folding(self._write, lambda: self.now)
        self.logger = logging.getLogger("registry_proxy.tests.folding")
        handler = logging.Handler()
        handler.emit = self._write  # type: ignore[method-assign]  # the whole of this handler
        handler.addFilter(self.folding)
        self.logger.handlers, self.logger.propagate = [handler], False
        self.logger.setLevel(logging.INFO)

    def _write(self, record: logging.LogRecord) -> None:
        self.lines.append((record.getMessage(), getattr(record, "folded", 0)))


@pytest.fixture
def log() -> Log:
    """Give an empty log."""
    return Log()


def test_equal_warnings_are_counted(log: Log) -> None:
    """The first is written, the others are counted in the next line after the time, and at the end."""
    for _ in range(1000):
        log.logger.warning("replica %s: down", "a")
    log.logger.warning("replica %s: down", "b")
    log.now += FOLD_SECONDS
    log.logger.info("something else")
    expected = [("replica a: down", 0), ("replica b: down", 0), ("replica a: down", 999), ("something else", 0)]
    assert log.lines == expected
    for _ in range(3):
        log.logger.warning("replica %s: down", "a")
    log.folding.flush()
    assert log.lines[4:] == [("replica a: down", 0), ("replica a: down", 2)]


def test_warnings_that_differ_in_arguments_alone_are_bounded(log: Log) -> None:
    """An attacker who chooses a part of a message writes no more lines of it than a bound."""
    for number in range(10_000):
        log.logger.warning("replica a sent something else than %s", number)
    log.logger.error("the disk fails")
    assert len(log.lines) == LINES_OF_A_KIND_MAX + 1
    assert log.lines[-1] == ("the disk fails", 0)
    log.folding.flush()
    assert sum(1 + folded for _, folded in log.lines) - 10_001 == sum(folded > 0 for _, folded in log.lines)
    assert len(log.folding._kinds) == 0


def test_information_is_not_folded(log: Log) -> None:
    """Messages below a warning are written as often as they are logged."""
    for _ in range(3):
        log.logger.info("reloaded")
    assert log.lines == [("reloaded", 0)] * 3


def test_the_number_is_a_field_of_the_line() -> None:
    """The log of the service has the number of lines left out, at its end too."""
    stream = io.StringIO()
    with json_logging(stream=stream):
        for _ in range(5):
            logging.getLogger("registry_proxy.tests").error("it failed")
    first, last = map(json.loads, stream.getvalue().splitlines())
    assert ("folded" in first, first["message"]) == (False, "it failed")
    assert (last["message"], last["folded"]) == ("it failed", 4)
