"""Room for unfinished uploads: what each owner, and all of them together, may hold on the disk of a node.

uploads are files below ``spool``, in one of 256 directories by their owner:
<2 hex>/<owner>-<session>.part    the bytes of an upload that this node has from its beginning
<2 hex>/<owner>-<session>.note    how its sessions at the replicas are cancelled; without a part they alone have it
<2 hex>/<owner>-<session>.gone    the same of an upload that was removed here: it is still to be cancelled there

An owner costs others nothing: only the directory of its own is read when an upload grows, and how much lies in each
directory stands in a page that all workers map. Each reading of a directory corrects its number.
"""

import contextlib
import hashlib
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

from registry_proxy.cache.layout import CachePaths
from registry_proxy.files.lock import lock_tried, locked
from registry_proxy.files.shared_page import SharedPage
from registry_proxy.ports.errors import CacheUnavailableError

ABANDONED_SECONDS = 300.0
"""An upload that no request has written to for this long gives way where room is short."""

_IDLE_SECONDS = 6 * 3600.0
_SHARE_OF_ONE = 4
_SHARE_OF_ALL = 2
_MAX_SESSIONS = 1000
_MAX_SESSIONS_WITH_NOTES = 2 * _MAX_SESSIONS
"""Of those without a part, which are beyond the share, the oldest ends then: a note is a file as well."""

_FRUITLESS_SECONDS = 10.0
"""Time for which the other owners are not looked at again when none of them had anything abandoned."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
"""How the directory of an owner is opened: its lock keeps every other worker and thread from its number."""

_BUCKETS = 256
_SUMS = struct.Struct(f"={_BUCKETS}q")
_SUM = struct.Struct("=q")


def owner_of(subject: str) -> str:
    """Return the owner's name in names of files."""
    return hashlib.blake2b(subject.encode(), digest_size=10).hexdigest()


@dataclass(slots=True)
class _Upload:
    """One upload in a directory. ``size_bytes`` of its part; ``used_at`` is when it was written to last."""

    stem: str
    size_bytes: int = 0
    used_at: float = 0.0
    has_part: bool = False

    @property
    def owner(self) -> str:
        return os.path.basename(self.stem).partition("-")[0]


