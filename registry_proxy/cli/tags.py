"""`registry-proxy tag`: what tags are, how they came to be that, and how two images differ."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from registry_proxy.terminal.client import AdminClient, admin_client, given
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import (
    JsonOption,
    counted,
    format_size,
    print_facts,
    print_list,
    print_note,
    print_result,
    print_table,
    printed_json,
)

tag_app = typer.Typer(
    help="Tags: what they are, and what they were. A client deletes one: DELETE /v2/REPO/manifests/TAG, "
    "as `crane delete` and `regctl tag rm` send it; `tag restore` brings it back.",
    no_args_is_help=True,
)

_Repository = Annotated[str, typer.Argument(help="Repository, such as team/app.", show_default=False)]
_Tag = Annotated[str, typer.Argument(metavar="REPO:TAG", help="Tag, such as team/app:1.2.", show_default=False)]
_Image = Annotated[
    str, typer.Argument(metavar="IMAGE", help="Image, such as team/app:1.2 or team/app@sha256:….", show_default=False)
]

_TAGS = ("tag", "digest", ("size_bytes", "SIZE"), ("kind", "LAST MOVE"), ("pushed_by", "BY"), ("pushed_at", "AT"))
_MOVES = (("at", "TIME"), "kind", "digest", "previous", ("subject", "BY"), ("address", "FROM"), "reason")
_DIFFERENCES = ("field", "from", "to")
_COMPARED = ("media_type", "platforms", "entrypoint", "command")


def split_image(image: str) -> tuple[str, str]:
    """Return repository and tag or digest of an image; ``latest`` where it names neither."""
    name, separator, digest = image.partition("@")
    if separator:
        return name, digest
    name, _, tag = image.partition(":")
    if "/" in tag:
        raise CommandError(
            f"{image} begins with the address of a registry", hint=f"Leave it out: {tag.partition('/')[2]}"
        )
    return name, tag or "latest"


def split_tag(image: str) -> tuple[str, str]:
    """Return repository and tag."""
    repository, tag = split_image(image)
    if "@" in image:
        raise CommandError(f"{image} is a digest, which never moves", hint="Name a tag, such as team/app:1.2.")
    return repository, tag


@tag_app.command("list")
def list_tags(repository: _Repository, _json: JsonOption = False) -> None:
    """List the tags of a repository at the registries, with digest and last move as they are on record."""
    with admin_client() as admin:
        tags = admin.list_all("tags", query={"repository": repository})
        if not printed_json(tags):
            print_table(_TAGS, list(map(_sized, tags)), empty=f"{repository} has no tag.")
            if unrecorded := sum(tag["digest"] is None for tag in tags):
                are = "is on no record: it was" if unrecorded == 1 else "are on no record: they were"
                print_note(f"{counted(unrecorded, 'tag')} {are} not pushed through this proxy since its store was new.")


@tag_app.command("history")
def show_history(tag: _Tag, _json: JsonOption = False) -> None:
    """List the moves of a tag, newest first."""
    repository, name = split_tag(tag)
    with admin_client() as admin:
        moves = admin.list_all("tags", "history", query={"repository": repository, "tag": name})
        print_list(_MOVES, moves, empty=f"{repository}:{name} has no move on record.")


@tag_app.command("show")
def show_image(image: _Image, _json: JsonOption = False) -> None:
    """Show an image: layers, environment, entry point, labels, sizes."""
    with admin_client() as admin:
        document = _read(admin, image)
        if not printed_json(document):
            labels = [f"{name}={value}" for name, value in document["labels"].items()]
            lists = {"labels": labels, "layers": _layers(document), "children": _children(document)}
            print_facts({**_sized(document), **lists})


@tag_app.command("diff")
def compare_images(
    image: _Image,
    other: Annotated[
        str | None,
        typer.Argument(metavar="[OTHER]", help="Image to compare with; without it, what the tag was before."),
    ] = None,
    _json: JsonOption = False,
) -> None:
    """Compare two images: layers, environment, entry point, labels, sizes.

    Without OTHER, a tag is compared with what it was before its last move.
    """
    with admin_client() as admin:
        if other is None:
            older, newer = _read(admin, _before(admin, image)), _read(admin, image)
        else:
            older, newer = _read(admin, image), _read(admin, other)
        differences = _differences(older, newer)
        if printed_json({"from": older["digest"], "to": newer["digest"], "differences": differences}):
            return
        print_note(f"{older['digest']} -> {newer['digest']}")
        print_table(_DIFFERENCES, differences, empty="The images do not differ.")


def _before(admin: AdminClient, image: str) -> str:
    """Return what a tag was before its newest state, as an image."""
    repository, tag = split_tag(image)
    page = admin.call("GET", "tags", "history", query={"repository": repository, "tag": tag}).document
    for move in page["items"]:
        if move["previous"] is not None:
            return f"{repository}@{move['previous']}"
    raise CommandError(f"{image} was nothing else before", hint="Name the image to compare with.")


def _read(admin: AdminClient, image: str) -> dict[str, Any]:
    repository, reference = split_image(image)
    return admin.call("GET", "tags", "image", query={"repository": repository, "reference": reference}).document


def _sized(document: Mapping[str, Any]) -> dict[str, Any]:
    size_bytes = document["size_bytes"]
    return {**document, "size_bytes": None if size_bytes is None else format_size(size_bytes)}


def _layers(document: Mapping[str, Any]) -> list[str]:
    return [f"{layer['digest']} ({format_size(layer['size_bytes'])})" for layer in document["layers"]]


def _children(document: Mapping[str, Any]) -> list[str]:
    return [f"{child['platform'] or '-'} {child['digest']}" for child in document["children"]]


def _differences(older: Mapping[str, Any], newer: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return what differs: a field, and its value in each image; None for a value that only the other has."""
    before, after = _facts(older), _facts(newer)
    return [
        {"field": field, "from": before.get(field), "to": after.get(field)}
        for field in dict.fromkeys([*before, *after])
        if before.get(field) != after.get(field)
    ]


