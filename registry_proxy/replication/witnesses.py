"""Witnesses: keys of a few late writes, by which a storage is recognised that is older than its replica confirmed."""

import zlib

from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.store import Change, Table
from registry_proxy.protocol.reference import Digest

_SLOTS = 8


def is_witness(key: IntentKey, digest: Digest | None) -> bool:
    """Tell whether the write of a key is one that a replica cannot rightly forget: of a tag, or a deletion.

    A manifest without a tag may be collected by the registry.
    """
    return key.kind is IntentKind.TAG or (key.kind is IntentKind.MANIFEST and digest is None)


def witness_of(key: IntentKey) -> Change:
    """Return the change that keeps the key of a write as a witness.

    Each goes into the slot of its key, so that nothing has to be read for it. The newest is always among them.
    """
    slot = zlib.crc32(str(key).encode()) % _SLOTS
    return Change(Table.WITNESSES, f"{key.routed.upstream}/{slot}", {"key": str(key)})
