"""Refresh tokens: found one by one, those of earlier versions too, and served from a copy in an outage."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from registry_proxy.access import refresh_tokens as module
from registry_proxy.access.refresh_tokens import RefreshTokens
from registry_proxy.access.secrets import SecretKind, is_refresh_id, make_secret_text
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.revise import NotFoundError
from registry_proxy.directory.secrets import SecretInput
from registry_proxy.directory.users import UserInput
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.store.open import open_store
from registry_proxy.tasks import end, spawn
from tests.support.passwords import quick_passwords
from tests.support.servers import Server
from tests.support.waiting import until


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Directory]:
    """A directory with the users ann and bob."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", None) as (store, _):
        with quick_passwords():
            directory = Directory(store)
        for name in ("ann", "bob"):
            await directory.users.put(name, UserInput(password="password of a user"))
        yield directory
        await directory.aclose()


async def add_of_earlier_version(store: Store, directory: Directory, subject: str, expires_at: float) -> str:
    """Store a refresh token as earlier versions did; return its id."""
    secret, _ = await directory.secrets.add(subject, SecretKind.REFRESH, SecretInput())
    await directory.secrets.delete(subject, secret.id)
    secret_id, _, _ = make_secret_text(SecretKind.PERSONAL, subject)
    stored = replace(secret, id=secret_id, expires_at=expires_at).stored()
    await store.commit([Change(Table.SECRETS, secret_id, stored)])
    return secret_id


async def test_those_of_a_subject_are_found_together(directory: Directory) -> None:
    """Each token is listed, and removed, for its subject alone, whatever version made it."""
    made = [(await directory.secrets.add("user:ann", SecretKind.REFRESH, SecretInput()))[0].id for _ in range(3)]
    assert all(map(is_refresh_id, made))
    made.append(await add_of_earlier_version(directory.secrets._store, directory, "user:ann", time.time() + 1000))
    other, _ = await directory.secrets.add("user:bob", SecretKind.REFRESH, SecretInput())
    assert {secret.id for secret in await directory.secrets.list("user:ann")} == set(made)
    with pytest.raises(NotFoundError):
        await directory.secrets.delete("user:ann", other.id)
    for secret_id in made:
        await directory.secrets.delete("user:ann", secret_id)
    assert await directory.secrets.list("user:ann") == []
    await directory.users.delete("bob")
    assert await directory.secrets.list("user:bob") == []


async def test_expired_ones_are_removed(directory: Directory) -> None:
    """Expired refresh tokens of both kinds are removed; expired personal tokens stay listed."""
    soon = SecretInput(expires_at=time.time() + 0.2)
    for kind in (SecretKind.REFRESH, SecretKind.PERSONAL):
        await directory.secrets.add("user:ann", kind, soon)
    await add_of_earlier_version(directory.secrets._store, directory, "user:ann", time.time() - 1)
    kept, _ = await directory.secrets.add("user:ann", SecretKind.REFRESH, SecretInput())
    await until(lambda: time.time() > (soon.expires_at or 0))
    await directory.secrets.remove_expired_refresh_tokens()
    left = await directory.secrets.list("user:ann")
    assert [(each.kind, each.id == kept.id) for each in left] == [
        (SecretKind.PERSONAL, False),
        (SecretKind.REFRESH, True),
    ]


async def test_a_copy_forgets_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the removal of every token, no token is accepted in an outage."""
    monkeypatch.setattr(module, "COPY_SECONDS", 0.05)
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0)
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "changes")) as (store, changes):
        with quick_passwords():
            directory = Directory(store)
        await directory.users.put("ann", UserInput(password="password of a user"))
        tokens = RefreshTokens(store, changes)
        copying = spawn(tokens.keep_copied(), "copy")
        secret, _ = await directory.secrets.add("user:ann", SecretKind.REFRESH, SecretInput())
        await until(lambda: secret.id in tokens._copies.get(secret.id[:2], {}))
        await directory.secrets.delete("user:ann", secret.id)
        await until(lambda: not any(tokens._copies.values()))
        await end(copying)
        await directory.aclose()


async def test_an_outage_is_served_from_a_copy(redis: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While Redis is away a node accepts tokens that it never saw; for an unknown one it is unavailable."""
    monkeypatch.setattr(module, "COPY_SECONDS", 0.05)
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0)
    url = f"redis://127.0.0.1:{redis.port}/0"
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_store(url, str(tmp_path / name))) for name in ("one", "two")]
        (store, _), (other_store, changes) = opened
        with quick_passwords():
            directory = Directory(store)
        await directory.users.put("ann", UserInput(password="password of a user"))
        tokens = RefreshTokens(other_store, changes)
        copying = spawn(tokens.keep_copied(), "copy")
        secret, _ = await directory.secrets.add("user:ann", SecretKind.REFRESH, SecretInput())
        await until(lambda: secret.id in tokens._copies.get(secret.id[:2], {}))
        redis.stop()
        found = await tokens.find(secret.id)
        assert found is not None
        assert found.hash == secret.hash
        with pytest.raises(StoreUnavailableError):
            await tokens.find(secret.id[:-4] + "ffff")
        await end(copying)
        await directory.aclose()
