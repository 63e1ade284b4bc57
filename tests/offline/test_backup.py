"""The store as one file: saved, verified, restored, moved between SQLite and Redis."""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from registry_proxy.offline.backup import (
    Backup,
    BackupError,
    backup_store,
    read_file,
    restore,
    restore_store,
    take,
    write_file,
)
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.store.open import open_store
from tests.support.servers import Server

CONTENTS = [
    Change(Table.USERS, "ann", {"password_hash": "$argon2id$..."}),
    Change(Table.GRANTS, "1", {"subject": "user:ann"}),
    Change(Table.ROBOTS, "ci", {}),
    Change(Table.SUBJECTS, "user:ann", {"generation": 4}),
    Change(Table.KEYS, "thumbprint", {"x": "public"}),
    Change(Table.LOCATION_KEYS, "1", {"key": "secret of a node"}),
    Change(Table.MANIFESTS, "main/a|sha256:1", {"size_bytes": 1}),
    Change(Table.TAGS, "main/a|latest", {"digest": "sha256:1"}),
    Change(Table.INTENTS, "main/a|tag|latest", {"missing": ["b"]}),
    Change(Table.META, "members/main", {"names": ["a", "b"]}),
    Change(Table.MOVES, "main/a|latest|00000000000000001", {"kind": "push", "digest": "sha256:1"}),
    Change(Table.BASES, "sha256:1", {"names": ["base/debian:12"], "at": 1.0}),
    Change(Table.RULES, "from-git", {"repository": "**", "not_root": True}),
    Change(Table.PURGED, "main/a|sha256:2", {"at": 1.0, "blobs": []}),
    Change(Table.DEPLOYMENTS, "a|production", {"receipts": []}),
]


async def contents(store: Store) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return all records of a store, without the version of its schema."""
    found = {table.value: {r.key: r.value for r in await store.list(table) if r.key != "schema"} for table in Table}
    return {table: records for table, records in found.items() if records}


@pytest.mark.parametrize("direction", ["to redis", "to sqlite"])
async def test_a_store_moves_to_another_kind(tmp_path: Path, redis: Server, direction: str) -> None:
    """All records arrive, the journal too; keys of nodes stay, and every earlier token is refused."""
    urls = [f"sqlite:///{tmp_path / 'store.db'}", f"redis://127.0.0.1:{redis.port}/0"]
    source, target = urls if direction == "to redis" else reversed(urls)
    page, file = str(tmp_path / "page"), str(tmp_path / "backup")
    async with open_store(source, page) as (store, _):
        await store.commit(CONTENTS)
    await backup_store(source, file, replaces=False)
    await restore_store(target, page, file, moves=True, replaces=False)
    async with open_store(target, page) as (store, _):
        found = await contents(store)
    wanted: dict[str, dict[str, Any]] = {}
    for change in CONTENTS:
        if change.table not in {Table.KEYS, Table.LOCATION_KEYS, Table.SUBJECTS}:
            wanted.setdefault(change.table.value, {})[change.key] = change.value
    generations = {"user:ann": 5, "robot:ci": 1, "anonymous": 1}
    wanted["subjects"] = {subject: {"generation": number} for subject, number in generations.items()}
    assert found == wanted


async def test_an_old_journal_is_not_applied(tmp_path: Path) -> None:
    """A later restore leaves the missing contents of replicas and the values of tags as they are now."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        await store.commit(CONTENTS)
        backup = await take(store)
        now = [Change(Table.TAGS, "main/a|latest", {"digest": "sha256:2"}), Change(Table.USERS, "bob", {})]
        await store.commit([*now, Change(Table.INTENTS, "main/a|tag|latest", None)])
        await restore(store, backup, moves=False, replaces=True)
        found = await contents(store)
    assert found["tags"] == {"main/a|latest": {"digest": "sha256:2"}}
    assert "intents" not in found
    assert set(found["users"]) == {"ann"}
    assert found["keys"] == {"thumbprint": {"x": "public"}}


