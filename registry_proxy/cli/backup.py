"""`registry-proxy backup` and `restore`: the store as one file. They need no running node, only its configuration."""

import asyncio
import datetime as dt
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import typer

from registry_proxy.config.errors import StartError
from registry_proxy.config.load import SettingsError, load_settings
from registry_proxy.config.model import Settings
from registry_proxy.node.host import locked_cache
from registry_proxy.offline.backup import STANDARD_STREAM, Backup, BackupError, backup_store, restore_store
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import counted, print_note

_HINTS: Mapping[type[Exception], str | None] = {
    BackupError: None,
    StartError: "Stop the nodes before, and start them afterwards.",
    SettingsError: "`registry-proxy check-config FILE` checks a configuration.",
    StoreUnavailableError: "Is the store running, and `store` right?",
}

Config = Annotated[str, typer.Option("--config", "-c", metavar="FILE", help="The configuration of a node.")]


def backup(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The backup file, - for standard output. Protect it like passwords.")
    ],
    config: Config,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite FILE.")] = False,
) -> None:
    """Write the contents of the store to one file.

    It holds users, groups, robots and grants; secrets of robots as hashes; subscriptions with their secrets and headers
    in plain text; rules and bases; records of pushes, the history of tags, waiting events, and receipts of deployments.
    Nodes may run meanwhile. Images, caches and private keys are not in it.
    """
    with told_offline():
        settings = load_settings(config, os.environ)
        made = asyncio.run(backup_store(settings.store_url, file, replaces=replace))
        where = "what was printed" if file == STANDARD_STREAM else file
        print_note(f"{counted(made.count, 'record', f'are in {where}')}.")
        if made.pending:
            pending = counted(made.pending, "write", "were pending at some replica")
            print_note(f"{pending}: wait for the repair before a move.")


def restore(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A file of `registry-proxy backup`, - for standard input.")
    ],
    config: Config,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the contents of the store.")] = False,
    moved: Annotated[
        bool, typer.Option("--moved", help="Restore the journal too: nothing was pushed or deleted since the backup.")
    ] = False,
) -> None:
    """Bring a backup into the store, all of it or nothing; stop the nodes before, and start them after.

    Everybody logs in anew: earlier bearer and refresh tokens are revoked. Without --moved the journal is left as it
    is, because an old one would bring older tags back: run `registry-proxy replica verify` afterwards.
    """
    with told_offline():
        settings = load_settings(config, os.environ)
        held, written = asyncio.run(_restore(settings, file, moves=moved, replaces=replace))
        made_at = f"{dt.datetime.fromtimestamp(held.made_at, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
        where = settings.sqlite_path or "the store"
        print_note(f"{counted(written, 'record', f'of {made_at} restored into {where}')}.")
        if not moved:
            print_note("The journal of that time was left out (--moved takes it). Passwords are those of the backup.")
            print_note("Start the nodes, then compare the registries: `registry-proxy replica verify`.")


async def _restore(settings: Settings, file: str, *, moves: bool, replaces: bool) -> tuple[Backup, int]:
    async with locked_cache(settings.cache.path):  # a node that runs here would decide by what it remembers
        return await restore_store(settings.store_url, settings.changes_path, file, moves=moves, replaces=replaces)


@contextmanager
def told_offline() -> Iterator[None]:
    """Say why a command that needs no running node failed, and end it with 1."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{error.filename or 'the file'}: {error.strerror}") from error
    except tuple(_HINTS) as error:
        hint = next(hint for kind, hint in _HINTS.items() if isinstance(error, kind))
        raise CommandError(str(error), hint=hint) from error
