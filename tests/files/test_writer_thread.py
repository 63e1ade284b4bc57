"""A thread writes the entries of its queue, and no caller waits for it."""

import select
import threading

import pytest

from registry_proxy.files import writer_thread
from registry_proxy.files.writer_thread import WriterThread, whole_lines


class Log:
    """Writes into a list; fails and waits as the test says."""

    def __init__(self, pending_max: int = 10, idle_seconds: float | None = None) -> None:
        self.written: list[int] = []
        self.failures = 0
        self.called, self.may_write = threading.Semaphore(0), threading.Event()
        self.may_write.set()
        self.thread: WriterThread[int] = WriterThread("log", self.write, pending_max, idle_seconds)

    def write(self) -> float:
        self.called.release()
        self.may_write.wait(30)
        if self.failures:
            self.failures -= 1
            return 0.001
        while self.thread.pending:
            self.written.append(self.thread.pending.popleft())
        if self.thread.is_last:
            self.written.append(-1)
        return 0.0


def test_pending_entries_are_written_at_the_end() -> None:
    """Gathered and single entries are written in order, and the last call is marked as the last."""
    log = Log()
    with log.thread.running():
        assert all(log.thread.put(number) for number in range(5))
    assert log.written == [0, 1, 2, 3, 4, -1]


def test_a_full_queue_takes_nothing_more() -> None:
    """No caller waits for a writer that is stuck; queued entries are not lost."""
    log = Log(pending_max=3)
    log.may_write.clear()
    with log.thread.running():
        assert [log.thread.put(number) for number in range(5)] == [True, True, True, False, False]
        log.may_write.set()
    assert log.written == [0, 1, 2, -1]


def test_a_hurry_does_not_wait_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long entries are gathered, a caller in a hurry has them written immediately."""
    monkeypatch.setattr(writer_thread, "_GATHER_SECONDS", 3600)
    log = Log()
    with log.thread.running():
        log.thread.put(1)
        log.thread.hurry()
        assert log.called.acquire(timeout=30)
    assert log.written == [1, -1]


def test_a_failure_is_tried_again() -> None:
    """A failed write is retried after the pause that the function asks for, without a further entry."""
    log = Log()
    log.failures = 2
    with log.thread.running():
        log.thread.put(1)
        for _ in range(3):
            assert log.called.acquire(timeout=30)
    assert log.written == [1, -1]


def test_a_thread_without_work_is_called_now_and_then() -> None:
    """Deferred work is done after a while, without an entry."""
    log = Log(idle_seconds=0.001)
    with log.thread.running():
        for _ in range(2):
            assert log.called.acquire(timeout=30)


def test_lines_are_joined_up_to_what_a_pipe_keeps_whole() -> None:
    """No piece is longer, except a single line that is; nothing is lost or empty."""
    long = b"x" * (select.PIPE_BUF + 1)
    lines = [b"a" * 3000, b"b" * 1096, b"c", long, b"d"]
    assert list(whole_lines(lines)) == [b"a" * 3000 + b"b" * 1096, b"c", long, b"d"]
    assert list(whole_lines([])) == []