def _facts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of an image that are compared, each under the name of its field."""
    facts = {"size": format_size(document["size_bytes"])}
    facts |= {field: document[field] for field in _COMPARED}
    facts |= {f"label {name}": value for name, value in document["labels"].items()}
    variables = (variable.partition("=") for variable in document["environment"])
    facts |= {f"environment {name}": value for name, _, value in variables}
    facts |= {f"layer {layer['digest']}": format_size(layer["size_bytes"]) for layer in document["layers"]}
    return facts | {f"image {child['platform'] or child['digest']}": child["digest"] for child in document["children"]}


_To = Annotated[str | None, typer.Option("--to", help="The digest that the tag becomes.")]
_Reason = Annotated[str, typer.Option(help="Why, for the history and the receivers of events.")]
_Dry = Annotated[bool, typer.Option("--dry-run", help="Only look whether it can be done.")]


_Override = Annotated[
    bool, typer.Option("--override-rules", help="Move the tag against rules of images; for administrators.")
]


@tag_app.command("rollback")
def roll_back(
    *,
    tag: _Tag,
    to: _To = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How many distinct digests back; 1 if not given.")] = None,
    reason: _Reason = "",
    dry_run: _Dry = False,
    override_rules: _Override = False,
    _json: JsonOption = False,
) -> None:
    """Make a tag what it was before, at all replicas at once, as a push does.

    A rollback that follows on another one goes further back.
    """
    if to is not None and steps is not None:
        raise typer.BadParameter("give either --to or --steps")
    body = given(digest=to, steps=steps)
    _move("rollback", tag, {**body, "reason": reason, "dry_run": dry_run, "override_rules": override_rules})


@tag_app.command("restore")
def restore_tag(
    *, tag: _Tag, to: _To = None, reason: _Reason = "", dry_run: _Dry = False, _json: JsonOption = False
) -> None:
    """Bring back a deleted tag: the image that it was last, or another one of its history by --to."""
    _move("restore", tag, {**given(digest=to), "reason": reason, "dry_run": dry_run})


@tag_app.command("promote")
def promote_image(
    *,
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Image, such as dev/app:1.2 or dev/app@sha256:….", show_default=False),
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="The tag that it becomes, such as prod/app:1.2.", show_default=False)
    ],
    reason: _Reason = "",
    dry_run: _Dry = False,
    override_rules: _Override = False,
    _json: JsonOption = False,
) -> None:
    """Make a tag an image of another repository, with its children, signatures and other referrers.

    The content is copied within the proxy. It takes the right to pull the source, and to push the target.
    """
    source = ("@" if "@" in source else ":").join(split_image(source))
    target = ":".join(split_tag(target))
    with admin_client() as admin:
        said = {"reason": reason, "dry_run": dry_run, "override_rules": override_rules}
        asked = {"source": source, "target": target, **said}
        moved = admin.call("POST", "tags", "promote", body=asked, patient=True).document
        _print_moved(target, moved, is_dry=dry_run, absent="it was not there")


def _move(verb: str, tag: str, body: Mapping[str, Any]) -> None:
    repository, name = split_tag(tag)
    with admin_client() as admin:
        asked = {"repository": repository, "tag": name, **body}
        moved = admin.call("POST", "tags", verb, body=asked, patient=True).document
        _print_moved(f"{repository}:{name}", moved, is_dry=body["dry_run"], absent="it did not exist")


def _print_moved(tag: str, moved: Mapping[str, Any], *, is_dry: bool, absent: str) -> None:
    was = absent if moved["previous"] is None else f"it was {moved['previous']}"
    print_result(moved, f"{tag} {'would be' if is_dry else 'is'} {moved['digest']}; {was}.")
