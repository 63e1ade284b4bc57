"""The threads of the audit log: events that a sink does not take wait, within a bound, and losses are reported."""

import errno
import json
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry_proxy.audit import trail as audit
from registry_proxy.audit.chain import list_chains, verify_chain
from registry_proxy.audit.sinks import DecisionSink, StreamSink, SyslogSink, read_decisions
from registry_proxy.audit.trail import AuditTrail, SinkThread, Taken
from registry_proxy.audit.writer import ChainWriter, Retention
from registry_proxy.files import writer_thread
from registry_proxy.ports.events import AuditEvent
from registry_proxy.ports.metrics import AuditLoss, MetricEvent
from registry_proxy.protocol.scope import Action
from tests.support.disks import mounted_disk
from tests.support.fakes.memory import RecordingObserver
from tests.support.servers import wait_until


class Stuck:
    """A sink that takes nothing until it is released."""

    def __init__(self, *, may_go: bool = False) -> None:
        self.may_go = threading.Event()
        if may_go:
            self.may_go.set()
        self.taken: list[Taken] = []

    def write(self, batch: Sequence[Taken]) -> None:
        self.may_go.wait()
        self.taken += batch

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_queue_is_bounded_and_says_what_it_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound events are dropped and counted; the log has the number once the sink goes on."""
    monkeypatch.setattr(audit, "QUEUE_MAX", 10)
    sink, observer = Stuck(), RecordingObserver()
    thread = SinkThread("file", sink, observer)
    with thread.running():
        for i in range(15):
            thread.put(Taken(float(i), "", AuditEvent("login", "ok")))
        assert observer.events == [AuditLoss("file", 1)] * 5
        sink.may_go.set()
        wait_until(lambda: any(taken.event.action == "audit.dropped" for taken in sink.taken), "the dropped events")
    assert [taken.event.action for taken in sink.taken].count("login") == 10
    (notice,) = [taken.event for taken in sink.taken if taken.event.action == "audit.dropped"]
    assert notice.detail == {"count": 5, "sink": "file"}


async def test_an_event_that_was_waited_for_is_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that waits for an event finds it in the file; batching and a stuck sink do not delay it."""
    monkeypatch.setattr(writer_thread, "_GATHER_SECONDS", 3600)
    writer = ChainWriter(str(tmp_path), "node", "1", Retention(2**20, 3600, 2**30, 3600))
    thread, decisions = SinkThread("file", writer, _NoLoss()), SinkThread("decisions", Stuck(), _NoLoss())
    trail = AuditTrail(acts=thread, traffic=thread, decisions=decisions, records_pulls=False)
    with thread.running():
        for action in ("first", "second"):
            trail.record(AuditEvent(action, "ok"))
            await trail.written()
            (file,) = list_chains(str(tmp_path))["1"]
            assert f'"action":"{action}"' in Path(file.path).read_text()
    monkeypatch.setattr(audit, "_WRITTEN_SECONDS", 0.01)
    stuck = Stuck()
    thread = SinkThread("file", stuck, _NoLoss())
    with thread.running():
        trail = AuditTrail(acts=thread, traffic=thread, decisions=decisions, records_pulls=False)
        trail.record(AuditEvent("third", "ok"))
        await trail.written()
        assert stuck.taken == []
        stuck.may_go.set()


