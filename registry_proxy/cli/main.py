"""The program `registry-proxy`: the service itself, and the admin API as commands."""

import asyncio
import contextlib
import functools
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from registry_proxy.cli.admin import Commands, register
from registry_proxy.config.errors import StartError
from registry_proxy.config.load import SettingsError, load_settings
from registry_proxy.config.model import Settings
from registry_proxy.load import load_worker
from registry_proxy.node.fork_server import ForkServer
from registry_proxy.node.host import open_standard_streams
from registry_proxy.node.supervisor import run

app = typer.Typer(
    name="registry-proxy",
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
register(app)


def _print_version(*, is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"registry-proxy {version('registry-proxy')}")
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A proxy for Docker and OCI registries, with a cache, permissions and fail-over."""


# -P: modules that lie where it was started are not ours.
_NEW_FORK_SERVER = (sys.executable, "-P", "-m", "registry_proxy", "fork-server")


@app.command()
def serve(
    config: Annotated[str, typer.Option("--config", "-c", metavar="FILE", help="The configuration, a YAML file.")],
) -> None:
    """Run the service until SIGINT or SIGTERM.

    The first signal drains, a second one stops the process immediately. SIGHUP reloads FILE.
    """
    open_standard_streams()
    load = functools.partial(load_settings, os.path.abspath(config), os.environ)
    try:
        with contextlib.closing(ForkServer(load_worker, _NEW_FORK_SERVER)) as forks:
            asyncio.run(run(load, forks))
    except SettingsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except StartError as error:
        typer.echo(f"registry-proxy cannot start: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def check_config(
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="The configuration, a YAML file.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of such a file, for editors.")
    ] = False,
) -> None:
    """Check a configuration, with the overrides of the environment: print OK, or every fault with its line."""
    if schema:
        typer.echo(Settings.schema_for_editors(), nl=False)
        return
    if file is None:
        raise typer.BadParameter("name a file, or --schema", param_hint="FILE")
    try:
        load_settings(file, os.environ)
    except SettingsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo("OK")
