"""The chain of the audit log: every kind of change is named, and nothing else is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from registry_proxy.audit.chain import Head, SignedHead, has_line, list_chains, verify_chain
from registry_proxy.audit.trail import Taken
from registry_proxy.audit.writer import ChainWriter, Retention
from registry_proxy.ports.events import AuditEvent

HUGE = Retention(1 << 20, 3600, 1 << 30, 3600)
SMALL = Retention(1000, 3600, 4000, 3600)


def events(count: int) -> list[Taken]:
    """Return different events."""
    return [
        Taken(1_800_000_000.0 + i, f"r-{i}", AuditEvent("login", "ok", subject=f"user:{i:04d}")) for i in range(count)
    ]


def written(directory: Path, count: int, retention: Retention = HUGE) -> Head:
    """Write a number of events, one at a time; return the head."""
    writer = ChainWriter(str(directory), "node", "0", retention)
    for taken in events(count):
        writer.write([taken])
    writer.flush()
    assert writer.synced is not None
    return writer.synced


def found(directory: Path, head: Head | None) -> list[str]:
    """Return the faults of the log."""
    signed = None if head is None else SignedHead(head, 0.0)
    return [fault.text for fault in verify_chain(list_chains(str(directory))["0"], signed).faults]


Lines = list[bytes]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda lines: [*lines[:2], lines[2].replace(b"user:0001", b"user:0009"), *lines[3:]],
            ["line 3 was changed, or line 2 was replaced"],
        ),
        (lambda lines: lines[:2] + lines[3:], ["line 3 is missing before line 4"]),
        (lambda lines: lines[:2] + lines[5:], ["lines 3 to 5 are missing before line 6"]),
        (
            lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
            ["line 3 is missing before line 4", "line 3 stands in the wrong place, or twice"],
        ),
        (lambda lines: [*lines[:4], lines[3], *lines[4:]], ["line 4 stands in the wrong place, or twice"]),
        (lambda lines: lines[:4], ["the end is cut: lines 5 to 11 were signed, and are missing"]),
        (lambda lines: [*lines[:4], lines[4][:50]], ["the end is cut: lines 5 to 11 were signed, and are missing"]),
        (lambda lines: [*lines[:4], b"{}\n", *lines[4:]], ["this is no line of the audit log"]),
        (lambda lines: lines, []),
    ],
    ids=["edited", "deleted", "several deleted", "swapped", "doubled", "cut", "cut in a line", "inserted", "as it was"],
)
def test_each_change_is_named(tmp_path: Path, change: Callable[[Lines], Lines], expected: list[str]) -> None:
    """Edited, deleted, moved, inserted and cut lines are named by number, and no others."""
    head = written(tmp_path, 10)
    path = tmp_path / "0-000000000001.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    assert found(tmp_path, head) == expected


def test_a_chain_that_is_forged_as_a_whole_is_not_the_signed_one(tmp_path: Path) -> None:
    """A chain rewritten as a whole with right hashes does not match the signed head."""
    head = written(tmp_path / "true", 10)
    writer = ChainWriter(str(tmp_path / "forged"), "node", "0", HUGE)
    writer.write(events(11)[1:])
    assert found(tmp_path / "forged", head) == ["line 11 is not the one that was signed"]
    assert not has_line(list_chains(str(tmp_path / "forged"))["0"], head)
    assert has_line(list_chains(str(tmp_path / "true"))["0"], head)


@pytest.mark.parametrize("cut", range(1, 200, 7))
def test_a_torn_end_is_no_tampering_and_the_chain_goes_on(tmp_path: Path, cut: int) -> None:
    """A crash at any byte of an unsigned line leaves a log that verifies and continues."""
    head = written(tmp_path, 3)
    path = tmp_path / "0-000000000001.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines(keepends=True)[-1][:cut])
    assert found(tmp_path, head) == []
    assert written(tmp_path, 2).seq == head.seq + 2
    assert found(tmp_path, head) == []


def test_a_crash_before_the_first_line_of_a_file_is_repaired(tmp_path: Path) -> None:
    """A new file that is still empty is begun again, after the one before it."""
    head = written(tmp_path, 3)
    (tmp_path / "0-000000000005.jsonl").write_bytes(b'{"seq":5,"ti')
    assert written(tmp_path, 1).seq == head.seq + 1
    assert found(tmp_path, head) == []


def test_retention_is_no_tampering_but_removal_is(tmp_path: Path) -> None:
    """Rotation keeps at most its limit and verifies; a file removed by somebody else is named, at either end."""
    head = written(tmp_path, 60, SMALL)
    files = sorted(tmp_path.iterdir())
    assert sum(file.stat().st_size for file in files) <= SMALL.total_bytes
    assert files[0].name != "0-000000000001.jsonl"
    assert found(tmp_path, head) == []
    second = files[1].read_bytes()
    files[1].unlink()
    assert any("are missing before line" in text for text in found(tmp_path, head))
    files[1].write_bytes(second)
    assert found(tmp_path, head) == []
    files[0].unlink()
    assert any("a file was removed, not by retention" in text for text in found(tmp_path, head))
