"""A login costs the same however many secrets others have stored, and disturbs no worker."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from registry_proxy.access import grants
from registry_proxy.access.control import AccessControl
from registry_proxy.access.grant import Grant, GrantInput
from registry_proxy.access.grants import _compile as compile_grant
from registry_proxy.access.secrets import Secret, SecretKind, secret_of
from registry_proxy.access.tokens import TokenVerifier
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.secrets import SecretInput
from registry_proxy.directory.users import UserInput
from registry_proxy.ports.store import Record, Table
from registry_proxy.protocol.scope import Action
from registry_proxy.store.open import open_store
from registry_proxy.store.sqlite import SqliteStore
from tests.support.passwords import quick_passwords

HOME = "192.0.2.1"
OTHERS = 50


@dataclass
class Bench:
    """Two workers of a node; ``listed`` counts the records that were read in lists."""

    directory: Directory
    workers: list[AccessControl]
    listed: list[int]


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """Open two workers with refresh tokens of fifty users."""
    async with AsyncExitStack() as stack:
        url, workers = f"sqlite:///{tmp_path / 'store.db'}", []
        store, _ = await stack.enter_async_context(open_store(url, str(tmp_path / "page")))
        with quick_passwords():
            directory = Directory(store)
            stack.push_async_callback(directory.aclose)
            for _ in range(2):
                store, watch = await stack.enter_async_context(open_store(url, str(tmp_path / "page")))
                control = AccessControl(store, watch, TokenVerifier("registry-proxy"), outage_max_age_seconds=None)
                stack.push_async_callback(control.aclose)
                workers.append(control)
        for number in range(OTHERS):
            await directory.users.put(f"user{number}", UserInput(password="password of a user"))
            await directory.secrets.add(f"user:user{number}", SecretKind.REFRESH, SecretInput())
        await directory.users.put("ann", UserInput(password="password of ann"))
        for control in workers:
            await control.policy()
        listed: list[int] = []
        list_records = SqliteStore.list

        async def counted(store: SqliteStore, table: Table, prefix: str = "") -> list[Record]:
            found = await list_records(store, table, prefix)
            listed.append(len(found))
            return found

        monkeypatch.setattr(SqliteStore, "list", counted)
        yield Bench(directory, workers, listed)


async def test_a_refresh_token_is_made_and_used_without_the_others(bench: Bench) -> None:
    """No login reads the refresh tokens of others or makes a worker load the policy again."""
    policies: list[Any] = [await worker.policy() for worker in bench.workers]
    secret, text = await bench.directory.secrets.add("user:ann", SecretKind.REFRESH, SecretInput())
    for worker in bench.workers:
        login = await worker.refresh(text)
        assert (login.subject, login.secret_id) == ("user:ann", secret.id)
    assert sum(bench.listed) <= 1
    assert [await worker.policy() for worker in bench.workers] == policies


async def test_a_list_of_ones_own_secrets_makes_nothing_of_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of the caller's own secrets builds none of others: fifty thousand would stop the other requests."""
    for number in range(10):
        await bench.directory.secrets.add(f"user:user{number}", SecretKind.PERSONAL, SecretInput())
    own, _ = await bench.directory.secrets.add("user:ann", SecretKind.PERSONAL, SecretInput())
    made: list[str] = []

    def counted(record: Record) -> Secret:
        made.append(record.key)
        return secret_of(record)

    monkeypatch.setattr("registry_proxy.directory.secrets.secret_of", counted)
    assert [each.id for each in await bench.directory.secrets.list("user:ann")] == made == [own.id]


async def test_a_change_of_ones_own_tokens_compiles_no_grant(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the caller's own tokens reuses the compiled grants, so that no other request waits."""
    given = GrantInput(subject="user:ann", repository="team/app", actions=["pull"])
    await bench.directory.grants.add(given)
    policies = [await worker.policy() for worker in bench.workers]
    compiled: list[str] = []

    def counted(grant: Grant) -> Any:
        compiled.append(grant.id)
        return compile_grant(grant)

    monkeypatch.setattr(grants, "_compile", counted)
    secret, _ = await bench.directory.secrets.add("user:ann", SecretKind.PERSONAL, SecretInput())
    for worker, before in zip(bench.workers, policies, strict=True):
        await worker.snapshots.check()
        policy = await worker.policy()
        assert policy is not before
        assert policy.find_secret(secret.id) is not None
        assert policy.decide("user:ann", "team/app", Action.PULL).allowed
    assert compiled == []
    await bench.directory.grants.add(replace(given, repository="team/other"))
    assert (await bench.workers[0].policy()).decide("user:ann", "team/other", Action.PULL).allowed
    assert len(compiled) == 2
