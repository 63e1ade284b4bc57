"""Reads YAML and the environment into one tree of plain values, remembering where each value was written."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

ENVIRONMENT_PREFIX = "REGISTRY_PROXY__"
_MAX_VALUES = 100_000  # for each MiB: a few aliases of aliases make billions
_CREDENTIALS = re.compile(r"(://).*@")  # to the last one: passwords hold what they should not
_SECRET_IN_QUERY = re.compile(r"([?&][^=&]*password=)[^&]*")
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null")}
_COLLECTIONS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing wrong with the configuration. ``where`` is ``file:line`` or the name of an environment variable."""

    where: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.where}:{self.line}" if self.line else self.where
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


@dataclass
class Source:
    """The tree, where each of its values comes from, and what was wrong with the text itself."""

    file: str
    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, tuple[str, int]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: KeyPath) -> tuple[str, int]:
        """Return where the value at ``path`` was written, or the nearest map or list around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (self.file, 1))

    def fault(self, path: KeyPath, message: str) -> Fault:
        """Return a fault at a key."""
        where, line = self.place(path)
        return Fault(where, line, format_path(path), message)


def format_path(path: KeyPath) -> str:
    """Return ``upstreams.main.replicas[0].url``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def describe(value: Any) -> str:
    """Return a short text of a value found, without the credentials that a URL may carry."""
    match value:
        case None:
            return "nothing"
        case Mapping():
            return "a map"
        case [] | ():
            return "an empty list"
        case list() | tuple():
            return "a list"
        case str():
            text = _SECRET_IN_QUERY.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", value))
            return json.dumps(text if len(text) <= 80 else text[:77] + "...", ensure_ascii=False)
        case _:
            return str(value).lower() if isinstance(value, bool) else f"{value!s:.80}"


class _Reader:
    """Turns the nodes of one YAML document into plain values."""

    def __init__(self, source: Source, max_values: int) -> None:
        self._source = source
        self._max_values = max_values
        self._constructor = yaml.constructor.SafeConstructor()
        self._open: set[int] = set()
        self._count = 0

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        line = node.start_mark.line + 1
        self._source.places[path] = (self._source.file, line)
        self._count += 1
        if id(node) in self._open or self._count > self._max_values:
            if self._count <= self._max_values + 1:
                self._blame(path, "an alias that contains itself, or too many values")
            return None
        self._open.add(id(node))
        try:
            return self._read(node, path)
        finally:
            self._open.discard(id(node))

    def _read(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._read_scalar(node, path)
        if node.tag not in _COLLECTIONS:  # what is in it is judged all the same
            self._blame(path, f"expected a plain value, found the tag {node.tag[:80]}")
        if isinstance(node, yaml.MappingNode):
            return self._read_map(node, path)
        return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]

    def _read_map(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                fault = Fault(
                    self._source.file, key_node.start_mark.line + 1, format_path(path), "expected a plain key"
                )
                self._source.faults.append(fault)
                continue
            key = str(key_node.value)
            if key in values:
                first = self._source.places[*path, key][1]
                line = key_node.start_mark.line + 1
                message = f"the key is there twice, first in line {first}"
                self._source.faults.append(Fault(self._source.file, line, format_path((*path, key)), message))
                continue
            values[key] = self.read(value_node, (*path, key))
            self._source.places[*path, key] = (self._source.file, key_node.start_mark.line + 1)
        return values

    def _read_scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        if node.tag in _SCALARS:
            try:
                return self._constructor.construct_object(node)
            except (ValueError, KeyError):  # such as 0b_, or more digits than Python reads
                return node.value
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
            self._blame(path, f"expected a plain value, found the tag {node.tag[:80]}")
        return node.value

    def _blame(self, path: KeyPath, message: str) -> None:
        self._source.faults.append(self._source.fault(path, message))


@contextmanager
def _text_faults(source: Source) -> Iterator[None]:
    """Turn what the YAML library raises into faults."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        source.faults.append(Fault(source.file, line, "", f"not YAML: {error.problem or error.context}"))
    except yaml.YAMLError as error:
        source.faults.append(Fault(source.file, 0, "", f"not YAML: {str(error).splitlines()[0]}"))
    except UnicodeError:
        source.faults.append(Fault(source.file, 0, "", "not YAML: expected UTF-8 text"))
    except RecursionError:
        source.faults.append(Fault(source.file, 0, "", "not YAML that anybody wrote: nested too deeply"))


def read_yaml(file: str, text: bytes, *, max_mib: int = 1) -> Source:
    """Return the tree of a YAML document; what is wrong with the text, or larger than that, is in its ``faults``."""
    source = Source(file)
    if len(text) > max_mib << 20:
        source.faults.append(Fault(file, 0, "", f"expected at most {max_mib} MiB, found {len(text)} bytes"))
        return source
    with _text_faults(source):
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = _Reader(source, max_mib * _MAX_VALUES).read(node, ()) if node is not None else {}
        if isinstance(tree, dict):
            source.tree = tree
        elif tree is not None:
            source.faults.append(source.fault((), f"expected a map of keys, found {describe(tree)}"))
    return source


def overlay_environment(source: Source, environment: Mapping[str, str]) -> None:
    """Lay ``REGISTRY_PROXY__A__B=value`` over the tree; the environment wins.

    Maps and lists are JSON. A map replaces the file's; a variable for a key inside it is applied after it.
    """
    names = [name for name in environment if name.startswith(ENVIRONMENT_PREFIX)]
    for name in sorted(names, key=lambda name: (name.count("__"), name)):
        path = tuple(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
        try:
            value = _parse_variable(environment[name])
        except (ValueError, RecursionError):
            source.faults.append(Fault(name, 0, format_path(path), "expected JSON after the first { or ["))
            continue
        _put(source, name, path, value)


def _parse_variable(text: str) -> Any:
    if text.startswith(("{", "[")) and not re.fullmatch(r"\[[0-9a-fA-F:.]+\](:[0-9]*)?", text):  # or an IPv6 address
        return json.loads(text)
    return text or None


def _put(source: Source, name: str, path: KeyPath, value: Any) -> None:
    target: Any = source.tree
    for depth, part in enumerate(path[:-1]):
        if target.get(part) is None:
            target[part] = {}
            source.places[path[: depth + 1]] = (name, 0)
        target = target[part]
        if not isinstance(target, dict):
            message = f"{format_path(path[: depth + 1])} is {describe(target)}, and has no keys"
            source.faults.append(Fault(name, 0, format_path(path), message))
            return
    for old in [old for old in source.places if old[: len(path)] == path]:
        del source.places[old]
    target[path[-1]] = value
    source.places[path] = (name, 0)
