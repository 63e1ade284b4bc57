"""The upkeep of a node's cache, by one worker at a time: counting anew where needed, and a look for rot."""

import asyncio
import contextlib
import json
import logging
import os
import time
from dataclasses import dataclass

from registry_proxy.cache.disk import DiskCache
from registry_proxy.cache.layout import write_small_file
from registry_proxy.cache.ledger import shards
from registry_proxy.files.lock import lock_tried
from registry_proxy.ports.metrics import ScrubEnd

_log = logging.getLogger(__name__)
_DUTY_SECONDS = 5.0
"""How soon a worker sees that the one on duty has died."""

_PAUSE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ScrubRound:
    """Progress of the scrub: the shards below ``shard`` of the round that began at ``started_at`` (epoch) were read."""

    shard: int
    started_at: float


class Scrubber:
    """Runs in every worker; the one that holds the duty works, the others wait for its end.

    Args:
        cache: of this worker.
        scrub_bytes_per_second: how fast committed content is read again; 0 for never.
        scrub_interval_seconds: how long after the begin of one round the next one begins.
    """

    def __init__(self, cache: DiskCache, scrub_bytes_per_second: int, scrub_interval_seconds: float) -> None:
        self._cache = cache
        self._rate = scrub_bytes_per_second
        self._interval_seconds = scrub_interval_seconds
        self._note, self._duty = f"{cache.paths.root}/scrub", f"{cache.paths.root}/duty.lock"

    async def run(self) -> None:
        """Go on until cancelled; a disk that fails is tried again later."""
        while True:
            with lock_tried(self._duty) as is_ours:
                if is_ours:
                    self._tell_last_round()
                while is_ours:
                    try:
                        await self._work()
                    except OSError as error:
                        _log.warning("the cache cannot be looked after: %s", error.strerror)
                    await asyncio.sleep(_PAUSE_SECONDS)
            await asyncio.sleep(_DUTY_SECONDS)

    async def _work(self) -> None:
        if self._cache.space.must_recount:
            await self._cache.recount()
        done = self._read_note()
        is_recent = 0 <= time.time() - done.started_at < self._interval_seconds
        if self._rate and (done.shard < len(shards()) or not is_recent):
            await self._scrub(done)

    async def _scrub(self, done: ScrubRound) -> None:
        """Read what is committed, from where the last one on duty stopped; what is bad goes into quarantine."""
        began_anew = done.shard >= len(shards())
        started_at = time.time() if began_anew else done.started_at
        remaining = shards()[0 if began_anew else done.shard :]
        while remaining:
            _, remaining = await self._cache.check_next(remaining, self._rate)
            self._write_note(ScrubRound(remaining.start, started_at))
        self._cache.observer.observe(ScrubEnd(time.time()))

    def _tell_last_round(self) -> None:
        """Tell when a round ended that another worker, or this node before a restart, has finished."""
        if self._read_note().shard >= len(shards()):
            with contextlib.suppress(OSError):
                self._cache.observer.observe(ScrubEnd(os.stat(self._note).st_mtime))

    def _read_note(self) -> ScrubRound:
        try:
            with open(self._note, encoding="ascii") as file:
                document = json.load(file)
                return ScrubRound(int(document["shard"]), float(document["started_at"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return ScrubRound(0, time.time())

    def _write_note(self, done: ScrubRound) -> None:
        document = {"shard": done.shard, "started_at": done.started_at}
        write_small_file(self._cache.paths, self._note, json.dumps(document).encode())
