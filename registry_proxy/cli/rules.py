"""`registry-proxy rule`: conditions for what tags may be."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from registry_proxy.cli.subjects import ONLY_IF_NEW, change_subject
from registry_proxy.cli.tags import split_tag
from registry_proxy.config.types import parse_duration, parse_size
from registry_proxy.terminal.client import admin_client, given
from registry_proxy.terminal.output import JsonOption, counted, print_list, print_note, print_object, print_result

rule_app = typer.Typer(help="Rules of images, judged when a tag is pushed, moved or deleted.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The rule.", show_default=False)]
_COLUMNS = ("name", "repository", "tags", "except_tags", "mode", "conditions")
_CONDITIONS = (
    "labels",
    "max_size_bytes",
    "max_layers",
    "media_types",
    "platforms",
    "not_root",
    "max_age_seconds",
    "bases",
    "max_floors",
    "immutable",
)

_Tags = Annotated[str | None, typer.Option(help="Pattern of the tags; all if not given.")]
_Except = Annotated[list[str] | None, typer.Option("--except-tag", help="Pattern of tags to leave out; repeatable.")]
_Warn = Annotated[bool | None, typer.Option("--warn/--enforce", help="Only report violations, or refuse them.")]
_Label = Annotated[
    list[str] | None,
    typer.Option("--label", help="A label or annotation that images need, NAME=PATTERN or NAME; repeatable."),
]
_Size = Annotated[str | None, typer.Option("--max-size", help="Of one image, such as 500MiB.")]
_Layers = Annotated[int | None, typer.Option("--max-layers", min=1, help="Of one image.")]
_MediaType = Annotated[
    list[str] | None, typer.Option("--media-type", help="Pattern of the media types of a manifest; repeatable.")
]
_Platform = Annotated[list[str] | None, typer.Option("--platform", help="Such as 'linux/*'; repeatable.")]
_NotRoot = Annotated[bool | None, typer.Option("--not-root/--root", help="Images must name another user than root.")]
_Age = Annotated[str | None, typer.Option("--max-age", help="Since an image was created, such as 90d.")]
_Base = Annotated[
    list[str] | None,
    typer.Option("--base", help="Pattern REPOSITORY:TAG of allowed bases, or scratch; repeatable."),
]
_Floors = Annotated[int | None, typer.Option("--max-floors", min=1, help="Known images below an image, and itself.")]
_Immutable = Annotated[
    list[str] | None,
    typer.Option(
        "--immutable", metavar="overwrite|delete", help="Refuse to overwrite, or to delete, existing tags; repeatable."
    ),
]
_Advice = Annotated[str | None, typer.Option(help="A line that each refusal ends with.")]


@rule_app.command("list")
def list_rules(_json: JsonOption = False) -> None:
    """List all rules, each with the names of its conditions."""
    with admin_client() as admin:
        rules = admin.list_all("rules")
        named = [{**rule, "conditions": conditions_of(rule)} for rule in rules]
        print_list(_COLUMNS, named, empty="There are no rules.")


@rule_app.command("show")
def show_rule(name: _Name, _json: JsonOption = False) -> None:
    """Show one rule."""
    with admin_client() as admin:
        print_object(admin.call("GET", "rules", name).document)


@rule_app.command("add")
def add_rule(
    *,
    name: _Name,
    repository: Annotated[str, typer.Argument(help="Pattern of the repositories (quote it).", show_default=False)],
    tags: _Tags = None,
    except_tag: _Except = None,
    warn: _Warn = None,
    label: _Label = None,
    max_size: _Size = None,
    max_layers: _Layers = None,
    media_type: _MediaType = None,
    platform: _Platform = None,
    not_root: _NotRoot = None,
    max_age: _Age = None,
    base: _Base = None,
    max_floors: _Floors = None,
    immutable: _Immutable = None,
    advice: _Advice = None,
    _json: JsonOption = False,
) -> None:
    """Create a rule, with one condition at least. `--warn` first shows what it would refuse."""
    body = _fields(
        tags,
        except_tag,
        warn,
        label,
        max_size,
        max_layers,
        media_type,
        platform,
        not_root,
        max_age,
        base,
        max_floors,
        immutable,
        advice,
    )
    with admin_client() as admin:
        made = admin.call("PUT", "rules", name, body={"repository": repository, **body}, headers=ONLY_IF_NEW).document
        print_note(f"Rule {name} made.")
        print_object(made)


@rule_app.command("set")
def set_rule(
    *,
    name: _Name,
    repository: Annotated[str | None, typer.Option(help="Pattern of the repositories (quote it).")] = None,
    tags: _Tags = None,
    except_tag: _Except = None,
    warn: _Warn = None,
    label: _Label = None,
    max_size: _Size = None,
    max_layers: _Layers = None,
    media_type: _MediaType = None,
    platform: _Platform = None,
    not_root: _NotRoot = None,
    max_age: _Age = None,
    base: _Base = None,
    max_floors: _Floors = None,
    immutable: _Immutable = None,
    advice: _Advice = None,
    without: Annotated[
        list[str] | None, typer.Option(help=f"Remove a condition: {', '.join(_CONDITIONS)}; repeatable.")
    ] = None,
    _json: JsonOption = False,
) -> None:
    """Change a rule; options that are not given keep their values, and lists are replaced as a whole."""
    if unknown := [each for each in without or [] if each not in {*_CONDITIONS, "except_tags", "advice"}]:
        raise typer.BadParameter(f"{unknown[0]} is no condition: there are {', '.join(_CONDITIONS)}")
    changes = _fields(
        tags,
        except_tag,
        warn,
        label,
        max_size,
        max_layers,
        media_type,
        platform,
        not_root,
        max_age,
        base,
        max_floors,
        immutable,
        advice,
    )
    changes |= given(repository=repository) | dict.fromkeys(without or [])
    if not changes:
        raise typer.BadParameter("nothing to change: give --warn, --label, --without or another option")
    with admin_client() as admin:
        print_object(change_subject(admin, "rule", name, lambda _: changes))


@rule_app.command("rm")
def remove_rule(name: _Name) -> None:
    """Remove a rule."""
    with admin_client() as admin:
        admin.call("DELETE", "rules", name)
        print_note(f"Rule {name} removed.")


@rule_app.command("base")
def register_base(
    image: Annotated[str, typer.Argument(help="The image, such as base/debian:12.", show_default=False)],
    digest: Annotated[str | None, typer.Option(help="What the tag was; what it is if not given.")] = None,
    _json: JsonOption = False,
) -> None:
    """Register an image as a base that was not pushed through the service since there is a rule."""
    repository, tag = split_tag(image)
    body = {"repository": repository, "tag": tag, **given(digest=digest)}
    with admin_client() as admin:
        base = admin.call("POST", "bases", body=body, patient=True).document
        print_result(base, f"{base['name']} is known as a base, {counted(len(base['chains']), 'platform')}.")


def conditions_of(rule: Mapping[str, Any]) -> list[str]:
    """Return the names of the conditions of a rule."""
    return [name for name in _CONDITIONS if rule[name]]


def _fields(  # noqa: PLR0917 - the options of both commands, in their order
    tags: str | None,
    except_tags: Sequence[str] | None,
    warn: bool | None,
    labels: Sequence[str] | None,
    max_size: str | None,
    max_layers: int | None,
    media_types: Sequence[str] | None,
    platforms: Sequence[str] | None,
    not_root: bool | None,
    max_age: str | None,
    bases: Sequence[str] | None,
    max_floors: int | None,
    immutable: Sequence[str] | None,
    advice: str | None,
) -> dict[str, Any]:
    """Return the fields that options give."""
    return given(
        tags=tags,
        except_tags=except_tags,
        mode=None if warn is None else ("warn" if warn else "enforce"),
        labels=None if labels is None else dict(map(_label, labels)),
        max_size_bytes=_number("--max-size", parse_size, max_size),
        max_layers=max_layers,
        media_types=media_types,
        platforms=platforms,
        not_root=not_root,
        max_age_seconds=_number("--max-age", parse_duration, max_age),
        bases=bases,
        max_floors=max_floors,
        immutable=immutable,
        advice=advice,
    )


def _label(text: str) -> tuple[str, str]:
    name, _, pattern = text.partition("=")
    return name, pattern or "*"


def _number(option: str, parse: Callable[[str], float], text: str | None) -> int | None:
    try:
        return None if text is None else int(parse(text))
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None
