"""Files that others see whole or not at all, and that are still there after the power has failed."""

import contextlib
import errno
import filecmp
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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


def write_all(fd: int, content: bytes) -> None:
    """Write all of it, where the system takes a part at a time, too. Raises OSError."""
    while content:
        content = content[os.write(fd, content) :]


def _replace(temporary: str, path: str) -> None:
    os.replace(temporary, path)
    sync_directory(os.path.dirname(path) or ".")


@contextmanager
def atomic_file(
    path: str,
    publish: Callable[[str, str], None] = _replace,
    *,
    temporary: str | None = None,
    is_synced: bool = True,
) -> Iterator[int]:
    """Give a temporary file to write, for its owner alone; at the end of the with block it takes the place of another.

    Args:
        path: its name in the end.
        publish: gives it that name, and removes the temporary one.
        temporary: its name until then; by default a new one beside ``path``.
        is_synced: whether its content is written to the disk before it gets its name.

    Raises:
        OSError: the disk does not take it. Nothing is left then, as after any other error in the block.
    """
    temporary = temporary or _beside(path)
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            yield fd
            if is_synced:
                os.fsync(fd)
        finally:
            os.close(fd)
        publish(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_file(path: str, content: bytes) -> None:
    """Write a file, whole and for its owner alone, in the place of one that is there.

    Raises:
        OSError: the disk does not take it.
    """
    with atomic_file(path) as fd:
        write_all(fd, content)


def write_new_file(path: str, content: bytes) -> None:
    """Write a file as ``write_file`` does; do nothing when it is there already."""
    with atomic_file(path, _link_unless_there) as fd:
        write_all(fd, content)


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
            sync_directory(os.path.dirname(target))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            temporary = _beside(target)
            with atomic_file(target, temporary=temporary):
                shutil.copy2(source, temporary)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(source)


def _link_unless_there(temporary: str, path: str) -> None:
    # A link appears with all its content, and fails when another process was faster.
    with contextlib.suppress(FileExistsError):
        os.link(temporary, path)
    os.unlink(temporary)
    sync_directory(os.path.dirname(path) or ".")


def _beside(path: str) -> str:
    """Return a name in the same directory that no other process or thread uses."""
    return f"{path}.{os.urandom(8).hex()}"
