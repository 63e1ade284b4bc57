"""Runs the real supervisor over the fake worker: ``service.py CONFIG SILENCE_SECONDS``."""

import asyncio
import functools
import os
import sys
from pathlib import Path

from registry_proxy import supervisor
from registry_proxy.node import StartError
from registry_proxy.settings_load import load_settings


def main() -> None:
    """Run it as ``serve`` does."""
    config, silence = sys.argv[1:]
    timing = supervisor.Timing(silence=float(silence), start=float(silence) * 4)
    command = [sys.executable, str(Path(__file__).with_name("worker.py"))]
    try:
        asyncio.run(supervisor.run(functools.partial(load_settings, config, os.environ), command, timing))
    except StartError as error:
        sys.exit(f"cannot start: {error}")


if __name__ == "__main__":
    main()