class UploadRoom:
    """Decides whether an upload may grow, and makes room for it among those that nobody goes on with.

    Its methods may wait for the disk or for another worker: they are called in threads, but for the properties,
    ``count_now`` and what concerns one upload alone.

    Args:
        paths: the cache.
        max_size_bytes: of the cache: one owner may have a quarter of it in unfinished uploads, all of them a half.
    """

    def __init__(self, paths: CachePaths, max_size_bytes: int) -> None:
        self._paths = paths
        self._share_bytes = max_size_bytes // _SHARE_OF_ONE
        self._share_of_all_bytes = max_size_bytes // _SHARE_OF_ALL
        self._fruitless_until = 0.0
        self._sums = SharedPage.at(paths.upload_sums, _SUMS.size)

    def close(self) -> None:
        self._sums.close()

    @property
    def total_bytes(self) -> int:
        """Bytes of all unfinished uploads of the node."""
        return sum(_SUMS.unpack_from(self._sums.memory))

    def admit(self, owner: str, session_id: str, size_bytes: int) -> None:
        """Let an upload grow to a size, if need be in the place of others that were abandoned.

        Raises:
            CacheUnavailableError: the owner's share, or that of all uploads, is used up.
            OSError: the disk does not answer.
        """
        stem = self._paths.upload_stem(owner, session_id)
        bucket = self._paths.upload_bucket(owner)
        with locked(bucket, _DIRECTORY):
            uploads = [each for each in _scan(bucket) if each.stem != stem]
            own = sorted((each for each in uploads if each.owner == owner), key=lambda each: each.used_at)
            held_bytes, count = sum(each.size_bytes for each in own), len(own)
            for each in own:
                if held_bytes + size_bytes <= self._share_bytes and count < _MAX_SESSIONS:
                    break
                is_one_too_many = count >= _MAX_SESSIONS_WITH_NOTES and not each.has_part
                if _remove_if_abandoned(each, 0 if is_one_too_many else ABANDONED_SECONDS):
                    held_bytes, count = held_bytes - each.size_bytes, count - 1
                    uploads.remove(each)
            is_over = held_bytes + size_bytes > self._share_bytes or count >= _MAX_SESSIONS
            counted = sum(each.size_bytes for each in uploads) + (_size_of(stem) if is_over else size_bytes)
            self._write(owner, counted)
        if is_over:
            raise CacheUnavailableError("the unfinished uploads of its subject take up their share of the cache")
        excess = self.total_bytes - self._share_of_all_bytes
        if excess > 0 and self.remove_abandoned(excess) < excess:
            self.count(owner, _size_of(stem) - size_bytes)
            raise CacheUnavailableError("all unfinished uploads together take up their share of the cache")

    def count(self, owner: str, grown_bytes: int) -> None:
        """Note that an upload grew, or became smaller, since it was admitted."""
        with contextlib.suppress(OSError), locked(self._paths.upload_bucket(owner), _DIRECTORY):
            self._write(owner, max(0, self._read(owner) + grown_bytes))

    def count_now(self, owner: str, grown_bytes: int) -> bool:
        """Do the same without waiting; False when another worker or thread is at the number just now."""
        with contextlib.suppress(OSError), lock_tried(self._paths.upload_bucket(owner), _DIRECTORY) as is_free:
            if not is_free:
                return False
            self._write(owner, max(0, self._read(owner) + grown_bytes))
        return True

    def remove_abandoned(self, size_bytes: int) -> int:
        """Remove the oldest uploads that were abandoned, whosever they are; return how many bytes became free."""
        if time.monotonic() < self._fruitless_until:
            return 0
        freed_bytes = 0
        for each in sorted(self._all(), key=lambda each: each.used_at):
            if freed_bytes >= size_bytes:
                break
            if _remove_if_abandoned(each, ABANDONED_SECONDS):
                freed_bytes += each.size_bytes
                self.count(each.owner, -each.size_bytes)
        if not freed_bytes:
            self._fruitless_until = time.monotonic() + _FRUITLESS_SECONDS
        return freed_bytes

    def sweep(self) -> int:
        """Remove the uploads that nobody wrote to for six hours; return how many. The numbers are right afterwards."""
        removed = 0
        for each in self._all():
            if each.has_part or time.time() - each.used_at > _IDLE_SECONDS:
                removed += _remove_if_abandoned(each, _IDLE_SECONDS)
        for bucket in self._buckets():
            owner = os.path.basename(bucket)
            with contextlib.suppress(OSError), locked(bucket, _DIRECTORY):
                self._write(owner, sum(each.size_bytes for each in _scan(bucket)))
        return removed

    # ------------------------------------------------------------ notes

    def write_note(self, owner: str, session_id: str, note: bytes) -> None:
        """Keep how an upload is cancelled at the replicas; without room for that they have to do so by themselves."""
        with contextlib.suppress(OSError):
            self._make_bucket(owner)
            path = f"{self._paths.upload_stem(owner, session_id)}.note"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, note)
            finally:
                os.close(fd)

    def drop_note(self, owner: str, session_id: str) -> None:
        """Forget it: the upload goes on, or is over."""
        with contextlib.suppress(OSError):
            os.unlink(f"{self._paths.upload_stem(owner, session_id)}.note")

    def take_gone(self) -> list[bytes]:
        """Return the notes of the uploads that were removed, each once."""
        notes = []
        for bucket in self._buckets():
            for name in os.listdir(bucket):
                if name.endswith(".gone"):
                    with contextlib.suppress(OSError):
                        with open(f"{bucket}/{name}", "rb") as file:
                            notes.append(file.read())
                        os.unlink(f"{bucket}/{name}")
        return notes

    # ------------------------------------------------------------ directories and their numbers

    def open_part(self, owner: str, session_id: str) -> int:
        """Make the file of an upload. Raises OSError."""
        self._make_bucket(owner)
        path = self._paths.upload(owner, session_id)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def _make_bucket(self, owner: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._paths.upload_bucket(owner))

    def _buckets(self) -> list[str]:
        return [entry.path for entry in os.scandir(self._paths.uploads) if entry.is_dir()]

    def _all(self) -> Iterator[_Upload]:
        for bucket in self._buckets():
            yield from _scan(bucket)

    def _read(self, owner: str) -> int:
        size_bytes: int
        (size_bytes,) = _SUM.unpack_from(self._sums.memory, int(owner[:2], 16) * _SUM.size)
        return size_bytes

    def _write(self, owner: str, size_bytes: int) -> None:
        self._sums.write(int(owner[:2], 16) * _SUM.size, _SUM.pack(size_bytes))


def _scan(bucket: str) -> list[_Upload]:
    """Return the uploads in a directory; what vanishes meanwhile is left out."""
    found: dict[str, _Upload] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(bucket) as entries:
        for entry in entries:
            stem, _, kind = entry.path.rpartition(".")
            if kind not in {"part", "note"}:
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                upload = found.setdefault(stem, _Upload(stem))
                upload.used_at = max(upload.used_at, status.st_mtime)
                if kind == "part":
                    upload.has_part, upload.size_bytes = True, status.st_size
    return list(found.values())


def _size_of(stem: str) -> int:
    try:
        return os.stat(f"{stem}.part").st_size
    except OSError:
        return 0


def _remove_if_abandoned(upload: _Upload, idle_seconds: float) -> bool:
    """Remove an upload that no request is writing to, and none has for a while; its note says that it is gone."""
    if time.time() - upload.used_at <= idle_seconds:
        return False
    try:
        if not upload.has_part:
            os.rename(f"{upload.stem}.note", f"{upload.stem}.gone")
            return True
        part = f"{upload.stem}.part"
        with lock_tried(part, os.O_RDONLY) as is_free:
            if not is_free or time.time() - os.stat(part).st_mtime <= idle_seconds:
                return False
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{upload.stem}.note", f"{upload.stem}.gone")
            os.unlink(part)
    except OSError:  # it has ended
        return False
    return True
