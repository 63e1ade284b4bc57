"""A worker that hangs with the disk of its cache."""

import subprocess
import sys
from pathlib import Path

import pytest

_WORKER = """
import sys, threading, types
from registry_proxy.node import stuck

_, mark, state = sys.argv
looks, goes_on = threading.Semaphore(0), threading.Semaphore(0)
stuck.time = types.SimpleNamespace(sleep=lambda _: (looks.release(), goes_on.acquire()))
loop = stuck.StuckLoop(mark, lambda: state == "is replaced")
loop.start()
for _ in range(6):
    looks.acquire()
    if state != "hangs":
        loop.beat()
    goes_on.release()
looks.acquire()
print("goes on")
"""
"""The main thread stands for the loop. It hangs until enough looks at it, and then goes on."""


@pytest.mark.parametrize(
    ("state", "is_silent", "ends"),
    [
        ("hangs", True, True),
        ("is replaced", True, True),
        ("lives", True, False),
        ("hangs", False, False),
        ("is replaced", False, False),
    ],
)
def test_it_ends_before_it_goes_on(tmp_path: Path, state: str, *, is_silent: bool, ends: bool) -> None:
    """Others may have repeated its work, so the worker ends. While the disk answers, it goes on."""
    mark = tmp_path / "mark"
    if is_silent:
        mark.touch()
    command = [sys.executable, "-c", _WORKER, str(mark), state]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == ((-9, "") if ends else (0, "goes on\n")), result.stderr
