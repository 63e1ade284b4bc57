"""The program and its admin listener, from the tests of the commands."""

from tests.cli.conftest import environment, listener, run

__all__ = ["environment", "listener", "run"]
