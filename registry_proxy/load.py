"""Loads what a worker consists of: late, in the process that the workers are copies of, and in no other."""

from functools import partial

from registry_proxy.node.fork_server import RunCopy
from registry_proxy.node.host import forget_configuration, give_memory_back, raise_file_limit


def load_worker() -> RunCopy:
    """Load all that a worker needs; return what it runs."""
    import encodings.idna  # noqa: F401, PLC0415 - else each worker loads it, with its first connection

    from registry_proxy.app import prepare, run_worker  # noqa: PLC0415
    from registry_proxy.node import worker  # noqa: PLC0415 - see above

    forget_configuration()
    give_memory_back()
    raise_file_limit()
    return partial(worker.main, run_worker, prepare)
