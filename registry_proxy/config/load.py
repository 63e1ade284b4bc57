"""From file and environment to ``Settings``: every fault at once, each with its place and what was expected.

``config.check`` looks at what needs several keys, or the machine.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from registry_proxy.config.check import check_across
from registry_proxy.config.model import Settings
from registry_proxy.config.source import (
    ENVIRONMENT_PREFIX,
    Fault,
    KeyPath,
    Source,
    describe,
    overlay_environment,
    read_yaml,
)

# Keys of features that come later: refused with a word of their own, so that nobody takes them for a misspelling.
_LATER = {"webhooks", "tracing"}
_UNDERSCORES = re.compile("_+")
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of sensible size",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "mapping_type": "a map",
    "dict_type": "a map",
    "model_type": "a map",
    "model_attributes_type": "a map",
    "too_short": "at least one entry",
}


class SettingsError(Exception):
    """The configuration cannot be used; the text holds all faults, one a line."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = sorted(set(faults))
        super().__init__("\n".join(str(fault) for fault in self.faults))


def load_settings(file: str, environment: Mapping[str, str]) -> Settings:
    """Return the settings of a YAML file with the environment laid over it.

    Raises:
        SettingsError: with all faults.
    """
    try:
        with open(file, "rb") as stream:
            source = read_yaml(file, stream.read())
    except OSError as error:
        raise SettingsError([Fault(file, 0, "", f"cannot be read: {error.strerror}")]) from None
    if source.faults and not source.tree:
        raise SettingsError(source.faults)
    overlay_environment(source, environment)
    source.faults.extend(_misspelled_variables(environment))
    return validate(source)


def validate(source: Source) -> Settings:
    """Return the settings that a tree holds, or raise SettingsError with all faults."""
    faults = list(source.faults)
    settings = None
    try:
        settings = Settings.model_validate(source.tree)
    except ValidationError as error:
        details = error.errors(include_url=False)
        faults.extend(_explain(source, detail) for detail in details if not _is_echo(detail, details))
    faults.extend(check_across(source))
    if settings is None or faults:
        raise SettingsError(faults)
    return settings


# ---------------------------------------------------------------- faults of single values


def _misspelled_variables(environment: Mapping[str, str]) -> Iterator[Fault]:
    """Yield a fault for each variable that differs from one of ours in underscores alone: it would have no effect."""
    ours = {_UNDERSCORES.sub("_", name): name for name in _variables(Settings, ENVIRONMENT_PREFIX)}
    for name in environment:
        meant = ours.get(_UNDERSCORES.sub("_", name))
        if meant is not None and not name.startswith(ENVIRONMENT_PREFIX):
            yield Fault(name, 0, "", f"unknown variable; did you mean {meant}?")


def _variables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield the variables of all keys that do not lie below a name or number of the operator's."""
    for name, field in model.model_fields.items():
        variable = f"{prefix}{field.alias or name}".upper()
        yield variable
        annotation: Any = field.annotation
        parts = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        for part in parts:
            if _is_model(part):
                yield from _variables(part, f"{variable}__")


def _is_echo(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Tell whether a list is called too short only because its entries have faults, which are reported themselves."""
    place = detail["loc"]
    return detail["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in details
    )


def _explain(source: Source, detail: ErrorDetails) -> Fault:
    """Return pydantic's complaint in the words of this program."""
    path = _key_path(source, detail["loc"])
    kind, found = detail["type"], describe(detail["input"])
    if kind == "extra_forbidden":
        return source.fault(path, _unknown_key(path))
    if kind == "missing":
        return source.fault(path, "this key is needed, and is not there")
    if kind == "expected":
        message = detail["msg"]
    elif kind in _EXPECTED:
        message = f"expected {_EXPECTED[kind]}"
    else:
        message = detail["msg"].replace("Input should be ", "expected ").replace("String should", "expected it to")
    return source.fault(path, f"{message}, found {found}")


def _key_path(source: Source, location: tuple[int | str, ...]) -> KeyPath:
    """Return the part of pydantic's location that names keys; the rest names branches of unions."""
    path: KeyPath = ()
    value: Any = source.tree
    for index, part in enumerate(location):
        if isinstance(value, dict) and isinstance(part, str) and part != "[key]":
            if part not in value and index + 1 < len(location):
                break
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            break
        path = (*path, part)
    return path


def _unknown_key(path: KeyPath) -> str:
    key = str(path[-1])
    if key in _LATER:
        return "not available yet"
    known = sorted(field.alias or name for name, field in _model_at(path[:-1]).model_fields.items())
    close = difflib.get_close_matches(key.lower(), known, n=1)
    return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; expected one of {', '.join(known)}"


def _model_at(path: KeyPath) -> type[BaseModel]:
    """Return the model that describes the map at ``path``."""
    model: type[BaseModel] = Settings
    annotation: Any = Settings
    for part in path:
        if _is_model(annotation):
            fields = annotation.model_fields.items()
            annotation = next((field.annotation for name, field in fields if (field.alias or name) == part), None)
        else:
            annotation = next((item for item in get_args(annotation) if _is_model(item)), None)
        if isinstance(annotation, UnionType):
            annotation = next((item for item in get_args(annotation) if _is_model(item)), annotation)
        model = annotation if _is_model(annotation) else model
    return model


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
