"""`registry-proxy import`: images from another registry, with their signatures, into this proxy."""

import asyncio
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

from registry_proxy.protocol.patterns import repository_pattern_fault, tag_pattern_fault
from registry_proxy.terminal.credentials import PasswordFile, PasswordStdin, admin_url, find_credentials, read_password
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import JsonOption, counted, format_size, print_result, progress_bars

if TYPE_CHECKING:
    from registry_proxy.offline.importer import Outcome, RegistryAccess, Selection

SOURCE_PASSWORD_VARIABLE = "REGISTRY_PROXY_SOURCE_PASSWORD"  # noqa: S105 - the name of a variable
_TARGET = "http://127.0.0.1:5000"


def import_(  # noqa: PLR0917 - one parameter an option
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The registry, such as https://registry.example.com.")
    ],
    repository: Annotated[
        str, typer.Option(help="Pattern of the repositories; a name, for a registry without a list.")
    ] = "**",
    tags: Annotated[str, typer.Option(help="Pattern of the tags.")] = "*",
    prefix: Annotated[str, typer.Option(help="Prefix for each repository's name, such as old/.")] = "",
    target: Annotated[str, typer.Option(help="The public URL of this proxy.")] = _TARGET,
    source_user: Annotated[
        str | None, typer.Option(help="User at SOURCE; without one, the import does not log in there.")
    ] = None,
    password_stdin: PasswordStdin = False,
    password_file: PasswordFile = None,
    ca_file: Annotated[Path | None, typer.Option(help="Certificate authority of SOURCE, PEM.")] = None,
    at_once: Annotated[int, typer.Option(min=1, max=64, help="Number of images at the same time.")] = 4,
    _json: JsonOption = False,
) -> None:
    """Copy images from another registry into this proxy, with signatures and other referrers.

    They are pushed as you, who are logged in at the admin API. Tags that are there already are passed over, so an
    import that was interrupted is run again. The password of --source-user is read as the options say, or from
    REGISTRY_PROXY_SOURCE_PASSWORD. Images that could not be copied are listed at the end; the exit status is then 1.
    """
    from registry_proxy.offline.importer import RegistryAccess, Selection  # noqa: PLC0415 - no other command needs aiohttp

    _check(repository, tags, prefix)
    password = read_password(from_stdin=password_stdin, file=password_file)
    password = password or os.environ.get(SOURCE_PASSWORD_VARIABLE)
    if source_user is not None and password is None:
        raise CommandError(
            f"The password of {source_user} at the source is not known",
            hint=f"Give --password-stdin or --password-file, or set {SOURCE_PASSWORD_VARIABLE}.",
        )
    selection = Selection(repositories=repository, tags=tags, prefix=prefix, at_once=at_once)
    here = find_credentials(admin_url())
    outcome = _run(
        RegistryAccess(_as_url(source), source_user, password, ca_file),
        RegistryAccess(_as_url(target), here.username, here.password),
        selection,
    )
    size = format_size(outcome.blob_bytes)
    present = f"{outcome.present} {'was' if outcome.present == 1 else 'were'} there already"
    print_result(asdict(outcome), f"{counted(outcome.copied, 'image')} copied ({size}), {present}.")
    if not outcome.found and not outcome.failed:
        raise CommandError(
            f"{source} has no image that matches --repository {repository} --tags {tags}",
            hint="`**` is any repository, `team/**` all below team/, `*` any tag.",
        )
    if outcome.failed:
        faults = [f"{name}: {reason}" for name, reason in sorted(outcome.failed.items())]
        text = counted(len(faults), "image", "were not copied")
        raise CommandError(text, faults=faults, hint="Run the command again for them.")


def _check(repository: str, tags: str, prefix: str) -> None:
    faults = {
        "--repository": repository_pattern_fault(repository),
        "--tags": tag_pattern_fault(tags),
        "--prefix": repository_pattern_fault(f"{prefix}x") if prefix.endswith("/") or not prefix else "expected a /",
    }
    for option, fault in faults.items():
        if fault is not None:
            raise typer.BadParameter(fault, param_hint=option)


def _as_url(registry: str) -> str:
    return registry.rstrip("/") if "://" in registry else f"https://{registry.rstrip('/')}"


def _run(source: "RegistryAccess", target: "RegistryAccess", selection: "Selection") -> "Outcome":
    from registry_proxy.offline.importer import ImportFailedError, import_images  # noqa: PLC0415 - as above

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with progress_bars(*columns) as progress:
        bar = progress.add_task("Images", total=None)

        def show(outcome: "Outcome") -> None:
            done = outcome.copied + outcome.present + len(outcome.failed)
            text = f"Images ({format_size(outcome.blob_bytes)})"
            progress.update(bar, total=outcome.found or None, completed=done, description=text)

        try:
            return asyncio.run(import_images(source, target, selection, show))
        except (ImportFailedError, OSError) as error:
            hint = "Nothing was copied: see --help for users and certificates."
            if "SSL" in str(error):
                hint = "Nothing was copied. A registry that speaks plain HTTP is named with http:// before its address."
            raise CommandError(str(error), hint=hint) from error
