"""`registry-proxy deployment`: reports of what was made to run, and what runs where."""

from typing import Annotated

import typer

from registry_proxy.terminal.client import admin_client, given
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import JsonOption, print_note, print_table, printed_json
from registry_proxy.terminal.times import PastMoment

deployment_app = typer.Typer(help="Deployments: what runs where.", no_args_is_help=True)

_COLUMNS = ("environment", "repository", "tag", "digest", "outcome", "runs", "since", "subject", "revision", "behind")
_SHORT_DIGEST = len("sha256:0123456789ab")


@deployment_app.command("list")
def list_deployments(
    environment: Annotated[str | None, typer.Option(help="Only this environment.")] = None,
    repository: Annotated[str | None, typer.Option(help="Only this repository.")] = None,
    history: Annotated[bool, typer.Option("--history", help="Also the deployments before those.")] = False,
    _json: JsonOption = False,
) -> None:
    """List what runs where, since when and from which commit, and later deployments that failed.

    BEHIND counts the moves of the tag since.
    """
    query = given(environment=environment, repository=repository, history="true" if history else None)
    with admin_client() as admin:
        found = admin.list_all("deployments", query=query)
        if not printed_json(found):
            shown = [{**each, "digest": each["digest"][:_SHORT_DIGEST]} for each in found]
            print_table(_COLUMNS, shown, empty="No deployment is on record.")


@deployment_app.command("report")
def report_deployment(
    environment: Annotated[str, typer.Argument(help="Where it runs, such as production.", show_default=False)],
    image: Annotated[
        str, typer.Argument(help="The image, such as team/app@sha256:… or team/app:1.2@sha256:…", show_default=False)
    ],
    outcome: Annotated[
        str, typer.Option(help="succeeded, failed (the one before runs on) or removed (nothing runs any more).")
    ] = "succeeded",
    at: PastMoment = None,
    _json: JsonOption = False,
) -> None:
    """Report a deployment, as a robot or job that may pull there, or as a user who may push there, too."""
    name, _, digest = image.partition("@")
    repository, _, tag = name.partition(":")
    if "/" in tag or not digest:
        hint = "Write REPOSITORY@DIGEST or REPOSITORY:TAG@DIGEST, without the address of the registry."
        raise CommandError(f"{image} does not name an image by its digest", hint=hint)
    body = given(environment=environment, repository=repository, digest=digest, outcome=outcome, at=at)
    with admin_client() as admin:
        made = admin.call("POST", "deployments", body={**body, "tag": tag}).document
        if not printed_json(made):
            print_note(f"Reported: {made['outcome']} in {environment}.")
