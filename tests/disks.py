"""Small real disks: a file system in a file, on a memory disk that can be made to fail under it."""

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MIB = 1024 * 1024
_EXT4_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_FLUSH = struct.pack("=I", 2)


@dataclass(frozen=True)
class Disk:
    """An ext4 mounted at ``path``; what it is made of lies on a memory disk, in ``image``."""

    path: Path
    image: Path

    def fill(self, leave_bytes: int = 0) -> None:
        """Fill the file system with a file, until no more is free than said."""
        with (self.path / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while (free := os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize) > leave_bytes:
                file.write(b"x" * min(65536, free - leave_bytes))
            while not leave_bytes:
                file.write(b"x")

    def stop_writing(self) -> None:
        """Have the device refuse writes from now on, as one that is worn out does."""
        with (self.image.parent / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 65536)

    def die(self) -> None:
        """Have every call to the file system fail with EIO, as after an error that it cannot live with."""
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, _EXT4_IOC_SHUTDOWN, _WITHOUT_FLUSH)
        finally:
            os.close(directory)

    def stop_reading(self, *files: Path) -> None:
        """Have the device fail wholly; of these files the system has nothing in memory then."""
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
        size_mib: what the file system believes to have.
        device_mib: what the device under it holds in fact; None for all that is needed.
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
