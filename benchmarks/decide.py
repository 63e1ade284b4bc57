"""The time of one decision over 10,000 grants and 1,000 groups; and the time until a change of them is in force.

Part of `make bench`. Nothing is remembered where it says "first": every question is a new one.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks.load import describe_machine
from registry_proxy.access.grant import Grant, GrantMode
from registry_proxy.access.policy import Policy
from registry_proxy.access.records import Group, User
from registry_proxy.protocol.scope import Action

GRANTS, GROUPS, USERS = 10_000, 1_000, 2_000
PATTERNS = ("team{}/**", "team{}/app-*", "team{}/a/b", "org/*/team{}/**", "**/shared{}", "home/{{subject}}/**")


def make_policy(chance: random.Random) -> Policy:
    """Return a policy of the measured size: each user in ten groups, grants mostly to groups."""
    users = [User(f"u{number}", "$argon2id$") for number in range(USERS)]
    groups = [
        Group(f"g{number}", tuple(f"u{chance.randrange(USERS)}" for _ in range(10 * USERS // GROUPS)))
        for number in range(GROUPS)
    ]
    grants = [
        Grant(
            id=f"{number:05}",
            subject=f"group:g{chance.randrange(GROUPS)}" if number % 4 else f"user:u{chance.randrange(USERS)}",
            repository=chance.choice(PATTERNS).format(chance.randrange(GROUPS)),
            actions=frozenset({Action.PULL, Action.PUSH} if number % 3 else {Action.PULL}),
            tags="*" if number % 5 else "v*",
            mode=GrantMode.ENFORCE,
            expires_at=None,
        )
        for number in range(GRANTS)
    ]
    return Policy(users, groups, grants, {})


def measured(ask: Callable[[int], object], count: int) -> list[float]:
    """Return the seconds of each of a number of calls."""
    taken = []
    for number in range(count):
        started = time.perf_counter()
        ask(number)
        taken.append(time.perf_counter() - started)
    return taken


def row(name: str, seconds: Sequence[float], unit: float = 1e-6) -> str:
    """Return a row of the table: median and 99th percentile."""
    p99 = sorted(seconds)[max(0, round(len(seconds) * 0.99) - 1)]
    return f"| {name} | {statistics.median(seconds) / unit:.1f} | {p99 / unit:.1f} |"


def main() -> None:
    """Measure and print; the exit status is 0 whatever the figures are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=20_000, help="how many (default 20,000)")
    parser.add_argument("--seed", type=int, default=7, help="of grants and questions (default 7)")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    policies: list[Policy] = []
    built = measured(lambda _: policies.append(make_policy(random.Random(options.seed))), 3)
    policy = policies[-1]
    questions = [
        (f"user:u{chance.randrange(USERS)}", f"team{chance.randrange(GROUPS)}/app-{number}", Action.PULL)
        for number in range(options.decisions)
    ]
    first = measured(lambda number: policy.decide(*questions[number]), options.decisions)
    again = measured(lambda number: policy.decide(*questions[number]), options.decisions)
    allowed = sum(policy.decide(*question).allowed for question in questions)
    print(
        f"{describe_machine()}; {GRANTS:,} grants, {GROUPS:,} groups, {USERS:,} users; seed {options.seed}; "
        f"{allowed / len(questions):.1%} allowed\n\n| | median | p99 |\n|---|---|---|"
    )
    print(row("first decision of its kind, us", first))
    print(row("the same again, us", again))
    print(row("all grants made and read, ms", built, 1e-3))


if __name__ == "__main__":
    main()
