"""What a failing registry costs a client: killed in the middle of a blob, and a black hole that never answers.

Part of `make bench`. Two real registries, each behind a relay that stops at the byte where it is to be killed.
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load import describe_machine
from tests.product import digest_of
from tests.relayed import Relayed, relayed

MIB = 2**20


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile: the worst of up to 100."""
    return sorted(values)[max(0, round(len(values) * 0.99) - 1)]


def kills(pair: Relayed, count: int, chance: random.Random) -> None:
    """Print how much later a download ends when the registry that serves it is killed."""
    undisturbed, added, wrong = [], [], 0
    blobs = []
    for _ in range(count):
        pair.wait_for_both()
        blob = pair.add_blob(64 * MIB)
        undisturbed.append(pair.pull(digest_of(blob)).seconds)
        blob = pair.add_blob(64 * MIB)
        download = pair.kill_while_serving(digest_of(blob), chance.randrange(64 * MIB))
        blobs.append(download.seconds)
        wrong += download.body != blob
    usual = statistics.median(undisturbed)
    added = [seconds - usual for seconds in blobs]
    print(
        f"\n### The serving registry is killed (SIGKILL) at a random byte of a cold 64 MiB blob, {count} times\n\n"
        "| | ms |\n|---|---|\n"
        f"| undisturbed, median | {usual * 1e3:.0f} |\n"
        f"| undisturbed, worst, over the median | {(max(undisturbed) - usual) * 1e3:.0f} |\n"
        f"| added by a kill, median | {statistics.median(added) * 1e3:.0f} |\n"
        f"| added by a kill, p99 | {p99(added) * 1e3:.0f} |\n"
        f"\nwrong bodies: {wrong}"
    )


def main() -> None:
    """Measure and print; the exit status is 0 whatever the figures are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="downloads that are disturbed (default 20)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the offsets")
    options = parser.parse_args()
    print(f"{describe_machine()}; seed {options.seed}; the client on the same cores")
    with tempfile.TemporaryDirectory(prefix="bench-") as root, relayed(Path(root)) as pair:
        kills(pair, options.kills, random.Random(options.seed))


if __name__ == "__main__":
    main()
