"""Files that are still there after the power has failed."""

import contextlib
import errno
import filecmp
import os
import shutil
from collections.abc import Callable


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


def write_file(path: str, content: bytes) -> None:
    """Write a file, whole and for its owner alone, in the place of one that is there.

    Raises:
        OSError: the disk does not take it.
    """
    _write(path, content, os.replace)


def write_new_file(path: str, content: bytes) -> None:
    """Write a file as ``write_file`` does; do nothing when it is there already."""
    _write(path, content, _link_unless_there)


def _write(path: str, content: bytes, publish: Callable[[str, str], None]) -> None:
    temporary = f"{path}.{os.urandom(8).hex()}"
    try:
        with open(temporary, "xb", opener=_open_private) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    sync_directory(os.path.dirname(path) or ".")


def move_file(source: str, target: str) -> None:
    """Move a file, also to another file system: whenever that is cut off, it is whole at one of the two at least.

    Raises:
        FileExistsError: there is another one at the target.
        OSError: the disk does not take it.
    """
    if os.path.lexists(target):
        if not filecmp.cmp(source, target, shallow=False):
            raise FileExistsError(errno.EEXIST, f"is there already, and differs from {source}", target)
    else:
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy_file(source, target)
        sync_directory(os.path.dirname(target))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(source)


def _copy_file(source: str, target: str) -> None:
    temporary = f"{target}.{os.urandom(8).hex()}"
    try:
        shutil.copy2(source, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.rename(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _link_unless_there(temporary: str, path: str) -> None:
    # A link appears with all its content, and fails when another process was faster.
    with contextlib.suppress(FileExistsError):
        os.link(temporary, path)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
