"""The layout of ``cache.path``, and its preparation before any worker starts.

blobs/<algorithm>/<2 hex>/<hex>               committed content: mode 0444, mtime 0 (see ``is_sealed``)
fills/<algorithm>-<hex>.part, .size           a fetch in progress, and how large the content will be
spool/<2 hex>/<owner>-<session>.part          a push in progress (see cache.uploads); upload-sums: how much there is
cancelled/<session>                           a push that ended: a link that says how; its Location is no longer valid
quarantine/<algorithm>-<hex>.<source>.<time>  content that was not what its digest says, for a look at it
order/<generation>                            the order in which committed content came in, for eviction
repositories/<upstream>/<repository>/_blobs | _manifests | _tags
temp/                                         small files before their rename
page, unknown, evict.lock, locks/<stripe>, scrub, duty.lock, node-id (a copy), schema

Others keep there what belongs to one node as well: changes, discovered.json, node.lock, probe, and metrics/ where the
machine has no memory for them (``node.memory``).

Beside it, in ``<cache.path>.audit``, lies what must outlive the cache, whose directory may be deleted:

pins/<algorithm>-<hex>                        content that some replica does not have yet
node-id                                       tells this node from the others

and the audit log, unless ``audit.path`` says otherwise. Until schema 2 all of this lay in the cache directory.
"""

import contextlib
import os
import re
import shutil
import stat
import time
import uuid
from dataclasses import dataclass

from registry_proxy.files.atomic import atomic_file, move_file, write_all, write_file, write_new_file
from registry_proxy.protocol.reference import Digest

SCHEMA_VERSION = 2
SEALED_MODE = 0o444
LOCK_STRIPES = 64
_TICK_SECONDS = 1.0
_NODE_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NODE_ID_MAX_BYTES = 100
_DIRECTORIES = ("blobs", "fills", "spool", "cancelled", "quarantine", "order", "repositories", "temp", "locks")


class CacheSchemaError(Exception):
    """The directory was written by a newer release, or is no cache of ours; nothing in it was touched."""


class CacheMoveError(Exception):
    """The directory beside the cache, of files that must outlive it, cannot be used; the next start tries again."""


class CachePaths:
    """The names of all files of one cache, by its directory."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.fills = f"{root}/fills"
        self.uploads = f"{root}/spool"
        self.upload_sums = f"{root}/upload-sums"
        self.ends = f"{root}/cancelled"
        self.quarantine = f"{root}/quarantine"
        self.orders = f"{root}/order"
        self.kept = f"{root}.audit"
        """The directory beside the cache of what must outlive it."""

        self.pins = f"{self.kept}/pins"
        self.node_ids = (f"{self.kept}/node-id", f"{root}/node-id")
        """The file with the node's id, and its copy: losing either directory is no reason to become another node."""

    def blob(self, digest: Digest) -> str:
        return f"{self.root}/blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"

    def part(self, digest: Digest) -> str:
        return f"{self.fills}/{digest.algorithm}-{digest.hex}.part"

    def size(self, digest: Digest) -> str:
        """Return the file that tells other workers how large the content of a fill will be."""
        return f"{self.fills}/{digest.algorithm}-{digest.hex}.size"

    def upload_bucket(self, owner: str) -> str:
        return f"{self.uploads}/{owner[:2]}"

    def upload_stem(self, owner: str, session_id: str) -> str:
        return f"{self.upload_bucket(owner)}/{owner}-{session_id}"

    def upload(self, owner: str, session_id: str) -> str:
        return f"{self.upload_stem(owner, session_id)}.part"

    def ended(self, session_id: str) -> str:
        return f"{self.ends}/{session_id}"

    def pin(self, digest: Digest) -> str:
        return f"{self.pins}/{digest.algorithm}-{digest.hex}"

    def lock(self, stripe: int) -> str:
        return f"{self.root}/locks/{stripe}"

    def temporary(self) -> str:
        """Return a name in ``temp`` that no other process or thread uses."""
        return f"{self.root}/temp/{os.getpid()}-{os.urandom(8).hex()}"

    def quarantined(self, digest: Digest, source: str) -> str:
        """Return a new name for a content that is not what its digest says; ``source`` tells where it came from."""
        plain = re.sub(r"[^A-Za-z0-9-]+", "_", source)[:100]
        return f"{self.quarantine}/{digest.algorithm}-{digest.hex}.{plain}.{time.time_ns()}"

    def order(self, generation: int) -> str:
        return f"{self.orders}/{generation}"


