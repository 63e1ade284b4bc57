"""Our own account of connections: its remaining reads inside aiohttp, and the versions for which they hold."""

import ast
import tomllib
from importlib.metadata import version
from pathlib import Path

from aiohttp import StreamReader, web
from aiohttp.http import HttpRequestParser
from aiohttp.web import RequestHandler

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "registry_proxy"
PRIVATE = {
    "_max_msg_queue_size",  # no option sets it
    "_msg_queue_resume_size",
    "_parser",  # tells how far it has read, and never reads another protocol
}
THEIRS = (RequestHandler, HttpRequestParser, StreamReader, web.Server)


NAMES = ("http/guarded.py", "http/handler.py", "http/drain.py", "edge/server.py", "admin/server.py")
FILES = [PACKAGE / name for name in NAMES]


def test_the_private_names_of_aiohttp_are_these() -> None:
    """Each additional name may change with a new version; each removed name leaves the list."""
    theirs = {name for one in THEIRS for each in one.__mro__ for name in [*getattr(each, "__slots__", ()), *dir(each)]}
    used: set[str] = set()
    for path in FILES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        attributes = [node for node in nodes if isinstance(node, ast.Attribute) and _is_private(node.attr)]
        ours = {node.attr for node in attributes if isinstance(node.ctx, ast.Store) and _is_self(node.value)}
        ours |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        used |= {node.attr for node in attributes if node.attr in theirs or node.attr not in ours}
        used |= {
            alias.name
            for node in nodes
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aiohttp")
            for alias in node.names
            if _is_private(alias.name)
        }
    assert used == PRIVATE


def test_a_version_of_aiohttp_that_nobody_has_looked_at_is_not_installed() -> None:
    """The next minor version may change the names above: they must be looked up in it first."""
    dependencies: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [each for each in dependencies if each.startswith("aiohttp>")] == ["aiohttp>=3.14,<3.15"]
    assert version("aiohttp").startswith("3.14.")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
