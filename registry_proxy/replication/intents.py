"""The entries of the journal: the intended state of a manifest, tag or blob, and the replicas that miss it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

from registry_proxy.ports.errors import ConflictError
from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import parse_routed
from registry_proxy.ports.store import Change, Record, Store, Table, revision_of
from registry_proxy.protocol.reference import Digest, parse_digest

WRITING_SECONDS = 60.0
"""How long a write may be under way before its intent counts as abandoned."""

_CLOCKS_APART_SECONDS = 60.0

NO_REFUSALS: Mapping[str, str] = MappingProxyType({})


def parse_key(text: str) -> IntentKey:
    """Return the key that a record of the table INTENTS is stored under."""
    routed, kind, name = text.split("|")
    return IntentKey(parse_routed(routed), IntentKind(kind), name)


@dataclass(frozen=True, slots=True)
class Intent:
    """The state that a key must have at every replica: ``digest``, or None for deleted.

    ``missing`` are the replicas that did not confirm it; ``behind`` those of them that were behind before it began;
    ``writing_until`` is when the write under way counts as abandoned, in seconds since the epoch, 0 once concluded.
    ``refused`` are the replicas that cannot have it, and why: they are as good as any other for every other key.
    ``is_lost`` when no replica has it any more. ``is_dismissed`` when a person has taken note of either.
    ``doubted`` are the missing ones that an older write reached late, after one that was acknowledged or is under way.
    """

    digest: Digest | None
    media_type: str
    missing: tuple[str, ...]
    behind: tuple[str, ...] = ()
    writing_until: float = 0
    refused: Mapping[str, str] = field(default_factory=dict)
    is_lost: bool = False
    is_dismissed: bool = False
    doubted: tuple[str, ...] = ()

    @property
    def is_settled(self) -> bool:
        """Tell whether there is nothing to remember of it."""
        return not (self.missing or self.refused or self.is_lost)

    def is_under_way(self, now: float) -> bool:
        """Tell whether its write may go on still.

        An end that is further away than a write may take was set by a clock that has been put back since.
        """
        return now < self.writing_until <= now + WRITING_SECONDS + _CLOCKS_APART_SECONDS

    def replicas_behind(self, now: float) -> tuple[str, ...]:
        """Return the replicas that it counts against."""
        return self.behind if self.is_under_way(now) else self.missing

    def may_be_missed(self, replica: str, now: float) -> bool:
        """Tell whether a replica may rightly have something else: it did not confirm this, or cannot have it."""
        return self.is_under_way(now) or replica in self.missing or replica in self.refused

    def concluded(self, refused: Mapping[str, str]) -> Self:
        """Return the intent once its write has ended; ``refused`` names the replicas that cannot have it, and why."""
        missing = tuple(name for name in self.missing if name not in refused)
        return replace(self, missing=missing, behind=(), writing_until=0, refused=refused)

    def without(self, confirmed: Collection[str]) -> Self:
        """Return the intent once these replicas have confirmed it."""
        return replace(
            self,
            missing=tuple(name for name in self.missing if name not in confirmed),
            behind=tuple(name for name in self.behind if name not in confirmed),
            refused={name: why for name, why in self.refused.items() if name not in confirmed},
            doubted=tuple(name for name in self.doubted if name not in confirmed),
        )

    def doubting(self, replicas: Sequence[str]) -> Self:
        """Return the intent when an older write may have reached these replicas after its own."""
        return replace(
            self,
            missing=_joined(self.missing, replicas),
            behind=_joined(self.behind, replicas) if self.writing_until else self.behind,
            doubted=_joined(self.doubted, replicas),
        )

    def to_value(self) -> Mapping[str, Any]:
        """Return what is stored."""
        return {
            "digest": None if self.digest is None else str(self.digest),
            "media_type": self.media_type,
            "missing": list(self.missing),
            "behind": list(self.behind),
            "writing_until": self.writing_until,
            "refused": dict(self.refused),
            "lost": self.is_lost,
            "dismissed": self.is_dismissed,
            "doubted": list(self.doubted),
        }

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Self:
        """Return the intent that a record holds."""
        digest = value["digest"]
        return cls(
            None if digest is None else parse_digest(digest),
            value["media_type"],
            tuple(value["missing"]),
            tuple(value["behind"]),
            value["writing_until"],
            value.get("refused", {}),
            value.get("lost", False),
            value.get("dismissed", False),
            tuple(value.get("doubted", ())),
        )


def change_of(key: IntentKey, intent: Intent, *, expect: int | None = None) -> Change:
    """Return the change that stores an intent, or removes one of which there is nothing to remember."""
    return Change(Table.INTENTS, str(key), None if intent.is_settled else intent.to_value(), expect=expect)


def intent_of(record: Record | None) -> Intent | None:
    """Return the intent that a record holds, None where there is none."""
    return None if record is None else Intent.from_value(record.value)


def record_of(key: IntentKey) -> tuple[Table, str]:
    """Return the table and key of what is on record of a tag or manifest; of blobs nothing is."""
    return Table.TAGS if key.kind is IntentKind.TAG else Table.MANIFESTS, f"{key.routed}|{key.name}"


async def revise_intent(
    store: Store, key: IntentKey, revise: Callable[[Intent | None], Intent | None]
) -> Intent | None:
    """Replace the open intent of a key; return the new one, None where ``revise`` makes none of it.

    So it is where a write came between, which has the last word.

    Raises:
        StoreUnavailableError: it may have changed.
    """
    record = await store.get(Table.INTENTS, str(key))
    before = intent_of(record)
    revised = revise(before)
    try:
        if revised is not None and revised != before:
            await store.commit([change_of(key, revised, expect=revision_of(record))])
    except ConflictError:
        return None
    return revised


def _joined(names: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*names, *more)))
