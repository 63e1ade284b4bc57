"""The documents agree with the code: keys, defaults, metrics, commands, and links to files that exist."""

import ast
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import jsonschema_rs
import pytest
import typer
import yaml
from pydantic import BaseModel
from typer.main import get_command

from registry_proxy.cli.main import app
from registry_proxy.config.model import (
    AdminTlsSettings,
    LdapSettings,
    OidcRuleSettings,
    OidcSettings,
    ReplicaSettings,
    RouteSettings,
    Settings,
    TlsSettings,
    UpstreamSettings,
)
from registry_proxy.telemetry.metrics import PrometheusObserver
from scripts.build import PROGRAMS
from tests.acceptance.registries import DESCRIBE

ROOT = Path(__file__).parent.parent
RECORDS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
BESIDE_THE_PACKAGE = ("tests", "benchmarks", "scripts")


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Give the dotted names of all keys of a part of the configuration, as the reference writes them."""
    nested: dict[str, tuple[str, type[BaseModel]]] = {
        "upstreams": ("upstreams.NAME.", UpstreamSettings),
        "replicas": (f"{prefix}replicas[].", ReplicaSettings),
        "routes": ("routes[].", RouteSettings),
        "tls": ("tls.", TlsSettings),
        "admin_tls": ("admin_tls.", AdminTlsSettings),
        "ldap": ("auth.ldap.", LdapSettings),
        "oidc": ("auth.oidc.NAME.", OidcSettings),
        "rules": (f"{prefix}rules[].", OidcRuleSettings),
    }
    for field, info in model.model_fields.items():
        name = info.alias or field
        if name in nested:
            yield from keys(nested[name][1], nested[name][0])
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from keys(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def table(name: str) -> list[list[str]]:
    """Return the cells of the rows of the last table in a file of the reference, without the header."""
    lines = (ROOT / "docs" / "reference" / f"{name}.md").read_text().splitlines()
    rows = [line.strip("|").split(" | ") for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not set("".join(row)) <= set("-|")][1:]


def test_every_key_is_documented_and_no_other() -> None:
    """The table of the configuration has exactly the keys that are read, in their order."""
    assert [row[0].strip("`") for row in table("configuration")] == list(keys(Settings))


def test_every_metric_is_documented_and_no_other() -> None:
    """The table of metrics has exactly the series that are exposed."""
    exposed = {metric.name for metric in PrometheusObserver()._registry.collect()}
    documented = {f"registry_proxy_{row[0].strip('`').removesuffix('_total')}" for row in table("metrics")}
    assert documented == exposed


def test_the_programs_of_others_are_documented_and_no_other() -> None:
    """The tables name exactly the clients and registries that run in tests, with the versions that are built."""
    lines = (ROOT / "docs" / "reference" / "clients.md").read_text().splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    built = {program.name: program.version for program in PROGRAMS}
    tests = "".join(
        path.read_text() for room in ("acceptance", "clients") for path in (ROOT / "tests" / room).glob("*.py")
    )
    marks = re.findall(r"mark\.acceptance\(([^*)]*)\)", tests)
    used = {name for names in marks for name in re.findall(r'"([a-z-]+)"', names)} | {*built, *DESCRIBE}
    of_debian = {row[0] for row in rows} - built.keys()
    assert used - {row[0] for row in rows} == set()
    assert {name for name in of_debian if f'"{name}' not in tests} == set()
    assert {row[0]: row[1] for row in rows} == {row[0]: built.get(row[0], "Debian's") for row in rows}


def test_every_command_is_documented_and_no_other() -> None:
    """The table of the admin API names exactly the existing commands below each noun."""
    documented: dict[str, set[str]] = {}
    for row in table("admin"):
        noun, *verbs = re.findall(r"[a-z]+", row[1].split("`")[1])
        documented[noun] = set(verbs)
    admin = (ROOT / "docs" / "reference" / "admin.md").read_text()
    root = get_command(app)
    assert isinstance(root, typer.core.TyperGroup)
    for name, command in root.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            assert documented[name] == set(command.commands), name
        else:
            assert re.search(rf"\b{name}\b", admin), name
    assert set(documented) <= set(root.commands)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every link inside the repository is to a file that exists."""
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_line_is_said_twice_in_a_row(document: Path) -> None:
    """No document has the same line twice in a row, as merges leave it."""
    lines = document.read_text().splitlines()
    assert [line for line, following in pairwise(lines) if line and line == following] == []


