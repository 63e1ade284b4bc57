"""Refusals that a replica will repeat: it has all that a content needs, and does not take it."""

from collections.abc import Iterator
from contextlib import contextmanager

from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest

_FINAL_STATUSES = frozenset({400, 413, 415, 422})
"""Statuses by which a registry judges a content. 401, 403 and 429 are about us or the moment; 405 is the answer of
distribution to every push while it is read-only for maintenance; a 404 may end when a project is made there."""


_NAMED_MAX = 3
_REASON_MAX = 1000  # a reason holds that of a child, which holds that of its own


class FinalRefusalError(RegistryError):
    """A replica refuses a content, and trying again will not help before the replica changes.

    Args:
        refusal: its answer, which this error repeats.
        reason: why it is final, for people; without the replica's name.
    """

    def __init__(self, refusal: RegistryError, reason: str) -> None:
        super().__init__(refusal.code, refusal.message, detail=refusal.detail, status=refusal.status)
        self.refusal = refusal
        self.reason = reason


def may_be_final(refusal: RegistryError) -> bool:
    """Tell whether a refused manifest is refused for what it is, unless the replica misses a part of it."""
    return refusal.status in _FINAL_STATUSES


def final_refusal(refusal: RegistryError, absent: dict[Digest, str]) -> FinalRefusalError:
    """Return the refusal of a manifest as final.

    Args:
        refusal: what the replica answered.
        absent: the parts of the manifest that the replica cannot have, and why.
    """
    answer = f"it answers {refusal.status} {refusal.code.value}"
    if absent:
        faults = [f"{digest} is missing there: {why}" for digest, why in list(absent.items())[:_NAMED_MAX]]
        if len(absent) > _NAMED_MAX:
            faults.append(f"{len(absent) - _NAMED_MAX} more are missing")
        return FinalRefusalError(refusal, f"{answer}, because {'; '.join(faults)}"[:_REASON_MAX])
    return FinalRefusalError(refusal, f"{answer} although it has all that the manifest names")


@contextmanager
def judging_blob(digest: Digest) -> Iterator[None]:
    """Make the refusal of a blob final where it is about the blob: its size, or the algorithm of its digest.

    A 400 for a sha256 digest is not: what was read from another replica may have been cut or wrong.
    """
    try:
        yield
    except RegistryError as refusal:
        is_digest = refusal.code is not ErrorCode.SIZE_INVALID and digest.algorithm != "sha256"
        if refusal.status not in _FINAL_STATUSES or (refusal.status == 400 and not is_digest):
            raise
        raise FinalRefusalError(refusal, f"it answers {refusal.status} {refusal.code.value}") from refusal


def may_lack_content(error: RegistryError) -> bool:
    """Tell whether a registry may have refused a manifest because a blob or a child of the manifest is missing there.

    The code does not decide it: zot says MANIFEST_INVALID, others BLOB_UNKNOWN or NAME_UNKNOWN.
    """
    return error.status in {400, 404}
