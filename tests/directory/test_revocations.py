"""Revocations of tokens, on a real SQLite store."""

import asyncio

import pytest

from registry_proxy.access.faults import InvalidError
from registry_proxy.directory.directory import Directory
from registry_proxy.ports.store import Store
from tests.directory.conftest import generation


async def test_revocations_at_once_all_count(directory: Directory, store: Store) -> None:
    """Ten simultaneous revocations are ten generations."""
    revoked = await asyncio.gather(*(directory.revocations.revoke("user:ann") for _ in range(10)))
    assert sorted(generation for generation, _ in revoked) == list(range(1, 11))
    assert await generation(store, "user:ann") == 10


@pytest.mark.parametrize("subject", ["", "ann", "group:dev", "user:a:b"])
async def test_names_that_cannot_be_revoked(directory: Directory, subject: str) -> None:
    """Only subjects that have tokens can be revoked."""
    with pytest.raises(InvalidError):
        await directory.revocations.revoke(subject)