def test_every_make_target_that_is_named_exists() -> None:
    """Every make target in the documents exists."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        assert set(re.findall(r"`(?:\S+ )?make ([a-z-]+)", document.read_text())) <= targets, document.name


def test_the_tests_that_are_named_exist() -> None:
    """Every test that the promise of availability names as its proof exists."""
    text = (ROOT / "docs" / "availability.md").read_text()
    existing = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"`(?:tests/(?:\w+/)*)?(test_\w+\.py)`", text))
    assert len(named) > 10
    assert named <= existing
    assert all((ROOT / path).exists() for path in re.findall(r"`(tests/[\w/.]+)`", text))


def test_the_schema_of_the_configuration_is_current() -> None:
    """`make schema` would change nothing, the examples are valid, and a misspelt key is not."""
    text = (ROOT / "config" / "schema.json").read_text()
    assert text == Settings.schema_for_editors()
    validator = jsonschema_rs.validator_for(json.loads(text))
    for example in (ROOT / "config").glob("*.yaml"):
        document = yaml.safe_load(example.read_text())
        assert [error.message for error in validator.iter_errors(document)] == [], example.name
        assert example.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
        assert not validator.is_valid({**document, "tag_tll": "10s"})
        assert not validator.is_valid({**document, "listen": 5000})
        assert not validator.is_valid({**document, "drain": {"delay": "10 parsecs"}})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_sections_that_are_pointed_to_are_there(document: Path) -> None:
    """A section named beside a link has a heading, or bold words, in the file linked."""
    text = document.read_text()
    for title, link in re.findall(r'"([^"]+)"\s+in\s+\[[^\]]*\]\(([^)#]+)\)', text):
        target = (document.parent / link).read_text()
        assert re.search(rf"^(#+ |\*\*){re.escape(' '.join(title.split()))}", target, re.MULTILINE), title


def test_the_paths_lead_through_files_that_exist() -> None:
    """The walks through the code name files of the package, and its map names every room."""
    package = ROOT / "registry_proxy"
    named = set(re.findall(r"`(\w+(?:/\w+)*\.py)`", (ROOT / "docs" / "reference" / "paths.md").read_text()))
    assert len(named) > 50
    assert [name for name in sorted(named) if not (package / name).exists()] == []
    rooms = re.match(
        r".*?::\n(.*?)The path of a pull",
        ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or "",
        re.DOTALL,
    )
    assert rooms is not None
    mapped = set(re.findall(r"\w+", " ".join(line[:33] for line in rooms[1].splitlines())))
    parts = {each.stem for each in package.iterdir() if not each.name.startswith("__") and each.name != "py.typed"}
    assert parts == mapped


def test_the_changelog_has_each_section_and_each_change_once() -> None:
    """A merge keeps both sides of the changelog: no section and no entry stands there twice."""
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    once = [line for line in lines if line.startswith(("- ", "### "))]
    assert [line for line in set(once) if once.count(line) > 1] == []


def test_each_decision_is_one_file_with_a_status() -> None:
    """A record's file, heading and status agree, no two have one number, and records name only those that there are."""
    records = {path: path.read_text() for path in RECORDS}
    numbers = [int(path.name.split("-")[0]) for path in records]
    assert sorted(numbers) == list(range(1, len(records) + 1))
    for path, text in records.items():
        number = int(path.name.split("-")[0])
        assert re.match(
            rf"# {number}\. .+\n\nStatus: (accepted|(amended|superseded) by \d+(, \d+)*)\n\n\*\*Context", text
        ), path
        assert {int(named) for named in re.findall(r"\b[Rr]ecords?\s+(\d+)\b", text)} <= set(numbers), path


