"""Progress of a content in the making, and the readers that follow it within this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from registry_proxy.ports.errors import CacheUnavailableError, FillFailedError, FillLostError, UpstreamUnavailableError
from registry_proxy.ports.names import CacheResult
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.tasks import Wakeup

HOLD_BACK_BYTES = 64 * 1024
"""The tail that no reader gets before the digest of the whole was right; smaller content is verified before it is
announced at all."""


class FillProgress:
    """The watermark of one file in the making. It ends either verified or failed.

    Once it was handed to a reader its bytes may be with a client: they are never replaced by others under it.
    """

    def __init__(self) -> None:
        self.size_bytes: int | None = None
        self.verified = False
        self.result = CacheResult.MISS
        self.handed_out = False
        self._fd = -1
        self._users = 0
        self._written_bytes = 0
        self._error: Exception | None = None
        self._changed = Wakeup()

    @property
    def available_bytes(self) -> int:
        if self.verified:
            return self._written_bytes
        if self.size_bytes is None:
            return 0
        return max(0, min(self._written_bytes, self.size_bytes - HOLD_BACK_BYTES))

    @property
    def ended(self) -> bool:
        return self.verified or self._error is not None

    def take_file(self, fd: int) -> None:
        """Own the descriptor that readers will duplicate; one that it had is closed."""
        self._close_file()
        self._fd = fd

    def reset(self) -> None:
        """Begin anew with another file, for readers that wait without any byte yet."""
        self.size_bytes = None
        self._written_bytes = 0

    def advance(self, written_bytes: int) -> None:
        """Say how much of the file is written."""
        self._written_bytes = written_bytes
        self._changed.notify()

    def verify(self, size_bytes: int) -> None:
        """Say that the digest of the whole was right: everything may be read."""
        self.size_bytes = self._written_bytes = size_bytes
        self.verified = True
        self._changed.notify()

    def fail(self, error: Exception) -> None:
        """Say that it will never be complete; what was verified stays good."""
        if not self.ended:
            self._error = error
            self._changed.notify()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the file open while somebody may still duplicate its descriptor."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0:
                self._close_file()

    async def open_reader(self) -> "FillReader":
        """Wait until it can be served, and open it.

        Raises:
            RegistryError, UpstreamUnavailableError, CacheUnavailableError, FillFailedError: as ``BlobCache`` says.
        """
        with self.held():
            while not self._can_be_served():
                await self._changed.wait()
            self.handed_out = True
            return FillReader(os.dup(self._fd), self)

    async def wait_beyond(self, offset: int) -> None:
        """Return when ``available_bytes > offset``, or all is there; raise FillFailedError when it will not be."""
        while self.available_bytes <= offset and not self.verified:
            if self._error is not None:
                is_lost = isinstance(self._error, FillLostError | CacheUnavailableError)
                kind = FillLostError if is_lost else FillFailedError
                raise kind(f"the fill ended without its content: {self._error}") from self._error
            await self._changed.wait()

    def _can_be_served(self) -> bool:
        error = self._error
        if isinstance(error, RegistryError | UpstreamUnavailableError | CacheUnavailableError):
            raise error
        if isinstance(error, FillLostError):
            raise CacheUnavailableError(str(error)) from error
        if error is not None:
            raise FillFailedError(str(error)) from error
        return self.verified or (self.size_bytes is not None and self.size_bytes > HOLD_BACK_BYTES)

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class FillReader:
    """A ``BlobReader`` over content in the making."""

    def __init__(self, fd: int, progress: FillProgress) -> None:
        self.fd = fd
        self._progress = progress

    @property
    def size_bytes(self) -> int:
        return self._progress.size_bytes or 0

    @property
    def available_bytes(self) -> int:
        return self._progress.available_bytes

    @property
    def verified(self) -> bool:
        return self._progress.verified

    async def wait_beyond(self, offset: int) -> None:
        await self._progress.wait_beyond(offset)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class CommittedReader:
    """A ``BlobReader`` over content that is complete and verified."""

    __slots__ = ("available_bytes", "fd", "size_bytes")
    verified = True

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self.size_bytes = self.available_bytes = size_bytes

    async def wait_beyond(self, offset: int) -> None:
        """Return at once: nothing more will come, and nothing is missing."""

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
