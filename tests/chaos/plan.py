"""The steps of clients and the faults, as a function of a seed alone: the same seed gives the same plan."""

import json
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

from tests.support.product import OCI_MANIFEST, Image, digest_of, make_image

REPOSITORIES = ("team/api", "team/web", "team/deep/tool")
TAGS = ("latest", "1.0", "1.1")
_BASE_LAYERS = 4
_ARTIFACT_TYPES = ("application/vnd.example.signature", "application/vnd.example.sbom")
_EMPTY = b"{}"
_SUBJECTS = 3
"""Number of a client's last images that get referrers: several of each, by several writes."""


class Verb(StrEnum):
    """The request of a client in one step."""

    PUSH = "push"
    PULL = "pull"
    PULL_OLD = "pull old"
    DELETE = "delete"
    LIST = "list"
    CATALOG = "catalog"
    ATTACH = "attach"
    REFERRERS = "referrers"


@dataclass(frozen=True)
class Step:
    """One step of a client; ``image`` is pushed, or named by its digest. ``subject`` is the digest of its subject."""

    verb: Verb
    pause_seconds: float
    repository: str = REPOSITORIES[0]
    tag: str = TAGS[0]
    image: Image | None = None
    subject: str = ""


class Harm(StrEnum):
    """The kinds of faults of a server."""

    KILL = "SIGKILL"
    STOP = "SIGSTOP"
    RESTART = "restart"
    OLDER = "restart from an older copy of"
    WIPE = "restart without the data of"
    SWAP = "exchange with its other replica"
    GARBLE = "wrong bytes of an object at"
    BREAK = "an error for an object at"
    EMPTY = "emptying of"
    FREEZE = "a frozen cache disk of"
    HANG = "a long SIGSTOP of"


HARMS_OF_ALL = (Harm.KILL, Harm.STOP, Harm.RESTART)
HARMS_OF_SOME = {
    "replica": (Harm.OLDER, Harm.WIPE, Harm.SWAP, Harm.GARBLE, Harm.BREAK),
    "node": (Harm.FREEZE, Harm.HANG),
    "redis": (Harm.EMPTY,),
    "receiver": (),
}
"""By the kind of a target; only while all others are well, as its data or answers may exist nowhere else."""

HARMS_TO_COMPARE = frozenset({Harm.OLDER, Harm.WIPE, Harm.SWAP, Harm.EMPTY})
"""After these the replicas are compared before all is well."""

_SECONDS = {
    Harm.KILL: (0.3, 4.0),
    Harm.SWAP: (0.3, 0.3),
    Harm.GARBLE: (3.0, 10.0),
    Harm.BREAK: (3.0, 10.0),
    Harm.FREEZE: (8.0, 20.0),
    Harm.HANG: (8.0, 40.0),
}
"""Shortest and longest; a node leaves a frozen disk after 6 s, and nginx a node that hangs after 7 s or 25 s."""


@dataclass(frozen=True)
class Fault:
    """A fault of a server: its length, and its distance from the end of the one before.

    ``pick`` from 0 to 1 chooses one of several things at the target.
    """

    harm: Harm
    target: str
    after_seconds: float
    for_seconds: float
    pick: float = 0.0

    def __str__(self) -> str:
        return f"{self.harm} {self.target} for {self.for_seconds:.1f} s"


def base_layers(seed: int) -> list[bytes]:
    """Return layers that many images share."""
    chance = random.Random(f"{seed} base")
    return [chance.randbytes(chance.randrange(50_000, 400_000)) for _ in range(_BASE_LAYERS)]


def artifact(subject: str, kind: str, label: str) -> Image:
    """Return a manifest that refers to another one, as a signature does."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(_EMPTY), "size": len(_EMPTY)},
        "layers": [],
        "subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 100},
        "annotations": {"label": label},
    }
    return Image(json.dumps(document).encode(), {digest_of(_EMPTY): _EMPTY})


def steps(seed: int, client: int, pace_seconds: float) -> Iterator[Step]:
    """Give the steps of a client, without end."""
    chance, base = random.Random(f"{seed} client {client}"), base_layers(seed)
    pushed: list[tuple[str, Image]] = []
    attached: list[tuple[str, Image]] = []
    for number in range(1_000_000):
        weights = (6, 10, 2, 1, 1, 1, 3, 2) if pushed else (1, 0, 0, 0, 0, 0, 0, 0)
        verb = chance.choices(list(Verb), weights)[0]
        pause = chance.uniform(0, 2 * pace_seconds)
        repository, tag = chance.choice(REPOSITORIES), chance.choice(TAGS)
        image: Image | None = None
        subject = ""
        if verb is Verb.PUSH:
            # Now and then an earlier image: a tag is rolled back.
            of_old = [image for where, image in pushed if where == repository]
            if of_old and chance.random() < 0.15:
                image = chance.choice(of_old)
            else:
                own = chance.randbytes(chance.choice((2_000, 60_000, 60_000, 300_000, 2_000_000)))
                image = make_image(chance.choice(base), own, label=f"{seed} {client} {number}")
            pushed = [*pushed[-30:], (repository, image)]
        elif verb in {Verb.DELETE, Verb.PULL_OLD}:
            repository, image = chance.choice([*pushed, *attached])
        elif verb in {Verb.ATTACH, Verb.REFERRERS}:
            repository, about = chance.choice(pushed[-_SUBJECTS:])
            subject = about.digest
        if verb is Verb.ATTACH:
            image = artifact(subject, chance.choice(_ARTIFACT_TYPES), f"{seed} {client} {number}")
            attached = [*attached[-10:], (repository, image)]
        yield Step(verb, pause, repository, tag, image, subject)


def faults(seed: int, targets: tuple[str, ...], further: Collection[Harm] = ()) -> Iterator[Fault]:
    """Give the faults, without end; those of ``further`` are used for the kinds of targets that have them."""
    chance = random.Random(f"{seed} faults")
    while True:
        target = chance.choice(targets)
        own = [each for each in HARMS_OF_SOME[target.partition("-")[0]] if each in further]
        harm = chance.choice([*HARMS_OF_ALL, *own])
        shortest, longest = _SECONDS.get(harm, (0.3, 6.0))
        yield Fault(harm, target, chance.uniform(0.3, 2.0), chance.uniform(shortest, longest), chance.random())
