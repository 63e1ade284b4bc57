"""The record of a tag in the store, and what replicas say of a tag, held against it."""

from dataclasses import dataclass

from registry_proxy.protocol.descriptor import Descriptor
from registry_proxy.protocol.reference import Digest


@dataclass(frozen=True, slots=True)
class TagRecord:
    """The record of a tag in the store.

    Args:
        revision: changes before any replica's tag does, and once more before a push or delete of the tag is
            acknowledged; 0 where nothing is on record.
        digest: what it was last made through us; None where it was deleted, or nothing is on record.
        earlier: what it was before, the newest first; bounded.
    """

    revision: int = 0
    digest: Digest | None = None
    earlier: tuple[Digest, ...] = ()

    def is_past(self, digest: Digest) -> bool:
        """Tell whether a digest is an earlier state of the tag. One that is not on record was pushed past us."""
        return digest != self.digest and digest in self.earlier


@dataclass(frozen=True, slots=True)
class TagFinding:
    """The answers of the replicas about a tag, held against its record.

    Args:
        current: what it is; None where no replica that can be asked says it.
        older: an earlier state of it, which is all that some replicas have.
        recorded: its digest by the record; None where it was deleted, or nothing is on record.
    """

    current: Descriptor | None = None
    older: Descriptor | None = None
    recorded: Digest | None = None
