"""The property of one node: the lock on its cache, its limits, what its workers inherit."""

import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import sys
from collections.abc import AsyncIterator
from typing import IO

from registry_proxy.config.errors import StartError
from registry_proxy.config.source import ENVIRONMENT_PREFIX
from registry_proxy.files.lock import try_lock

ADMIN_PASSWORD_VARIABLE = "REGISTRY_PROXY_ADMIN_PASSWORD"  # noqa: S105 - the name of the variable
_ALLOCATOR = (("MALLOC_MMAP_THRESHOLD_", -3, 4 << 20), ("MALLOC_ARENA_MAX", -8, 2))
"""The variable, the parameter of mallopt(3), and what it is set to."""

_STDERR = 2
_LOCK_TRIES = 20
_LOCK_PAUSE_SECONDS = 0.1


@contextlib.asynccontextmanager
async def locked_cache(path: str) -> AsyncIterator[IO[str]]:
    """Make the cache directory, and hold it against a second service.

    The workers inherit the lock: while one of them is still dying after its supervisor was killed, nobody else may
    take what it writes for left-overs. Their end takes a moment at most, hence the patience.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        lock = os.fdopen(
            os.open(os.path.join(path, "node.lock"), os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="ascii"
        )
    except OSError as error:
        raise StartError(f"cannot use the cache directory {path}: {error.strerror}") from None
    with lock:
        for _ in range(_LOCK_TRIES):
            if try_lock(lock.fileno()):
                break
            await asyncio.sleep(_LOCK_PAUSE_SECONDS)
        else:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            message = f"{path} belongs to a registry-proxy that is running (process {holder}): one cache, one service"
            raise StartError(message)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield lock


def open_standard_streams() -> None:
    """Put /dev/null where this process was started with its input, output or errors closed.

    The files and sockets that it opens would have those numbers else, and be written to by whatever prints.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - its signature
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def raise_file_limit() -> None:
    """Let this process and its copies open as many files as the machine allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # the limit we have is what we live with
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def empty_directory(path: str) -> None:
    """Remove the samples of an earlier run: the counters start anew with the processes."""
    try:
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot write to {path}: {error.strerror}") from None


def forget_configuration() -> None:
    """Remove the configuration from the environment of this process: a worker gets it by the channel."""
    for name in list(os.environ):
        if name.startswith(ENVIRONMENT_PREFIX) or name == ADMIN_PASSWORD_VARIABLE:
            del os.environ[name]


def give_memory_back() -> None:
    """Have glibc give large blocks back to the machine, where the environment does not say how (mallopt(3)).

    It raises its threshold to the size of what was freed last, and from then on keeps the 19 MiB of each password hash,
    in an arena for each thread: 40 MiB of each worker that has hashed passwords.
    """
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for variable, parameter, value in _ALLOCATOR:
            if variable not in os.environ:
                mallopt(parameter, value)