@dataclass(frozen=True, slots=True)
class CommittedBlob:
    """One committed content as eviction and the scrub see it. ``used_at_ns`` is its atime."""

    digest: Digest
    path: str
    size_bytes: int
    used_at_ns: int


def is_sealed(status: os.stat_result) -> bool:
    """Tell whether a committed file is as it was left.

    At commit its mtime is set to 0: every later write or truncation through the kernel changes that, so one fstat, made
    anyway for the size, finds a file that was tampered with.
    """
    return status.st_mtime_ns == 0 and stat.S_IMODE(status.st_mode) == SEALED_MODE and stat.S_ISREG(status.st_mode)


def seal(fd: int) -> None:
    """Mark a file whose digest was right. The mode comes last: it is what tells other workers."""
    os.utime(fd, ns=(os.stat(fd).st_atime_ns, 0))
    os.fchmod(fd, SEALED_MODE)


def scan_shard(paths: CachePaths, shard: int) -> list[CommittedBlob]:
    """Return the committed contents of one of the 256 shards, in no order; what vanishes meanwhile is left out."""
    blobs: list[CommittedBlob] = []
    for algorithm in os.listdir(f"{paths.root}/blobs"):
        with contextlib.suppress(FileNotFoundError), os.scandir(f"{paths.root}/blobs/{algorithm}/{shard:02x}") as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    digest = Digest(algorithm, entry.name)
                    blobs.append(CommittedBlob(digest, entry.path, status.st_size, status.st_atime_ns))
    return blobs


def scan_next(paths: CachePaths, shards: range) -> tuple[list[CommittedBlob], range]:
    """Return the committed contents of the first of some shards that holds any, and the shards after it.

    Most shards of a small cache are empty: a lock, a thread or a note for each of them would cost more than the look.
    """
    for shard in shards:
        if blobs := scan_shard(paths, shard):
            return blobs, range(shard + 1, shards.stop)
    return [], range(shards.stop, shards.stop)


def age_seconds(changed_at_ns: int) -> float:
    """Return how long ago a time of a file was; infinite for one in the future, which tells nothing.

    A clock that was put back would else keep young what was written before, until it has come there again.
    """
    age = time.time() - changed_at_ns / 1e9
    return max(0.0, age) if age > -_TICK_SECONDS else float("inf")


def write_small_file(paths: CachePaths, target: str, content: bytes) -> None:
    """Write a file that others see whole or not at all; makes its directory. Not fsynced. Raises OSError."""
    with atomic_file(target, _rename_into, temporary=paths.temporary(), is_synced=False) as fd:
        write_all(fd, content)


def _rename_into(temporary: str, target: str) -> None:
    try:
        os.rename(temporary, target)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.rename(temporary, target)


def _read_schema(paths: CachePaths) -> int:
    """Return the schema that the directory was written with; that of this release for a new one."""
    path = f"{paths.root}/schema"
    try:
        with open(path, encoding="ascii") as file:
            version = int(file.read())
    except FileNotFoundError:
        _write_schema(paths)
        return SCHEMA_VERSION
    except ValueError as error:
        raise CacheSchemaError(f"{path} does not hold a version number: is {paths.root} a cache directory?") from error
    if version > SCHEMA_VERSION:
        raise CacheSchemaError(
            f"{paths.root} was written by a newer release (schema {version}, this one knows {SCHEMA_VERSION}):"
            " run that release, or give cache.path an empty directory"
        )
    return version


