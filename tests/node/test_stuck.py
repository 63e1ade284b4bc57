"""A worker whose loop hangs in a call to a disk that is silent."""

import subprocess
import sys
from pathlib import Path

import pytest

_HANGS = """
import os, sys
from registry_proxy.node import stuck
stuck._LOOK_SECONDS = 0.05
loop = stuck.StuckLoop(sys.argv[1])
loop.start()
print("hangs", flush=True)
sys.stdin.read(1)  # as a call to the disk: nothing else runs, and it goes on when told to
print("goes on", flush=True)
"""


@pytest.mark.parametrize("is_silent", [True, False], ids=["disk is silent", "disk answers"])
def test_it_ends_before_it_goes_on(tmp_path: Path, *, is_silent: bool) -> None:
    """What it was doing may have been done again by others. A loop that hangs for another reason is left alone."""
    mark = tmp_path / "mark"
    if is_silent:
        mark.touch()
    command = [sys.executable, "-c", _HANGS, str(mark)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        if is_silent:
            assert process.wait(30) == -9
        output, _ = process.communicate("x")
    assert output == ("" if is_silent else "goes on\n")