@pytest.mark.parametrize("moves", [True, False])
async def test_a_restored_store_proves_nothing(tmp_path: Path, *, moves: bool) -> None:
    """Comparisons of replicas are in no backup; a store that replaces another one has none either."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        await store.commit([*CONTENTS, Change(Table.COMPARED, "main", {"names": ["a", "b"]})])
        backup = await take(store)
        await restore(store, backup, moves=moves, replaces=True)
        found = await contents(store)
    assert Table.COMPARED not in backup.contents
    assert ("compared" in found) is not moves  # the journal behind it has stayed as well


async def test_a_revoked_token_does_not_become_good_again(tmp_path: Path) -> None:
    """A token revoked after the backup stays refused: generations are higher than before, also of deleted subjects."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        await store.commit(CONTENTS)
        backup = await take(store)
        later = {"user:ann": 9, "user:eve": 3}
        await store.commit([Change(Table.SUBJECTS, name, {"generation": g}) for name, g in later.items()])
        await restore(store, backup, moves=False, replaces=True)
        found = {record.key: record.value["generation"] for record in await store.list(Table.SUBJECTS)}
    assert found == {"user:ann": 10, "user:eve": 4, "robot:ci": 1, "anonymous": 1}


async def test_a_store_in_use_is_not_overwritten_unasked(tmp_path: Path) -> None:
    """A store with users is not changed without the option that allows it."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        await store.commit([Change(Table.USERS, "bob", {})])
        before = await contents(store)
        with pytest.raises(BackupError, match=r"holds users already.*--replace"):
            await restore(store, Backup(0, {Table.USERS: {"ann": {}}}), moves=False, replaces=False)
        assert await contents(store) == before


async def test_a_file_is_whole_or_refused(tmp_path: Path) -> None:
    """A file that is cut at any line, changed in a byte, of a later format, or foreign is refused."""
    path = tmp_path / "backup"
    made = Backup(1.5, {Table.USERS: {"ann": {"admin": True}, "bob": {}}, Table.GRANTS: {"1": {"actions": ["pull"]}}})
    write_file(made, str(path), replaces=False)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    read = await read_file(str(path))
    assert (read.count, read.made_at, read.contents[Table.USERS]["ann"]) == (3, 1.5, {"admin": True})
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    damaged = [b"".join(lines[:count]) for count in range(len(lines))]
    damaged += [whole.replace(b"ann", b"eve"), whole[:-3], b"", b"{}\n", b"\xff\n", b"[]\n[]\n"]
    damaged.append(whole.replace(b'"version": 1', b'"version": 2'))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(BackupError):
            await read_file(str(path))


def test_a_backup_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """A value that is no JSON leaves the earlier file unchanged, and no other file beside it."""
    path = tmp_path / "backup"
    write_file(Backup(1, {Table.USERS: {"ann": {}}}), str(path), replaces=False)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_file(Backup(2, {Table.USERS: {"ann": {"x": object()}}}), str(path), replaces=True)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["backup"]
    assert json.loads(before.splitlines()[0])["version"] == 1


async def test_a_backup_goes_over_a_file_only_by_option(tmp_path: Path) -> None:
    """An existing file stays without --replace; a path that cannot be written is named as given."""
    path = tmp_path / "backup"
    path.write_text("of yesterday")
    made = Backup(1, {Table.USERS: {"ann": {}}})
    with pytest.raises(BackupError, match=rf"{path} is there already.*--replace"):
        write_file(made, str(path), replaces=False)
    assert path.read_text() == "of yesterday"
    write_file(made, str(path), replaces=True)
    assert (await read_file(str(path))).count == 1
    nowhere = tmp_path / "no such directory" / "backup"
    for wrong in (nowhere, tmp_path):
        with pytest.raises(BackupError) as caught:
            write_file(made, str(wrong), replaces=True)
        assert str(caught.value).startswith(f"{wrong} cannot be written: ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["backup"]
