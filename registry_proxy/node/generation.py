"""The workers that run with the same settings, and how patient the supervisor is with them."""

import asyncio
from dataclasses import dataclass, field

from registry_proxy.config.model import Settings
from registry_proxy.node.processes import Process


@dataclass(frozen=True, slots=True)
class Timing:
    """The supervisor's patience, in seconds."""

    silence: float = 15.0  # a worker that has not said "alive" for so long is hung
    start: float = 60.0  # a worker that is not ready after this is not going to be
    grace: float = 5.0  # so long after the time a worker has to finish, it is killed
    first_back_off: float = 0.1
    longest_back_off: float = 5.0
    healthy: float = 30.0  # a worker that lived so long is restarted without back-off
    disk: float = 5.0  # the disk of the cache that has not answered for so long hangs
    calm: float = 5.0  # one that answers again is believed after this


@dataclass(eq=False)
class Worker:
    """A process of a slot; ``end`` gives why it ended."""

    process: Process
    end: asyncio.Task[str]


@dataclass(eq=False)
class Generation:
    """The workers that run with the same settings; ``over`` is set when none of them is replaced any more.

    ``configured`` is what ``settings`` are when the disk of the cache answers; else ``is_stand_in``.
    """

    number: int
    configured: Settings
    settings: Settings
    is_stand_in: bool = False
    workers: dict[int, Worker] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    keepers: list[asyncio.Task[None]] = field(default_factory=list)

    def running(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if not worker.end.done()]

    def kill(self) -> None:
        for worker in self.running():
            worker.process.kill()


def needs_restart(old: Settings, new: Settings) -> list[str]:
    """Return what a reload cannot change, in words: addresses, and where a running node keeps what it writes."""
    changed = {
        "listen": (str(old.listen), str(new.listen)),
        "admin_listen": (str(old.admin_listen), str(new.admin_listen)),
        "store": (old.store_url, new.store_url),
        "cache.path": (old.cache.path, new.cache.path),
        "audit.path": (old.audit_path, new.audit_path),
        "auth.signing_key_file": (old.auth.signing_key_file, new.auth.signing_key_file),
    }
    return [
        f"{key}: needs a restart" + ("" if key == "store" else f" to become {value[1]} in place of {value[0]}")
        for key, value in changed.items()
        if value[0] != value[1]
    ]
