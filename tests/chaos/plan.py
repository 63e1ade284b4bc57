"""What is done and what is broken, as a function of a seed alone: the same seed is the same plan."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from tests.support.product import Image, make_image

REPOSITORIES = ("team/api", "team/web", "team/deep/tool")
TAGS = ("latest", "1.0", "1.1")
_BASE_LAYERS = 4


class Verb(StrEnum):
    """What a client does in one step."""

    PUSH = "push"
    PULL = "pull"
    PULL_OLD = "pull old"
    DELETE = "delete"
    LIST = "list"
    CATALOG = "catalog"


@dataclass(frozen=True)
class Step:
    """One step of a client; ``image`` is pushed, or named by its digest."""

    verb: Verb
    pause_seconds: float
    repository: str = REPOSITORIES[0]
    tag: str = TAGS[0]
    image: Image | None = None


class Harm(StrEnum):
    """What is done to a server."""

    KILL = "SIGKILL"
    STOP = "SIGSTOP"
    RESTART = "restart"
    OLDER = "restart from an older copy of"
    WIPE = "restart without the data of"
    SWAP = "exchange with its other replica"
    EMPTY = "emptying of"


HARMS_OF_ALL = (Harm.KILL, Harm.STOP, Harm.RESTART)
HARMS_TO_DATA = {"replica": (Harm.OLDER, Harm.WIPE, Harm.SWAP), "redis": (Harm.EMPTY,)}
"""By the kind of a target; only where all others are well, for the data may be nowhere else."""


@dataclass(frozen=True)
class Fault:
    """What befalls which server: for how long, and how long after the last was healed."""

    harm: Harm
    target: str
    after_seconds: float
    for_seconds: float

    def __str__(self) -> str:
        return f"{self.harm} {self.target} for {self.for_seconds:.1f} s"


def base_layers(seed: int) -> list[bytes]:
    """Return layers that many images share."""
    chance = random.Random(f"{seed} base")
    return [chance.randbytes(chance.randrange(50_000, 400_000)) for _ in range(_BASE_LAYERS)]


def steps(seed: int, client: int, pace_seconds: float) -> Iterator[Step]:
    """Give the steps of a client, without end."""
    chance, base = random.Random(f"{seed} client {client}"), base_layers(seed)
    pushed: list[tuple[str, Image]] = []
    for number in range(1_000_000):
        weights = (6, 10, 2, 1, 1, 1) if pushed else (1, 0, 0, 0, 0, 0)
        verb = chance.choices(list(Verb), weights)[0]
        pause = chance.uniform(0, 2 * pace_seconds)
        repository, tag = chance.choice(REPOSITORIES), chance.choice(TAGS)
        image: Image | None = None
        if verb is Verb.PUSH:
            # Now and then an image of before: a tag is rolled back.
            of_old = [image for where, image in pushed if where == repository]
            if of_old and chance.random() < 0.15:
                image = chance.choice(of_old)
            else:
                own = chance.randbytes(chance.choice((2_000, 60_000, 60_000, 300_000, 2_000_000)))
                image = make_image(chance.choice(base), own, label=f"{seed} {client} {number}")
            pushed = [*pushed[-30:], (repository, image)]
        elif verb in {Verb.DELETE, Verb.PULL_OLD}:
            repository, image = chance.choice(pushed)
        yield Step(verb, pause, repository, tag, image)


def faults(seed: int, targets: tuple[str, ...], *, harms_data: bool = False) -> Iterator[Fault]:
    """Give the faults, without end; with ``harms_data`` some are to the data of their target."""
    chance = random.Random(f"{seed} faults")
    while True:
        harm, target = chance.choice(HARMS_OF_ALL), chance.choice(targets)
        to_data = HARMS_TO_DATA.get(target.partition("-")[0], ())
        if harms_data and to_data and chance.random() < 0.5:
            harm = chance.choice(to_data)
        longest = {Harm.KILL: 4.0, Harm.SWAP: 0.3}.get(harm, 6.0)
        yield Fault(harm, target, chance.uniform(0.3, 2.0), chance.uniform(0.3, longest))
