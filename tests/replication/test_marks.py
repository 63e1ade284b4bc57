"""The journal as a snapshot: the last one with its changes equals a new one."""

import random

from registry_proxy.ports.journal import IntentKey, IntentKind
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.reference import Repository, Tag, digest_of
from registry_proxy.replication.intents import Intent
from registry_proxy.replication.marks import NO_NEWCOMERS, NO_PAUSES, JournalMarks

REPLICAS = ("a", "b", "c")
DIGESTS = [digest_of(b"%d" % number) for number in range(3)]
TAGS = [Tag("one"), Tag("two")]
REPOSITORIES = [RoutedRepository("main", Repository(name)) for name in ("x", "y")]
KEYS = [
    *(IntentKey(routed, IntentKind.TAG, tag) for routed in REPOSITORIES for tag in TAGS),
    *(
        IntentKey(routed, kind, str(digest))
        for routed in REPOSITORIES
        for kind in (IntentKind.BLOB, IntentKind.MANIFEST)
        for digest in DIGESTS
    ),
]


def answers_of(marks: JournalMarks) -> list[object]:
    """Return the answers to all questions about some replicas, repositories, tags and digests."""
    answers: list[object] = [sorted(marks.intents, key=str), marks.lost("main"), marks.lost_keys, marks.valid_until]
    answers += [marks.is_missed(digest) for digest in DIGESTS]
    for replica in REPLICAS:
        answers += [marks.pending(replica, "main"), marks.refused(replica, "main")]
        for routed in REPOSITORIES:
            answers.append(marks.misses_any(replica, routed))
            answers += [marks.misses_tag(replica, routed, tag) for tag in TAGS]
            answers += [marks.has_tombstone(replica, routed, digest) for digest in DIGESTS]
            answers += [marks.refuses(replica, routed, tag) for tag in TAGS]
            answers += [marks.refuses(replica, routed, digest) for digest in DIGESTS]
    return answers


def some(chance: random.Random) -> tuple[str, ...]:
    """Return some of the replicas."""
    return tuple(chance.sample(REPLICAS, chance.randrange(3)))


def test_a_changed_snapshot_is_as_a_new_one() -> None:
    """Through every kind of change the snapshot equals a new one; the earlier snapshot stays unchanged."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, now = random.Random(seed), 1000.0
    marks, current = JournalMarks((), now), dict[IntentKey, Intent]()
    newcomers = {("main", "c"): "it is new"}
    for turn in range(300):
        changes: dict[IntentKey, Intent | None] = {}
        for key in chance.sample(KEYS, 3):
            intent = Intent(
                chance.choice([None, *DIGESTS]),
                "",
                some(chance),
                some(chance),
                now + 20 if chance.random() < 0.3 else 0,
                dict.fromkeys(some(chance), "why"),
                chance.random() < 0.2,
                chance.random() < 0.2,
            )
            changes[key] = None if chance.random() < 0.4 else intent
        before = answers_of(marks)
        now += 7
        new = newcomers if turn % 2 else NO_NEWCOMERS
        later = marks.changed(changes, now, new, NO_PAUSES)
        assert answers_of(marks) == before
        current = {key: intent for key, intent in {**current, **changes}.items() if intent is not None}
        assert answers_of(later) == answers_of(JournalMarks(current.items(), now, new))
        marks = later
