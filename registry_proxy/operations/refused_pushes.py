"""Refusals of pushes, as clients see them."""

from collections.abc import Iterable

from registry_proxy.ports.errors import CacheUnavailableError
from registry_proxy.protocol.errors import ErrorCode, RegistryError, unavailable
from registry_proxy.protocol.reference import Digest, Tag


def upload_lost() -> RegistryError:
    """Return the refusal of a request for an upload that is over, or whose bytes are nowhere."""
    return RegistryError(
        ErrorCode.BLOB_UPLOAD_UNKNOWN,
        "the bytes of this upload are not here any more: start a new one",
        detail={"reason": "the upload was ended, or no replica that has its beginning can be reached"},
    )


def out_of_order(size_bytes: int) -> RegistryError:
    """Return the refusal of a chunk that does not follow the ``size_bytes`` that have come."""
    return RegistryError(
        ErrorCode.RANGE_INVALID,
        "the chunk does not begin where the upload ends",
        detail={"offset": size_bytes},
        headers={"Range": f"0-{max(size_bytes - 1, 0)}"},
    )


def size_invalid(expected: int, actual: int) -> RegistryError:
    """Return the refusal of a body of another size than its headers announce."""
    return RegistryError(
        ErrorCode.SIZE_INVALID,
        "the body does not have the size that its headers say",
        detail={"expected": expected, "actual": actual},
    )


def wrapper_refused(digest: Digest) -> RegistryError:
    """Return the refusal of a wrapper of our own, copied from a registry past us."""
    message = "a registry keeps another manifest in this one: pull that manifest through registry-proxy, and push it"
    return RegistryError(ErrorCode.MANIFEST_INVALID, message, detail={"digest": str(digest)})


def content_unknown(digests: Iterable[Digest]) -> RegistryError:
    """Return the refusal of a manifest that names what its repository does not hold."""
    return RegistryError(
        ErrorCode.MANIFEST_BLOB_UNKNOWN,
        "the repository does not hold all that the manifest names: push it again with its blobs",
        detail=[{"digest": str(digest)} for digest in sorted(digests, key=str)],
    )


def tag_exists(tag: Tag) -> RegistryError:
    """Return the refusal of a move of a tag by a client that may only create tags."""
    message = "the tag exists, and your rights allow to create tags, not to move them"
    return RegistryError(ErrorCode.DENIED, message, detail={"tag": tag}, status=403)


def digest_invalid(digest: Digest) -> RegistryError:
    """Return the refusal of a content that is not what its digest names."""
    return RegistryError(
        ErrorCode.DIGEST_INVALID, "the content does not have the digest given", detail={"digest": str(digest)}
    )


def no_space(error: CacheUnavailableError) -> RegistryError:
    """Return the refusal of a push whose bytes this node must keep, and cannot."""
    message = "a replica misses the content, and the disk of the proxy cannot keep it for that now; try again"
    return unavailable(message, detail={"reason": str(error)})
