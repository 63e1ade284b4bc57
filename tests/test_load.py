"""The state that a worker inherits from the process of which it is a copy."""

import resource
from collections.abc import Callable

from registry_proxy.load import load_worker
from tests.support.copied import answer_of_a_copy


def test_the_first_workers_may_open_as_many_files_as_the_machine_allows() -> None:
    """Copies of a process that was made with a low soft limit, as a shell or systemd sets it, have the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def load() -> Callable[[], int]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard - 1), hard))
        load_worker()
        return lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    assert answer_of_a_copy(load) == hard
