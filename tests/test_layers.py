"""The shape of the package, read from its source: imports point only down, and tests mirror the modules."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "registry_proxy"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))

# The arrows between the parts, from below to above: exactly the existing ones. Those in the middle stand side by
# side and never see each other; `replication` does the writes that `operations` asks its port for, `repair`
# makes the replicas equal, and bytes reach `edge` through `operations`, never from `cache` or `upstream`.
MAY_IMPORT: dict[str, frozenset[str]] = {
    part: frozenset(others.split())
    for part, others in {
        "protocol": "",
        "tasks": "",
        "files": "",
        "ports": "protocol",
        "http": "files ports protocol tasks",
        "config": "files protocol",
        "access": "files ports protocol tasks",
        "directory": "access events ports protocol rules",
        "cache": "files ports protocol tasks",
        "spool": "cache files ports protocol tasks",
        "replica": "ports protocol tasks",
        "upstream": "ports protocol replica tasks",
        "events": "ports protocol tasks",
        "store": "files ports tasks",
        "audit": "files ports protocol tasks",
        "telemetry": "files ports protocol tasks",
        "operations": "files ports protocol tasks",
        "replication": "operations ports protocol tasks",
        "repair": "operations ports protocol replication tasks",
        "rules": "operations ports protocol",
        "edge": "access directory http operations ports protocol tasks",
        "api": "access directory http ports protocol rules",
        "history": "operations ports protocol tasks",
        "admission": "access api http ports protocol tasks",
        "upkeep": "admission api operations ports protocol tasks",
        "admin": "access admission api audit directory events history http operations ports protocol rules tasks"
        " telemetry upkeep",
        "node": "cache config files ports tasks telemetry",
        "offline": "access directory files operations ports protocol replica store tasks telemetry",
        "configured": "access admin admission audit cache config directory edge events files history http node"
        " operations ports protocol replica replication store upstream",
        "app": "access admin audit cache config configured directory edge events history http node operations"
        " ports repair replication rules spool store tasks telemetry upkeep upstream",
        "load": "app node",
        "terminal": "config files protocol",
        "cli": "config load node offline ports protocol terminal",
        "__main__": "cli load node",
    }.items()
}
# The third-party libraries of each part; a part that is not named uses none.
LIBRARIES: dict[str, frozenset[str]] = {
    part: frozenset(libraries.split())
    for part, libraries in {
        "access": "aiohttp argon2 cachetools cryptography jwt",
        "api": "aiohttp pydantic pydantic_core",
        "admission": "aiohttp cachetools",
        "admin": "aiohttp pydantic",
        "cache": "inotify_simple",
        "cli": "rich typer yaml",  # writes policies as files
        "config": "dns pydantic pydantic_core yaml",
        "edge": "aiohttp cachetools multidict",
        "files": "cryptography",
        "events": "aiohttp yarl",
        "http": "aiohttp multidict",
        "node": "uvloop",
        "offline": "aiofiles",
        "replica": "aiohttp cachetools yarl",
        "spool": "cachetools",
        "store": "redis",
        "telemetry": "prometheus_client pythonjsonlogger",
        "terminal": "httpx rich typer",
        "upkeep": "aiohttp cachetools prometheus_client pydantic",  # reads the scrape of all workers
        "upstream": "cachetools",
    }.items()
}
BESIDE_THE_PACKAGE = {"acceptance", "attack", "chaos", "clients", "contract", "nginx", "path", "reports", "support"}
"""Folders of tests that look at several modules, or at the whole from outside."""
WITHOUT_MODULE = {"tests/test_layers.py", "tests/test_documents.py", "tests/edge/test_matrix.py"}


def part_of(name: str) -> str:
    """Return the part that a dotted module name below the package belongs to."""
    return name.split(".", maxsplit=1)[0]


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
    """Return the imports that a module may not have; ``module`` is its dotted name below the package."""
    part, tree, found = part_of(module), ast.parse(source), []
    for name in imported(tree):
        top, _, below = name.partition(".")
        if top == "registry_proxy":
            allowed = part_of(below) in MAY_IMPORT[part] | {part}
        elif top in sys.stdlib_module_names:
            allowed = not (part == "protocol" and top == "asyncio")
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
    """A module imports only from below it, from its own part, and from the libraries of its part."""
    assert part_of(dotted(path)) in MAY_IMPORT, "a new part: say in MAY_IMPORT where it stands"
    assert faults(dotted(path), path.read_text()) == []


def test_rooms_and_files_stay_small() -> None:
    """No room has more than 3,500 lines, no file more than 450, and the composition root at most 300."""
    lines = {path.relative_to(PACKAGE): len(path.read_text().splitlines()) for path in MODULES}
    rooms: Counter[str] = Counter()
    for path, count in lines.items():
        rooms[path.parts[0]] += count
    assert {room: count for room, count in rooms.items() if count > 3_500} == {}
    assert {str(path): count for path, count in lines.items() if count > 450} == {}
    assert lines[Path("app.py")] <= 300


def test_every_arrow_that_is_allowed_is_there() -> None:
    """An arrow or a library without a use is removed from the tables above."""
    unused = {(part, other) for table in (MAY_IMPORT, LIBRARIES) for part, others in table.items() for other in others}
    for path in MODULES:
        for name in imported(ast.parse(path.read_text())):
            top, _, below = name.partition(".")
            unused.discard((part_of(dotted(path)), part_of(below) if top == "registry_proxy" else top))
    assert unused == set()


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=str)
def test_packages_export_nothing(path: Path) -> None:
    """An ``__init__`` is a docstring: a module imports a name from where it is made."""
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
        ("protocol.scope", "import asyncio"),
        ("protocol.scope", "from registry_proxy.ports.store import Store"),
        ("protocol.scope", "def f():\n    import aiohttp"),
        ("operations.pull", "import aiohttp"),
        ("operations.pull", "from registry_proxy.cache.disk import DiskCache"),
        ("cache.disk", "from registry_proxy.config.load import load"),
        ("edge.registry", "from registry_proxy.replica.client import HttpReplicaClient"),
        ("edge.registry", "from registry_proxy.admin.app import make_admin_app"),
        ("edge.registry", "from registry_proxy import app"),
        ("store.redis", "from . import sqlite"),
        ("ports.store", "import registry_proxy.operations.pull"),
    ],
)
def test_an_arrow_that_points_up_is_found(module: str, source: str) -> None:
    """The rules above do find each kind of fault."""
    assert len(faults(module, source)) == 1
