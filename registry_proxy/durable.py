"""What must still be there after the power fails."""

import os


def sync_directory(path: str) -> None:
    """Write a directory to the disk: a name made in it is lost with the power until then, however safe its content.

    Raises:
        OSError: the disk does not take it.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
