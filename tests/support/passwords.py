"""Passwords with nearly free hashes, for tests of other subjects."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from argon2 import PasswordHasher

from registry_proxy.access import credentials


def hash_quickly(patch: pytest.MonkeyPatch) -> None:
    """Make all later hashers quick: a stored hash takes 50 ms of a processor."""
    patch.setattr(credentials, "PasswordHasher", lambda **_: PasswordHasher(1, 64, 1))


@contextmanager
def quick_passwords() -> Iterator[None]:
    """Make all hashers that are created in a with block quick."""
    with pytest.MonkeyPatch.context() as patch:
        hash_quickly(patch)
        yield
