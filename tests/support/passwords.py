"""Passwords that are hashed with next to no work, for tests that are about something else."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from argon2 import PasswordHasher

from registry_proxy.access import credentials


def hash_quickly(patch: pytest.MonkeyPatch) -> None:
    """Have what is made from now on hash passwords quickly: a hash as it is stored takes 50 ms of a processor."""
    patch.setattr(credentials, "PasswordHasher", lambda **_: PasswordHasher(1, 64, 1))


@contextmanager
def quick_passwords() -> Iterator[None]:
    """Have what is made in a with block hash passwords quickly."""
    with pytest.MonkeyPatch.context() as patch:
        hash_quickly(patch)
        yield
