"""Contents that cannot be everywhere: lost, because no replica has them, or refused by some (docs/decisions/38).

They are a part of the journal's intents, and no reason to keep a replica out. A push of the key, or its deletion, ends
them.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from registry_proxy.ports.errors import ConflictError
from registry_proxy.ports.journal import ContentException, IntentKey, IntentKind
from registry_proxy.ports.store import Change, Record, Store, Table
from registry_proxy.protocol.reference import Digest
from registry_proxy.replication.intents import NO_REFUSALS, Intent, change_of, parse_key, record_of, revise_intent

_log = logging.getLogger(__name__)


class Exceptions:
    """Notes exceptions in the journal, and ends them.

    Every method raises StoreUnavailableError.

    Args:
        store: where the intents lie.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, upstream: str) -> Sequence[ContentException]:
        """Return the exceptions of an upstream, by key."""
        found = []
        for record in await self._store.list(Table.INTENTS, f"{upstream}/"):
            intent = Intent.from_value(record.value)
            if intent.is_lost or intent.refused:
                key = parse_key(record.key)
                found.append(ContentException(key, intent.is_lost, intent.refused, intent.is_dismissed))
        return found

    async def refuse(self, key: IntentKey, digest: Digest | None, replica: str, reason: str) -> None:
        """Note that a replica which misses a key refuses it for good; nothing happens if the key has changed."""

        def revise(intent: Intent | None) -> Intent | None:
            if intent is None or intent.digest != digest:
                return None
            missing = tuple(name for name in intent.missing if name != replica)
            return replace(intent, missing=missing, refused={**intent.refused, replica: reason}, is_dismissed=False)

        if await revise_intent(self._store, key, revise) is not None:
            _log.warning("replica %s/%s cannot have %s: %s", key.routed.upstream, replica, key, reason)

    async def lose(
        self, key: IntentKey, digest: Digest, media_type: str, refused: Mapping[str, str] = NO_REFUSALS
    ) -> None:
        """Note that no replica has a key any more, under the lease of its writers; ``refused`` as in an intent."""

        def revise(intent: Intent | None) -> Intent | None:
            before = intent or Intent(digest, media_type, ())
            if before.is_lost or before.digest != digest:
                return None
            return replace(before, missing=(), behind=(), writing_until=0, refused=refused, is_lost=True)

        if await revise_intent(self._store, key, revise) is not None:
            _log.error("%s is lost: every replica of %s answers that it does not have it", key, key.routed.upstream)

    async def recover(self, key: IntentKey, digest: Digest | None = None, missing: Sequence[str] = ()) -> None:
        """End that a key is lost, if its digest is ``digest``; ``missing`` are the replicas that must get it now."""

        def revise(intent: Intent | None) -> Intent | None:
            if intent is None or not intent.is_lost or digest not in {None, intent.digest}:
                return None
            refused = {name: why for name, why in intent.refused.items() if name not in missing}
            return replace(intent, missing=tuple(missing), refused=refused, is_lost=False, is_dismissed=False)

        if await revise_intent(self._store, key, revise) is not None:
            _log.info("%s is not lost any more", key)

    async def retry(self, prefix: str) -> None:
        """Have what replicas refused tried again; ``prefix`` of the keys: ``main/``, or ``main/team/app|``."""
        for record in await self._store.list(Table.INTENTS, prefix):
            intent = Intent.from_value(record.value)
            if intent.refused and not intent.is_lost:
                missing = tuple(dict.fromkeys((*intent.missing, *intent.refused)))
                await self._change(record, replace(intent, missing=missing, refused=NO_REFUSALS, is_dismissed=False))

    async def dismiss(self, upstream: str, repository: str | None, name: str | None) -> int:
        """Take note that a person knows of the exceptions of an upstream, a repository, or one tag or digest.

        They stay in force, and are neither counted nor reported any more. Returns the number of dismissed ones.
        """
        count = 0
        for record, _, intent in await self._chosen(upstream, repository, name):
            is_open = (intent.is_lost or bool(intent.refused)) and not intent.is_dismissed
            if is_open and await self._change(record, replace(intent, is_dismissed=True)):
                count += 1
        return count

    async def forget(self, upstream: str, repository: str | None, name: str | None) -> int:
        """Forget that contents which are lost now were ever pushed, those of a repository, or one tag or digest.

        Nothing is on record of them afterwards, as of what was deleted. A blob that a manifest still names is lost
        again at the next comparison. Returns how many were forgotten.
        """
        count = 0
        for record, key, intent in await self._chosen(upstream, repository, name):
            if not intent.is_lost:
                continue
            with contextlib.suppress(ConflictError):  # a write came between: it has the last word
                await self._store.commit([Change(Table.INTENTS, record.key, None, record.revision), *_forgotten(key)])
                _log.info("%s was lost, and is forgotten", key)
                count += 1
        return count

    async def _chosen(
        self, upstream: str, repository: str | None, name: str | None
    ) -> Sequence[tuple[Record, IntentKey, Intent]]:
        records = await self._store.list(Table.INTENTS, f"{upstream}/")
        parsed = [(record, parse_key(record.key), Intent.from_value(record.value)) for record in records]
        return [
            each for each in parsed if repository in {None, each[1].routed.repository} and name in {None, each[1].name}
        ]

    async def _change(self, record: Record, intent: Intent) -> bool:
        """Store an intent in the place of a record; return False where a write came between: it has the last word."""
        with contextlib.suppress(ConflictError):
            await self._store.commit([change_of(parse_key(record.key), intent, expect=record.revision)])
            return True
        return False


def _forgotten(key: IntentKey) -> list[Change]:
    """Return the changes that remove the record of a key; blobs have none."""
    return [] if key.kind is IntentKind.BLOB else [Change(*record_of(key), None)]
