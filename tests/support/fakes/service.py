"""Runs the real supervisor over the fake worker: ``service.py CONFIG SILENCE_SECONDS``."""

import asyncio
import contextlib
import functools
import os
import sys
import time

from registry_proxy.config.errors import StartError
from registry_proxy.config.load import load_settings
from registry_proxy.node import supervisor, worker
from registry_proxy.node.fork_server import ForkServer, RunCopy, serve_forks
from registry_proxy.node.generation import Timing
from registry_proxy.node.host import forget_configuration
from tests.support.fakes.worker import prepare, run_worker


def load() -> RunCopy:
    """Return the function of the fake worker."""
    forget_configuration()
    return functools.partial(worker.main, run_worker, prepare)


def main() -> None:
    """Run it as ``serve`` does, or its fork server."""
    if sys.argv[1] == "fork-server":
        if "RELOAD_HANGS" in os.environ:
            time.sleep(60)
        sys.exit(serve_forks(load, *map(int, sys.argv[2:])))
    config, silence = sys.argv[1:]
    command = [sys.executable, __file__, "fork-server"]
    timing = Timing(silence=float(silence), start=float(silence) * 4, grace=1)
    try:
        with contextlib.closing(ForkServer(load, command)) as forks:
            asyncio.run(supervisor.run(functools.partial(load_settings, config, os.environ), forks, timing))
    except StartError as error:
        sys.exit(f"cannot start: {error}")


if __name__ == "__main__":
    main()
