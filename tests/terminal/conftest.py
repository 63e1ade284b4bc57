"""The program and its admin listener, as the tests of the commands have them."""

from tests.cli.conftest import environment, listener, run

__all__ = ["environment", "listener", "run"]
