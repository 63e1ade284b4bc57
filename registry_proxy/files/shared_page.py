"""A file that several processes map."""

import mmap
import os


class SharedPage:
    """Read from ``memory``, written by a system call.

    A store to the memory of a file whose disk hangs holds up every thread of the process, because the thread that makes
    it keeps the interpreter's lock; a call holds up its own thread alone. What a disk does not take any more still
    reaches the other processes.

    Args:
        fd: of a file, open for reading and writing; belongs to the page from then on.
        size_bytes: of what is mapped.

    Raises:
        OSError: there is no room for it; ``fd`` is closed.
    """

    def __init__(self, fd: int, size_bytes: int = mmap.PAGESIZE) -> None:
        self.fd = fd
        try:
            os.posix_fallocate(fd, 0, size_bytes)  # a hole written to on a full disk is a SIGBUS, not an ENOSPC
            self.memory = mmap.mmap(fd, size_bytes)
        except BaseException:
            os.close(fd)
            raise

    def write(self, offset: int, content: bytes) -> None:
        """Replace bytes of the page."""
        try:
            os.pwrite(self.fd, content, offset)
        except OSError:
            self.memory[offset : offset + len(content)] = content

    def close(self) -> None:
        """Unmap it; twice is fine."""
        if not self.memory.closed:
            self.memory.close()
            os.close(self.fd)