def _write_schema(paths: CachePaths) -> None:
    # First of all in a new directory, and under a name of its own: what has a schema is known as ours (config.check).
    path = f"{paths.root}/schema"
    with atomic_file(path, temporary=f"{path}.new") as fd:
        write_all(fd, b"%d\n" % SCHEMA_VERSION)


def _move_files(source: str, target: str) -> None:
    """Move the files of a directory into another one; goes on where an earlier start was cut off."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(source):
            move_file(f"{source}/{name}", f"{target}/{name}")
        os.rmdir(source)


def read_node_id(paths: CachePaths) -> str:
    """Return what tells this node from the others; the first worker that asks makes it.

    Raises:
        CacheMoveError: it is damaged, and so is its copy, or there is none.
    """
    damaged = []
    for path in paths.node_ids:
        with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii", errors="replace") as file:
            if _NODE_ID.fullmatch(node_id := file.read(_NODE_ID_MAX_BYTES).strip()):
                return node_id
            damaged.append(path)
    if damaged:
        raise CacheMoveError(
            f"{' and '.join(damaged)}: not the id of a node, so the file is damaged. Put it back from a copy, or remove"
            " it: the node is then a new one, which has an audit log of its own"
        )
    write_new_file(paths.node_ids[0], str(uuid.uuid4()).encode())
    return read_node_id(paths)


def _holds(path: str, node_id: str) -> bool:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read() == node_id.encode()
    return False


def _bring_out(paths: CachePaths, audit_path: str) -> None:
    """Have beside the cache what must outlive it; an older release kept it inside."""
    try:
        for directory in (paths.kept, paths.pins, audit_path):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        _move_files(f"{paths.root}/audit", audit_path)
        _move_files(f"{paths.root}/pins", paths.pins)
        node_id = read_node_id(paths)
        for path in paths.node_ids:
            if not _holds(path, node_id):
                write_file(path, node_id.encode())  # missing, or damaged
    except OSError as error:
        raise CacheMoveError(
            f"{error.filename2 or error.filename}: {error.strerror}; the service keeps in {paths.kept} what must"
            " outlive the cache: make that directory, for the user of the service alone"
        ) from error


def _clear_uploads(paths: CachePaths) -> None:
    """Remove what an earlier run left of uploads; what the replicas have of them is cancelled there by and by.

    An upload of which the replicas alone have the bytes goes on.
    """
    shutil.rmtree(f"{paths.root}/uploads", ignore_errors=True)  # where earlier releases kept them
    with contextlib.suppress(FileNotFoundError):
        os.unlink(paths.upload_sums)
    with os.scandir(paths.uploads) as buckets:
        for bucket in buckets:
            for name in os.listdir(bucket.path):
                stem, _, kind = f"{bucket.path}/{name}".rpartition(".")
                if kind == "part":
                    os.unlink(f"{stem}.part")
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(f"{stem}.note", f"{stem}.gone")


def prepare_cache(path: "str | os.PathLike[str]", audit_path: str | None = None) -> None:
    """Make the directory ready: layout, schema, no leftovers of a crash. Committed content is not looked at.

    Called by the first worker, before any of them serves and while it holds the node's lock.

    Args:
        path: the cache directory.
        audit_path: where the audit log lies; None for its default.

    Raises:
        CacheSchemaError: a newer release wrote it.
        CacheMoveError: what must outlive it cannot lie beside it.
        OSError: it cannot be written.
    """
    paths = CachePaths(os.fspath(path))
    os.makedirs(paths.root, exist_ok=True)
    version = _read_schema(paths)
    _bring_out(paths, audit_path or paths.kept)
    if version < SCHEMA_VERSION:
        _write_schema(paths)
    for name in _DIRECTORIES:
        os.makedirs(f"{paths.root}/{name}", exist_ok=True)
    _clear_uploads(paths)
    for name in ("fills", "temp"):
        with os.scandir(f"{paths.root}/{name}") as entries:
            for entry in entries:
                os.unlink(entry.path)
    for stripe in range(LOCK_STRIPES):  # a full or read-only disk must not keep anyone from locking
        os.close(os.open(paths.lock(stripe), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
