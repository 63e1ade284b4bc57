"""The shape of the package, read from its source: imports point down only, and tests stand where their module does."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "registry_proxy"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))

# What each part may import of the others. Those in the middle stand side by side and never see each other.
_BASE = frozenset({"spec", "ports", "tasks", "durable"})
_PROCESSES = frozenset(
    {"discovery", "fork_server", "listeners", "node", "ports", "processes", "settings", "tasks", "worker"}
)
MAY_IMPORT: dict[str, frozenset[str]] = {
    "spec": frozenset(),
    "tasks": frozenset(),
    "durable": frozenset(),
    "listeners": frozenset(),
    "ports": frozenset({"spec"}),
    "settings": frozenset({"spec"}),
    **dict.fromkeys(("access", "cache", "upstream", "store", "telemetry", "proxy"), _BASE),
    "replication": _BASE | {"upstream", "proxy"},  # writes to the replicas what proxy.push asks its port for
    "web": _BASE | {"access", "proxy", "telemetry"},  # never cache or upstream: bytes come through proxy
    "node": frozenset({"listeners", "settings", "tasks"}),
    "discovery": frozenset({"node", "settings"}),
    "fork_server": frozenset(),
    "load": frozenset({"app", "fork_server", "node", "worker"}),
    "worker": frozenset({"fork_server", "listeners", "node", "ports", "settings", "tasks"}),
    "processes": frozenset({"fork_server", "node", "ports", "tasks", "worker"}),
    "supervisor": _PROCESSES | {"telemetry"},  # its log is part of the service's
    "app": _BASE | _PROCESSES | {"access", "cache", "upstream", "store", "telemetry", "proxy", "replication", "web"},
    "backup": _BASE | {"store"},
    "reset": _BASE | {"access", "store"},
    "importer": _BASE | {"proxy", "telemetry", "upstream"},
    "cli": _PROCESSES | {"spec", "app", "backup", "importer", "load", "reset", "supervisor"},
    "__main__": frozenset({"cli", "fork_server", "load"}),
}
# The libraries of others that a part may use; a part that is not named uses none.
LIBRARIES: dict[str, frozenset[str]] = {
    "access": frozenset({"aiohttp", "argon2", "cryptography", "jwt"}),
    "cache": frozenset({"inotify_simple"}),
    "upstream": frozenset({"aiohttp", "multidict", "yarl"}),
    "store": frozenset({"redis"}),
    "telemetry": frozenset({"prometheus_client", "pythonjsonlogger"}),
    "settings": frozenset({"pydantic", "pydantic_core", "yaml"}),
    "web": frozenset(
        {"aiohttp", "multidict", "prometheus_client", "pydantic", "yarl"}
    ),  # reads the scrape of all workers
    "app": frozenset({"aiohttp"}),
    "worker": frozenset({"uvloop"}),
    "cli": frozenset({"httpx", "rich", "typer", "yaml"}),  # writes policies as files
    "discovery": frozenset({"dns"}),
}
BESIDE_THE_PACKAGE = {"acceptance", "chaos", "clients", "contract", "fakes", "nginx", "path", "reports"}
"""Folders of tests that look at several modules, or at the whole from outside."""
WITHOUT_MODULE = {"tests/test_layers.py", "tests/test_documents.py", "tests/web/test_matrix.py"}


def part_of(name: str) -> str:
    """Return the part that a dotted module name below the package belongs to."""
    part = name.split(".", maxsplit=1)[0]
    return "settings" if part.startswith("settings") else part


def imported(tree: ast.AST) -> list[str]:
    """Return the dotted names of all imports, also those inside functions; relative ones start with a dot."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names += [f"{module}.{alias.name}" for alias in node.names] if module == "registry_proxy" else [module]
    return names


def faults(module: str, source: str) -> list[str]:
    """Return what a module imports and may not; ``module`` is its dotted name below the package."""
    part, tree, found = part_of(module), ast.parse(source), []
    for name in imported(tree):
        top, _, below = name.partition(".")
        if top == "registry_proxy":
            allowed = part_of(below) in MAY_IMPORT[part] | {part}
        elif top in sys.stdlib_module_names:
            allowed = not (part == "spec" and top == "asyncio")
        else:
            allowed = top in LIBRARIES.get(part, frozenset())
        if not allowed:
            found.append(f"{module} must not import {name}")
    return found


def dotted(path: Path) -> str:
    """Return the name of a module below the package; of a package's ``__init__``, that of the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@pytest.mark.parametrize("path", [path for path in MODULES if path != PACKAGE / "__init__.py"], ids=dotted)
def test_imports_point_down(path: Path) -> None:
    """A module imports what lies below it, its own part, and the libraries of its part; nothing else."""
    assert part_of(dotted(path)) in MAY_IMPORT, "a new part: say in MAY_IMPORT where it stands"
    assert faults(dotted(path), path.read_text()) == []


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=str)
def test_packages_export_nothing(path: Path) -> None:
    """An ``__init__`` is a docstring: whoever needs a name imports it from where it is made."""
    body = ast.parse(path.read_text()).body
    assert [type(node) for node in body] == [ast.Expr]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_mirror_the_package(path: Path) -> None:
    """tests/a/test_b.py (or test_b_more.py) tests registry_proxy/a/b.py, unless its folder is of another kind."""
    relative = path.relative_to(ROOT / "tests")
    if relative.parts[0] in BESIDE_THE_PACKAGE or f"tests/{relative}" in WITHOUT_MODULE:
        return
    words = path.stem.removeprefix("test_").split("_")
    names = ["_".join(words[:end]) for end in range(1, len(words) + 1)]
    folder = PACKAGE / relative.parent
    assert any((folder / f"{name}.py").exists() for name in names), f"no module {names[-1]} in {folder}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("spec.scope", "import asyncio"),
        ("spec.scope", "from registry_proxy.ports import Store"),
        ("spec.scope", "def f():\n    import aiohttp"),
        ("proxy.pull", "import aiohttp"),
        ("proxy.pull", "from registry_proxy.cache.disk import DiskCache"),
        ("cache.disk", "from registry_proxy.settings_load import load"),
        ("web.registry", "from registry_proxy.upstream.client import HttpReplicaClient"),
        ("web.registry", "from registry_proxy import app"),
        ("store.redis", "from . import sqlite"),
        ("ports", "import registry_proxy.proxy.pull"),
    ],
)
def test_an_arrow_that_points_up_is_found(module: str, source: str) -> None:
    """The rules above do find each kind of fault."""
    assert len(faults(module, source)) == 1