def test_the_readme_stays_short() -> None:
    """The README is short enough to be read to its end: tables are in docs/reference."""
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


QUESTION = r"(?:What|Who|Whom|Whose|Whoever|Whatever|That|How)\b(?!')"
"""A word that a sentence of ours does not begin with: the reader looks for the thing itself."""


def begin_with_a_question(text: str) -> list[str]:
    """Return the sentences, headings and cells of tables in a document that begin with a question word."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    blocks = re.split(r"\n\s*\n|\n(?=[-*|#>] ?|\d+\. )", prose)
    cells = [cell for block in blocks for cell in (block.split(" | ") if block.startswith("|") else [block])]
    flat = [" ".join(re.sub(r"^[-*|#> ]+|^\d+\. ", "", cell.strip()).split()) for cell in cells]
    return [found for cell in flat for found in re.findall(rf"(?:^|[.!?][)\"”*_]*\s+)({QUESTION}[^.]*)", cell)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_sentences_of_documents_begin_with_a_noun_or_a_verb(document: Path) -> None:
    """No sentence, heading or cell of a document begins with a question word."""
    assert begin_with_a_question(document.read_text()) == []


def test_a_question_is_found_wherever_it_stands() -> None:
    """The search above finds the beginning of a text, of a list's entry, of a cell and of a later sentence."""
    text = "# What it is\n\nIt works. That helps.\n\n- Whoever asks\n\n| a | How it goes |\n\nThe rest is what it is.\n"
    assert begin_with_a_question(text) == ["What it is", "That helps", "Whoever asks", "How it goes |"]


QUESTION_IN_SOURCE = rf"(?:\"\"\"|\n|[.!?][)\"”*_]*)\s*{QUESTION}"
"""A question word where a docstring, a line or a sentence begins."""


def docstrings(pattern: str, *roots: str) -> dict[str, str]:
    """Return docstrings in some directories, by file and line, of each file that has a match of the pattern.

    The others are not parsed: that would take seconds.
    """
    return {
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}": text
        for path in sorted(path for root in roots for path in (ROOT / root).rglob("*.py"))
        if re.search(pattern, source := path.read_text())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (text := ast.get_docstring(node))
    }


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    """No docstring of the package begins with a question word: the reader looks for the thing itself."""
    questions = r"(What|Who|Whom|Whose|How|Where|That|Whoever|Whatever)\b"
    texts = docstrings(rf"\"\"\"{questions}", "registry_proxy")
    assert [place for place, text in texts.items() if re.match(questions, text)] == []


def test_sentences_of_docstrings_begin_with_a_noun_or_a_verb() -> None:
    """Hardly a sentence of a docstring of the package begins with a question word, also behind the first."""
    texts = docstrings(QUESTION_IN_SOURCE, "registry_proxy")
    begin_so = {place: found for place, text in texts.items() if (found := begin_with_a_question(text))}
    assert sum(map(len, begin_so.values())) < 20, begin_so


def test_sentences_of_tests_begin_with_a_noun_or_a_verb() -> None:
    """No sentence of a docstring of a test, a benchmark or a script begins with a question word."""
    texts = docstrings(QUESTION_IN_SOURCE, *BESIDE_THE_PACKAGE)
    assert {place: found for place, text in texts.items() if (found := begin_with_a_question(text))} == {}


def test_docstrings_use_usual_words() -> None:
    """No docstring of the package, a test, a benchmark or a script has a word that readers must decode."""
    unusual = r"(?i)\b(told|lacks?|lacking|shall|whoever|whom|whence|in spite of)\b"
    texts = docstrings(unusual, "registry_proxy", *BESIDE_THE_PACKAGE)
    assert {place: found for place, text in texts.items() if (found := re.findall(unusual, text))} == {}


def test_names_of_tests_begin_with_a_noun() -> None:
    """No test's name begins with a question word: it is a sentence, too."""
    begin_so = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in re.findall(
            r"def (test_(?:what|who|whom|whose|whoever|whatever|how|where|why)_\w+)", path.read_text()
        )
    ]
    assert begin_so == []
