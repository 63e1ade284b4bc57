"""Bounds on the lines that one client, or all clients together, can make the audit log write in a minute.

Acts of administrators and of the service are always written whole. Of refusals, and of changes that users make to what
is their own, the first ones of each minute are; the rest are counted, and one line at the end of the minute says how
many they were.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from registry_proxy.ports.events import AuditEvent, AuditKind
from registry_proxy.protocol.addresses import address_owner

WINDOW_SECONDS = 60.0
"""The shortest time that one line sums up."""

WHOLE_MAX = 20
"""Whole lines of one owner in that time: of an address for refusals, of a subject at an address for its changes."""

TOGETHER_MAX = 200
"""Whole lines of all addresses together in that time: of refusals, and of each subject."""

_OWNERS_MAX = {AuditKind.TRAFFIC: 256, AuditKind.ACCOUNT: 4096}  # followed at a time; all further ones count as one
_FOLDS_MAX = 8  # kinds of event of one owner; all further ones count as one
_EXAMPLES = ("subject", "repository", "rule")
_EXAMPLES_MAX = 5
_OTHERS = "others"


@dataclass(slots=True)
class _Fold:
    """Events of one owner, action and outcome that were counted instead of written."""

    event: AuditEvent
    since: str
    count: int = 0
    examples: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in _EXAMPLES})

    def add(self, event: AuditEvent) -> None:
        self.count += 1
        for name, texts in self.examples.items():
            if (text := getattr(event, name)) and len(texts) < _EXAMPLES_MAX:
                texts.add(text)

    def line(self, action: str, owner: str) -> AuditEvent:
        """Return the event that stands for all of them; texts that differ are examples in its detail."""
        detail: dict[str, object] = {"folded": self.count, "since": self.since}
        detail |= {name: sorted(texts) for name, texts in self.examples.items() if len(texts) > 1}
        only = {name: next(iter(texts)) for name, texts in self.examples.items() if len(texts) == 1}
        return AuditEvent(action, self.event.outcome, address=owner, kind=self.event.kind, detail=detail, **only)


class _OwnerName(NamedTuple):
    """Events are counted by subject, "" for refusals, and by the owner of the address."""

    subject: str
    address: str


@dataclass(slots=True)
class _Owner:
    """The events of one owner since a moment of the clock."""

    began_at: float
    whole: int = 0
    folds: dict[tuple[str, str], _Fold] = field(default_factory=dict)


class Folding:
    """Chooses the events that are written whole, and sums up the others.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._owners: dict[AuditKind, dict[_OwnerName, _Owner]] = {kind: {} for kind in AuditKind}
        self._whole: Counter[str] = Counter()  # of all addresses together, by subject, "" for refusals
        self._whole_since = clock()

    def takes_whole(self, event: AuditEvent) -> bool:
        """Tell whether an event is to be written as it is; one that is not is counted here."""
        if event.kind is AuditKind.ACT or (event.kind is AuditKind.TRAFFIC and event.outcome == "ok"):
            return True
        now, owners = self._clock(), self._owners[event.kind]
        subject = event.subject if event.kind is AuditKind.ACCOUNT else ""
        name = _OwnerName(subject, address_owner(event.address))
        if name not in owners and subject and self._whole[subject] >= TOGETHER_MAX:
            name = _OwnerName(subject, _OTHERS)  # one subject's addresses leave places to other subjects
        if name not in owners and len(owners) >= _OWNERS_MAX[event.kind]:
            name = _OwnerName("", _OTHERS)
        owner = owners.setdefault(name, _Owner(now))
        if owner.whole < WHOLE_MAX and self._has_room(subject, now):
            owner.whole += 1
            return True
        kind = (event.action, event.outcome)
        if kind not in owner.folds and len(owner.folds) >= _FOLDS_MAX:
            kind = (_OTHERS, event.outcome)
        fold = owner.folds.get(kind)
        if fold is None:
            fold = owner.folds[kind] = _Fold(event, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
        fold.add(event)
        return False

    def lines(self, *, all_of_them: bool = False) -> Sequence[AuditEvent]:
        """Return, once, an event for each fold whose time is over, or for each that there is."""
        now, found = self._clock(), []
        for owners in self._owners.values():
            for name, owner in list(owners.items()):
                if all_of_them or now - owner.began_at >= WINDOW_SECONDS:
                    del owners[name]
                    found += [fold.line(action, name.address) for (action, _), fold in owner.folds.items()]
        return found

    def _has_room(self, subject: str, now: float) -> bool:
        """Count a line of all addresses together; return whether it is one of the first."""
        if now - self._whole_since >= WINDOW_SECONDS:
            self._whole, self._whole_since = Counter(), now
        self._whole[subject] += 1
        return self._whole[subject] <= TOGETHER_MAX
