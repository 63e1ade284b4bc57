"""The log of requests: one JSON object a line, written by a thread; lines are dropped rather than waited for."""

import json
import os
import threading

from registry_proxy.tasks import request_id
from registry_proxy.telemetry.access_log import AccessLog


def test_each_request_is_an_object_on_a_line_of_its_own() -> None:
    """All fields, the worker, the request's ID and the time are there; pending lines are written at the end."""
    reader, writer = os.pipe()
    log = AccessLog(writer, "3")
    with log.running():
        token = request_id.set("r-1")
        for number in range(100):
            log({"status": 200, "path": f"/v2/ä\n{number}"})
        request_id.reset(token)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    assert [line["path"] for line in lines] == [f"/v2/ä\n{number}" for number in range(100)]
    assert {(line["worker"], line["request_id"], line["status"]) for line in lines} == {("3", "r-1", 200)}
    assert lines[0]["time"].endswith("+00:00")


def test_lines_of_several_workers_do_not_mix() -> None:
    """Many threads with a log each into one pipe: every line comes out whole."""
    reader, writer = os.pipe()
    lines: list[str] = []

    def read() -> None:
        with os.fdopen(reader, encoding="utf-8") as stream:
            lines.extend(stream)

    reading = threading.Thread(target=read)
    reading.start()
    logs = [AccessLog(writer, str(worker)) for worker in range(4)]

    def work(log: AccessLog) -> None:
        with log.running():
            for number in range(500):
                log({"path": "x" * 300, "number": number})

    workers = [threading.Thread(target=work, args=(log,)) for log in logs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.close(writer)
    reading.join()
    assert len([json.loads(line) for line in lines]) == 2000


def test_a_reader_that_stops_stalls_nobody() -> None:
    """When nobody reads the log, requests go on and lines beyond a bound are lost; the next line counts them."""
    reader, writer = os.pipe()
    log = AccessLog(writer, "0")
    with log.running():
        for number in range(30_000):
            log({"number": number})
        received: list[dict[str, int]] = []

        def read() -> None:
            with os.fdopen(reader, encoding="utf-8") as stream:
                received.extend(json.loads(line) for line in stream)

        reading = threading.Thread(target=read)
        reading.start()
    os.close(writer)
    reading.join()
    assert len(received) < 30_000
    assert len(received) + sum(line.get("dropped_before", 0) for line in received) <= 30_000


def test_a_reader_that_is_gone_is_no_error() -> None:
    """A closed pipe ends only the log."""
    reader, writer = os.pipe()
    os.close(reader)
    log = AccessLog(writer, "0")
    with log.running():
        log({"number": 1})
    os.close(writer)
