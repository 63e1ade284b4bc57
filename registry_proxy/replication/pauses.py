"""The record of a paused replica: one for each upstream, so that two of its replicas are never paused at once."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from registry_proxy.ports.journal import Pause
from registry_proxy.ports.store import Change, Record, Store, Table, revision_of


def pause_key(upstream: str) -> str:
    """Return the key of an upstream's pause in the table META."""
    return f"pause/{upstream}"


def parse_pause(record: Record | None) -> Pause | None:
    """Return the pause that a record holds."""
    if record is None:
        return None
    value = record.value
    return Pause(value["replica"], value["reason"], value["by"], value["since"], record.revision)


def change_of_pause(upstream: str, value: Mapping[str, Any] | None, before: Record | None) -> Change:
    """Return the change that stores a pause, or with None ends it, unless somebody else has changed it."""
    return Change(Table.META, pause_key(upstream), value, expect=revision_of(before))


def restored_pause(upstream: str, pause: Pause) -> Change:
    """Return the change that stores a pause which the store has lost."""
    value = {"replica": pause.replica, "reason": pause.reason, "by": pause.by, "since": pause.since}
    return change_of_pause(upstream, value, None)


async def find_pause(store: Store, upstream: str) -> Pause | None:
    """Return the pause of an upstream from the store itself. Raises StoreUnavailableError."""
    return parse_pause(await store.get(Table.META, pause_key(upstream)))


async def is_paused(store: Store, upstream: str, replica: str) -> bool:
    """Tell, from the store itself, whether a replica is paused. Raises StoreUnavailableError."""
    pause = await find_pause(store, upstream)
    return pause is not None and pause.replica == replica


def repair_lease(store: Store, upstream: str, replica: str) -> AbstractAsyncContextManager[None]:
    """Exclude all other repairs of a replica, of any node. Raises StoreUnavailableError."""
    return store.lease(f"repair {upstream}/{replica}")
