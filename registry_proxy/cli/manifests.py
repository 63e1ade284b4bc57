"""`registry-proxy manifest`: removing manifests that must not come back."""

from typing import Annotated

import typer

from registry_proxy.cli.tags import split_image
from registry_proxy.terminal.client import admin_client
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import JsonOption, YesOption, confirm, print_facts, print_note, printed_json

manifest_app = typer.Typer(help="Manifests that must not come back.", no_args_is_help=True)


@manifest_app.command("purge")
def purge_manifest(
    *,
    manifest: Annotated[
        str, typer.Argument(metavar="REPO@DIGEST", help="Manifest, such as team/app@sha256:….", show_default=False)
    ],
    reason: Annotated[str, typer.Option(help="Why, for the audit log.", show_default=False)],
    yes: YesOption = False,
    _json: JsonOption = False,
) -> None:
    """Remove a manifest for good, as where a secret was pushed: tags, kept content, caches, and its own blobs.

    No restore brings it back. A replica that is away deletes it when it returns.
    """
    if "@" not in manifest:
        raise CommandError(f"{manifest} names no digest", hint="A tag can move: name REPO@DIGEST.")
    repository, digest = split_image(manifest)
    confirm(f"Remove {manifest} for good?", yes=yes)
    with admin_client() as admin:
        asked = {"repository": repository, "digest": digest, "reason": reason}
        purged = admin.call("POST", "manifests", "purge", body=asked, patient=True).document
        if not printed_json(purged):
            print_facts(purged)
            print_note("The registries keep the bytes until their garbage collection. A secret in it needs a new one.")
