"""Small real disks, in a file on a memory disk or served by a program, that can be made to fail or to stall."""

import contextlib
import fcntl
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MIB = 1024 * 1024
_EXT4_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_FLUSH = struct.pack("=I", 2)
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878


@dataclass(frozen=True)
class Disk:
    """An ext4 mounted at ``path``; its image lies on a memory disk, at ``image``."""

    path: Path
    image: Path

    def fill(self, leave_bytes: int = 0) -> None:
        """Fill the file system with a file, until at most the given space is free."""
        with (self.path / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while (free := os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize) > leave_bytes:
                file.write(b"x" * min(65536, free - leave_bytes))
            while not leave_bytes:
                file.write(b"x")

    def stop_writing(self) -> None:
        """Make the device refuse writes from now on, as one that is worn out does."""
        with (self.image.parent / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 65536)

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Make every write wait for the length of a with block, as on a device that hangs; reads go on (fsfreeze)."""
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, _FIFREEZE, 0)
            try:
                yield
            finally:
                fcntl.ioctl(directory, _FITHAW, 0)
        finally:
            os.close(directory)

    def die(self) -> None:
        """Make every call to the file system fail with EIO, as after a fatal error."""
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, _EXT4_IOC_SHUTDOWN, _WITHOUT_FLUSH)
        finally:
            os.close(directory)

    def stop_reading(self, *files: Path) -> None:
        """Make the device fail wholly; the system then has nothing of these files in memory."""
        os.sync()
        os.truncate(self.image, 0)
        self.stop_writing()  # a write would make the rest of the image zeros, which can be read
        for file in files:
            fd = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                with pytest.raises(OSError, match="Input/output error"):
                    os.pread(fd, 1, 0)
            finally:
                os.close(fd)


def _run(*command: str | Path) -> None:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"{command[0]} needs root and a kernel that has it: {result.stderr.strip()}")


def _unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", path], check=True)


@contextlib.contextmanager
def mounted_disk(root: Path, size_mib: int, device_mib: int | None = None) -> Iterator[Disk]:
    """Mount a disk for the length of a with block.

    Args:
        root: an empty directory for all of it.
        size_mib: the size that the file system sees.
        device_mib: the true size of the device under it; None for all that is needed.
    """
    backing, path = root / "backing", root / "disk"
    backing.mkdir(parents=True)
    path.mkdir()
    image = backing / "image"
    size = f"size={device_mib or size_mib + 16}m"
    with contextlib.ExitStack() as stack:
        _run("mount", "-t", "tmpfs", "-o", size, "registry-proxy-test", backing)
        stack.callback(_unmount, backing)
        with image.open("wb") as file:
            file.truncate(size_mib * MIB)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", image)
        _run("mount", "-o", "loop", image, path)
        stack.callback(_unmount, path)
        yield Disk(path, image)


@dataclass(frozen=True)
class StallingDisk:
    """A directory at ``path`` that another process serves, as a server of NFS does; ``program`` is its process."""

    path: Path
    program: int

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """Make every call to it wait for the length of a with block."""
        os.kill(self.program, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.program, signal.SIGCONT)


@contextlib.contextmanager
def mounted_by_program(root: Path) -> Iterator[StallingDisk]:
    """Mount a directory by way of bindfs for the length of a with block; skip the test where that is impossible."""
    if shutil.which("bindfs") is None:
        pytest.skip("bindfs is not installed")
    backing, path = root / "backing", root / "disk"
    backing.mkdir(parents=True)
    path.mkdir()
    program = subprocess.Popen(["bindfs", "-f", backing, path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not path.is_mount():
            if program.poll() is not None:
                pytest.skip(
                    f"bindfs needs root and a kernel that has FUSE: {program.communicate()[1].decode().strip()}"
                )
        yield StallingDisk(path, program.pid)
    finally:
        if path.is_mount():
            _unmount(path)
        program.terminate()
        program.communicate()