def test_a_full_disk_loses_nothing_that_fits_the_queue(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While the disk is full events wait; with room again they are all written, and the chain is whole."""
    with mounted_disk(tmp_path, 4) as disk:
        directory = disk.path / "audit"
        thread = SinkThread(
            "file", ChainWriter(str(directory), "n", "0", Retention(1 << 20, 1e12, 1 << 30, 1e12)), _NoLoss()
        )
        with thread.running():
            thread.put(Taken(1.0, "", AuditEvent("login", "ok")))
            wait_until(lambda: thread.waiting_seconds() == 0, "the first event")
            disk.fill()
            for i in range(200):
                thread.put(Taken(2.0 + i, "", AuditEvent("login", "ok", subject="user:" + "a" * 100)))
            wait_until(lambda: "accepts nothing" in caplog.text, "a write that failed")
            (disk.path / "ballast").unlink()
            wait_until(lambda: thread.waiting_seconds() == 0, "all events")
        report = verify_chain(list_chains(str(directory))["0"], None)
        assert (report.last, list(report.faults)) == (202, [])


def test_a_batch_that_is_written_by_half_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that meets a full disk is removed as a whole; after a retry the chain is whole."""
    writer = ChainWriter(str(tmp_path), "n", "0", Retention(1 << 20, 1e12, 1 << 30, 1e12))
    batch = [Taken(1.0 + i, "", AuditEvent("login", "ok")) for i in range(3)]
    writer.write(batch)
    true_write, calls = os.write, list[int]()

    def by_half(fd: int, data: bytes) -> int:
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return true_write(fd, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", by_half)
        with pytest.raises(OSError, match="No space"):
            writer.write(batch)
    writer.write(batch)
    writer.close()
    report = verify_chain(list_chains(str(tmp_path))["0"], None)
    assert (report.last, list(report.faults)) == (7, [])


class _NoLoss:
    """An observer to which no loss may be reported."""

    def observe(self, event: MetricEvent, /) -> None:
        raise AssertionError(event)


def test_questions_are_counted_and_read_back(tmp_path: Path) -> None:
    """Decided questions are stored by their content, with their number, newest first, over all processes."""
    for process in ("0", "1"):
        thread = SinkThread("decisions", DecisionSink(str(tmp_path), process), _NoLoss())
        acts, traffic = (SinkThread("file", Stuck(may_go=True), _NoLoss()) for _ in range(2))
        trail = AuditTrail(acts=acts, traffic=traffic, decisions=thread, records_pulls=False)
        with trail.running():
            for _ in range(3):
                trail.asked(("user:ann", "team/app", Action.PULL, "v1"))
            trail.asked(("user:bob", "team/app", Action.PUSH, None))
    found = {(each.subject, each.action, each.tag): each.count for each in read_decisions(str(tmp_path), 10)}
    assert found == {("user:ann", "pull", "v1"): 6, ("user:bob", "push", None): 2}
    assert len(read_decisions(str(tmp_path), 1)) == 1


def test_standard_output_and_syslog_get_each_event_as_json(tmp_path: Path) -> None:
    """Standard output and syslog receive the event as one line of JSON; syslog by a socket, with facility authpriv."""
    batch = [Taken(1_800_000_000.0, "r-1", AuditEvent("push", "ok", subject="user:ann", repository="team/app"))]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening, socket.create_server(("127.0.0.1", 0)) as tcp:
        listening.bind(str(tmp_path / "log"))
        local, remote = (
            SyslogSink(url, "n", "0")
            for url in (f"unix://{tmp_path / 'log'}", f"tcp://127.0.0.1:{tcp.getsockname()[1]}")
        )
        local.write(batch)
        sent = listening.recv(10_000).decode()
        remote.write(batch)
        connection, _ = tcp.accept()
        with connection:
            streamed = connection.recv(10_000).decode()
        local.close()
        remote.close()
    reading, writing = os.pipe()
    StreamSink(writing, "n", "0").write(batch)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        printed = pipe.read()
    assert sent.startswith("<86>registry-proxy[")
    assert streamed.endswith("}\n")
    for text in (sent, streamed, printed):
        event = json.loads(text[text.index("{") :])
        assert (event["action"], event["subject"], event["request_id"]) == ("push", "user:ann", "r-1")
    with pytest.raises(OSError, match=r".*"):
        SyslogSink(f"unix://{tmp_path / 'nothing'}", "n", "0").write(batch)


def _recorded(event: AuditEvent) -> AuditEvent:
    """Return an event in the form in which a sink receives it."""
    sink = Stuck(may_go=True)
    thread = SinkThread("file", sink, RecordingObserver())
    decisions = SinkThread("decisions", Stuck(), RecordingObserver())
    trail = AuditTrail(acts=thread, traffic=thread, decisions=decisions, records_pulls=True)
    with thread.running():
        trail.record(event)
    (taken,) = sink.taken
    return taken.event


def test_text_of_a_caller_is_cut() -> None:
    """No text of an event is longer than 255 characters, in any field: a refusal must not fill the disk."""
    long = "x" * 900_000
    texts = ("subject", "address", "repository", "tag", "digest", "rule")
    longs: dict[str, Any] = dict.fromkeys(texts, long)
    event = _recorded(replace(AuditEvent("login", "refused", detail={"path": long, long: [[long]]}), **longs))
    cut = "x" * 254 + "…"
    assert [getattr(event, name) for name in texts] == [cut] * 6
    assert event.detail == {"path": cut, cut: [[cut]]}
    assert _recorded(AuditEvent("login", "ok", subject="user:ann")) == AuditEvent("login", "ok", subject="user:ann")


def test_no_padding_hides_what_was_changed() -> None:
    """Each field is shortened by itself; a repeated entry of a list takes the room of one."""
    asked = {"password": "***", "groups": ["dev"] * 100_000 + ["admins"], "label": "x" * 100_000, "admin": True}
    event = _recorded(AuditEvent("users.put", "ok", detail={"path": "/admin/v1/users/ann", "asked": asked}))
    kept = {"password": "***", "groups": ["dev", "admins"], "label": "x" * 254 + "…", "admin": True}
    assert event.detail == {"path": "/admin/v1/users/ann", "asked": kept}
    many = _recorded(AuditEvent("groups.put", "ok", detail={"members": [f"u{number}" for number in range(1000)]}))
    assert many.detail["members"] == [f"u{number}" for number in range(100)] + ["and 900 more"]
    long = [f"{number}{'x' * 200}" for number in range(1000)]
    full = _recorded(AuditEvent("groups.put", "ok", detail={"a": long, "b": long, "c": {"d": long}, "admin": True}))
    assert len(json.dumps(full.detail)) <= 8192
    assert (full.detail["c"], full.detail["admin"]) == ({"d": [*long[:10], "and 990 more"]}, True)
    nested = _recorded(AuditEvent("policy.put", "ok", detail={"grants": [{"id": number} for number in range(200)]}))
    assert nested.detail["grants"] == [*({"id": number} for number in range(100)), "and 100 more"]
