"""Contents and last tags of each repository: small files, seen by every worker of the node at once.

Presence of the file is the holding; its mtime is when that was last confirmed. A component of a repository never
starts with "_", so the directories below cannot clash with a repository's own components.
"""

import contextlib
import json
import logging
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from registry_proxy.cache.layout import LOCK_STRIPES, CachePaths, age_seconds, write_small_file
from registry_proxy.files.lock import locked
from registry_proxy.files.shared_page import SharedPage
from registry_proxy.ports.content import CachedTag, Holding
from registry_proxy.ports.names import ContentKind, RoutedRepository, parse_routed
from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, parse_digest

_log = logging.getLogger(__name__)
_MAX_FILE_BYTES = 4096
_SIZE_MAX = 1 << 62
_REMEMBERED_HOLDINGS = 4096
_UNKNOWN_UNTIL_NS, _DELETED = range(2)
_DIGEST_NAME = re.compile(r"[a-z0-9]+-[0-9a-f]+")
_DIRECTORIES = {ContentKind.BLOB: "_blobs", ContentKind.MANIFEST: "_manifests"}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file of holding as it was read, and the stamp by which to see that it is still that file."""

    path: str
    stamp: "_Stamp"
    descriptor: Descriptor


_Stamp = tuple[int, int, int, int]


class FileHoldings:
    """Implements ``ports.content.Holdings`` under ``repositories/`` of the cache directory.

    A full disk is no error here: a holding that is not remembered is asked for again. On a disk that keeps what must be
    forgotten, every worker of the node takes all that was remembered until then for unknown.
    """

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        self._paths = CachePaths(os.fspath(path))
        self._repositories = f"{self._paths.root}/repositories"
        self._entries: dict[tuple[str, str, ContentKind, Digest], _Entry] = {}
        # Numbers: what was remembered until then is unknown, 0 when all is well; from _DELETED on how much was ever
        # deleted in the repositories of each lock, so that who deletes has others forget next to nothing.
        self._page = _open_shared_page(f"{self._paths.root}/unknown")
        self._shared = memoryview(self._page.memory).cast("Q")

    def find(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> Holding | None:
        key = (routed.upstream, routed.repository, kind, digest)
        entry = self._entries.get(key)
        if entry is not None:
            # What a digest means in a repository does not change, but whether it is there does, in any worker: one
            # stat tells, at a tenth of what opening and reading costs.
            try:
                status = os.stat(entry.path)
            except OSError:
                del self._entries[key]
                return None
            if _stamp(status) == entry.stamp and status.st_mtime_ns > self._shared[_UNKNOWN_UNTIL_NS]:
                return Holding(entry.descriptor, age_seconds(status.st_mtime_ns))
        entry = _read_entry(self._entry_path(routed, kind, digest), digest)
        if entry is None or entry.stamp[0] <= self._shared[_UNKNOWN_UNTIL_NS]:
            self._entries.pop(key, None)
            return None
        if len(self._entries) >= _REMEMBERED_HOLDINGS:
            self._entries.clear()  # names come from callers: memory must stay bounded
        self._entries[key] = entry
        return Holding(entry.descriptor, age_seconds(entry.stamp[0]))

    def _set_shared(self, number: int, value: int) -> None:
        self._page.write(number * self._shared.itemsize, value.to_bytes(self._shared.itemsize, sys.byteorder))

    def moment(self, routed: RoutedRepository) -> int:
        return self._shared[_DELETED + _stripe(routed)]

    def _count_deletion(self, routed: RoutedRepository) -> None:
        self._set_shared(_DELETED + _stripe(routed), self.moment(routed) + 1)

    def remember(
        self, routed: RoutedRepository, kind: ContentKind, descriptor: Descriptor, *, asked_at: int | None = None
    ) -> None:
        document = {"media_type": descriptor.media_type, "size": descriptor.size_bytes, "pushed": asked_at is None}
        self._write(self._entry_path(routed, kind, descriptor.digest), document)
        if asked_at is not None and asked_at != self.moment(routed):
            # Looked at after writing: who deletes counts first and removes then, so one of the two sees the other.
            self.forget(routed, kind, descriptor.digest)

    def forget(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> None:
        self._unlink(self._entry_path(routed, kind, digest))

    def end(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> None:
        with self._locked(routed):
            self._count_deletion(routed)
        self.forget(routed, kind, digest)

    def manifests_of(self, routed: RoutedRepository) -> list[Digest]:
        known = []
        for digest in self._digests(routed, ContentKind.MANIFEST):
            with contextlib.suppress(FileNotFoundError):  # forgotten at this moment
                known.append((os.stat(self._entry_path(routed, ContentKind.MANIFEST, digest)).st_mtime_ns, digest))
        return [digest for _, digest in sorted(known, key=lambda each: each[0], reverse=True)]

    def has_tag_on(self, routed: RoutedRepository, digest: Digest) -> bool:
        return any(cached.digest == digest for _, cached in self._cached_tags(routed))

    def _cached_tags(self, routed: RoutedRepository) -> Iterator[tuple[Tag, CachedTag]]:
        for name in _names(f"{self._repositories}/{routed}/_tags"):
            cached = self.find_tag(routed, Tag(name))
            if cached is not None:
                yield Tag(name), cached

    def contents_of(self, upstream: str, kind: ContentKind) -> Iterator[tuple[Repository, Digest]]:
        """Give the contents of a kind that repositories of an upstream are known to hold; in a thread."""
        for routed in self.repositories():
            if routed.upstream == upstream:
                for digest in self._digests(routed, kind):
                    yield routed.repository, digest

    def forget_answers(self, upstream: str, kind: ContentKind) -> None:
        """Forget what replicas of an upstream said that its repositories hold, not what was pushed; in a thread."""
        for repository, digest in self.contents_of(upstream, kind):
            routed = RoutedRepository(upstream, repository)
            found = _read(self._entry_path(routed, kind, digest))
            if found is not None and not found[0].get("pushed"):
                self.forget(routed, kind, digest)

    def find_tag(self, routed: RoutedRepository, tag: Tag) -> CachedTag | None:
        found = _read(self._tag(routed, tag))
        if found is None or found[1].st_mtime_ns <= self._shared[_UNKNOWN_UNTIL_NS]:
            return None
        document, changed_at_ns = found[0], found[1].st_mtime_ns
        try:
            descriptor = _descriptor(document, parse_digest(str(document.get("digest"))))
        except RegistryError:
            return None
        if descriptor is None:
            return None
        recorded = document.get("recorded")
        return CachedTag(descriptor, age_seconds(changed_at_ns), recorded, document.get("nonce"))

    def remember_tag(
        self,
        routed: RoutedRepository,
        tag: Tag,
        descriptor: Descriptor,
        *,
        recorded: int | None,
        unless_changed_from: object,
    ) -> bool:
        with self._locked(routed):
            current = self.find_tag(routed, tag)
            if (None if current is None else current.version) != unless_changed_from:
                return False
            self._write_tag(routed, tag, descriptor, recorded)
            return True

    def move_tag(self, routed: RoutedRepository, tag: Tag, descriptor: Descriptor, *, recorded: int) -> None:
        with self._locked(routed):
            self._write_tag(routed, tag, descriptor, recorded)

    def forget_tag(self, routed: RoutedRepository, tag: Tag) -> None:
        with self._locked(routed):
            self._unlink(self._tag(routed, tag))

    def end_tag(self, routed: RoutedRepository, tag: Tag) -> None:
        with self._locked(routed):
            self._count_deletion(routed)
            self._unlink(self._tag(routed, tag))

    def doubt_all(self) -> None:
        self._set_shared(_UNKNOWN_UNTIL_NS, time.time_ns())

    def forget_tags_of(self, routed: RoutedRepository, digest: Digest) -> list[Tag]:
        forgotten: list[Tag] = []
        with self._locked(routed), self._forgetting():
            for tag, cached in self._cached_tags(routed):
                if cached.digest == digest:
                    self._unlink(self._tag(routed, tag))
                    forgotten.append(tag)
        return forgotten

    def digests_of(self, is_meant: Callable[[RoutedRepository], bool]) -> set[Digest]:
        """Return everything that the repositories meant hold, as far as it is known here; in a thread."""
        digests: set[Digest] = set()
        for routed in self.repositories():
            if is_meant(routed):
                for kind in _DIRECTORIES:
                    digests |= self._digests(routed, kind)
        return digests

    def purge(self, routed: RoutedRepository) -> set[Digest]:
        """Forget all that is known of a repository; return what it held."""
        digests = set()
        with self._forgetting():
            for kind in _DIRECTORIES:
                for digest in self._digests(routed, kind):
                    self.forget(routed, kind, digest)
                    digests.add(digest)
        with self._locked(routed), self._forgetting():
            for name in _names(f"{self._repositories}/{routed}/_tags"):
                self._unlink(self._tag(routed, Tag(name)))
        return digests

    def repositories(self) -> Iterator[RoutedRepository]:
        """Give the repositories of which anything is known here; in a thread."""
        for directory, names, _ in os.walk(self._repositories):
            if any(name in names for name in _DIRECTORIES.values()):
                yield parse_routed(os.path.relpath(directory, self._repositories))
            names[:] = [name for name in names if not name.startswith("_")]

    def _digests(self, routed: RoutedRepository, kind: ContentKind) -> set[Digest]:
        names = _names(f"{self._repositories}/{routed}/{_DIRECTORIES[kind]}")
        return {Digest(*name.split("-", 1)) for name in names if _DIGEST_NAME.fullmatch(name)}

    def _entry_path(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> str:
        return f"{self._repositories}/{routed}/{_DIRECTORIES[kind]}/{digest.algorithm}-{digest.hex}"

    def _tag(self, routed: RoutedRepository, tag: Tag) -> str:
        return f"{self._repositories}/{routed}/_tags/{tag}"

    def _write_tag(self, routed: RoutedRepository, tag: Tag, descriptor: Descriptor, recorded: int | None) -> None:
        document = {
            "digest": str(descriptor.digest),
            "media_type": descriptor.media_type,
            "size": descriptor.size_bytes,
            "recorded": recorded,
            # Inode and mtime do not tell two writes apart: a freed inode is used again within one tick of the clock.
            "nonce": os.urandom(8).hex(),
        }
        if not self._write(self._tag(routed, tag), document):
            self._unlink(self._tag(routed, tag))  # a disk that is full still does: an old value must not outlive a push

    def _unlink(self, path: str) -> None:
        with self._forgetting(), contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """Have everything remembered until then asked for again, where the disk refuses to delete something."""
        try:
            yield
        except OSError as error:
            _log.error(
                "cannot delete the holdings of a repository, the replicas are asked again about everything: %s",
                error.strerror,
            )
            self.doubt_all()

    def _write(self, path: str, document: dict[str, Any]) -> bool:
        try:
            write_small_file(self._paths, path, json.dumps(document).encode())
        except OSError as error:
            _log.warning("cannot remember what a repository holds: %s", error)
            return False
        return True

    @contextmanager
    def _locked(self, routed: RoutedRepository) -> Iterator[None]:
        """Exclude the other writers of the repository's tags on this node; what is inside takes microseconds."""
        with ExitStack() as stack:
            with contextlib.suppress(OSError):  # nor can anyone write what it protects
                stack.enter_context(locked(self._paths.lock(_stripe(routed))))
            yield


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _stripe(routed: RoutedRepository) -> int:
    """Return the number of the lock that a repository shares with others."""
    return zlib.crc32(str(routed).encode()) % LOCK_STRIPES


