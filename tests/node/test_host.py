"""Resources of one node, and the state of the process at its start."""

import os
import sys
from collections.abc import Callable

from registry_proxy.node.host import open_standard_streams
from tests.support.copied import answer_of_a_copy


def test_nothing_that_is_opened_takes_the_place_of_closed_output() -> None:
    """A process started with input, output and errors closed prints into nothing, and so do its children."""

    def load() -> Callable[[], list[list[object]]]:
        def tell() -> list[list[object]]:
            for standard in range(3):
                os.close(standard)
            sys.stdin = sys.stdout = sys.stderr = None
            open_standard_streams()
            print("to nobody")
            print("to nobody", file=sys.stderr, flush=True)
            return [[os.readlink(f"/proc/self/fd/{number}"), os.get_inheritable(number)] for number in range(3)]

        return tell

    assert answer_of_a_copy(load) == [[os.devnull, True]] * 3
