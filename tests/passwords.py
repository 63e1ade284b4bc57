"""Passwords that are hashed with next to no work, for tests that are about something else."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from argon2 import PasswordHasher

from registry_proxy.access import credentials


@contextmanager
def quick_passwords() -> Iterator[None]:
    """Have what is made in a with block hash passwords quickly: a hash as it is stored takes 50 ms of a processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(credentials, "PasswordHasher", lambda **_: PasswordHasher(1, 64, 1))
        yield