def _open_shared_page(path: str) -> SharedPage:
    """Map the page that all workers of the node share; one of this worker's own where the disk does not take it."""
    try:
        return SharedPage.at(path)
    except OSError:
        return SharedPage.in_memory()


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


def _read_entry(path: str, digest: Digest) -> _Entry | None:
    found = _read(path)
    if found is None:
        return None
    document, status = found
    descriptor = _descriptor(document, digest)
    return None if descriptor is None else _Entry(path, _stamp(status), descriptor)


def _descriptor(document: dict[str, Any], digest: Digest) -> Descriptor | None:
    """Return what a file says of a content; None where it is damaged: it is asked for again, and written anew."""
    media_type, size_bytes = document.get("media_type"), document.get("size")
    if not isinstance(media_type, str) or not (media_type.isascii() and media_type.isprintable()):
        return None
    if type(size_bytes) is not int or not 0 <= size_bytes <= _SIZE_MAX:
        return None
    return Descriptor(media_type, digest, size_bytes)


def _read(path: str) -> tuple[dict[str, Any], os.stat_result] | None:
    """Return the document of a small file and its status; None when it is absent or cannot be understood."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        document = json.loads(os.read(fd, _MAX_FILE_BYTES))
        status = os.fstat(fd)
    except (OSError, ValueError, RecursionError):  # of brackets alone, json makes a RecursionError
        return None
    finally:
        os.close(fd)
    return (document, status) if isinstance(document, dict) else None
