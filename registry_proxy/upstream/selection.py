"""Which replica is asked, and when "it is not here" is the truth: pure decisions."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from registry_proxy.ports.replicas import StorageKind


@dataclass(frozen=True, slots=True)
class Standing:
    """The knowledge of a replica for one question.

    Args:
        name: of the replica.
        is_askable: it is up and has not asked us to wait.
        is_current: it misses nothing in this repository: its 404 counts.
        is_exempt: an open mark on this very key says that what it answers is the past, or that it cannot have it: it
            is not asked, and the others decide without it.
        is_deleted: what is asked for was deleted through us, and the replica does not know yet: a 404 unasked.
        is_doubted: it cut this content, or falsified any, a short while ago: it is asked last.
        has_lied: it falsified this very content: it is not asked, and its silence proves nothing.
    """

    name: str
    is_askable: bool = True
    is_current: bool = True
    is_exempt: bool = False
    is_deleted: bool = False
    is_doubted: bool = False
    has_lied: bool = False


def _weight(replica: str, key: str) -> bytes:
    return hashlib.blake2b(f"{replica} {key}".encode(), digest_size=8).digest()


def order_for_read(standings: Iterable[Standing], key: str) -> list[str]:
    """Return the replicas to ask, in order: undoubted before doubted, current before behind, then spread by the key.

    The spread (rendezvous hashing) sends different contents to different replicas, and the same content to the same
    one, whose page cache has it.
    """
    askable = [
        one for one in standings if one.is_askable and not one.is_exempt and not one.is_deleted and not one.has_lied
    ]
    askable.sort(key=lambda one: (one.is_doubted, not one.is_current, _weight(one.name, key)))
    return [one.name for one in askable]


def is_absent(standings: Sequence[Standing], absent: Collection[str], storage: StorageKind) -> bool:
    """Tell whether it is certain that no replica holds it.

    Over shared storage one 404 is enough. Independent replicas must all have said so, at least one of them being
    current: one that is down may hold it, and one that is behind has proved nothing.

    Args:
        standings: of every configured replica.
        absent: names of those that answered 404.
        storage: whether the replicas share their store.
    """
    if storage is StorageKind.SHARED:
        return bool(absent)
    said_so = [one for one in standings if one.name in absent or one.is_deleted]
    silent = [one for one in standings if one not in said_so and not one.is_exempt]
    return not silent and any(one.is_current or one.is_deleted for one in said_so)
