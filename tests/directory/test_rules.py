"""Rules of the directory: their values, with every fault named at once."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from registry_proxy.access.faults import InvalidError
from registry_proxy.directory import rules
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.revise import NotFoundError, RevisionConflictError
from registry_proxy.rules.rule import RuleInput

DOCUMENT = Path(__file__).parents[2] / "docs" / "rules.md"


async def test_a_rule_is_kept_and_removed(directory: Directory) -> None:
    """A rule is read as it was put; a revision guards it; after its removal the name is free."""
    made, is_new = await directory.rules.put("r", RuleInput(repository="prod/**", labels={"a": "*"}, not_root=True))
    assert is_new
    found = await directory.rules.get("r")
    assert (found.stored(), found.revision) == (made.stored(), made.revision)
    with pytest.raises(RevisionConflictError):
        await directory.rules.put("r", RuleInput(repository="**", max_layers=1), expect=made.revision + 1)
    await directory.rules.delete("r")
    with pytest.raises(NotFoundError):
        await directory.rules.delete("r")
    assert await directory.rules.list() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repository", "Team/**"),
        ("tags", "a/b"),
        ("except_tags", ["v*", "a/b"]),
        ("mode", "audit"),
        ("labels", {"a b": "*"}),
        ("labels", {"a": ""}),
        ("labels", {"a": "ä"}),
        ("labels", {str(number): "*" for number in range(51)}),
        ("max_size_bytes", 0),
        ("max_layers", -1),
        ("max_age_seconds", 2**60),
        ("media_types", ["a\n"]),
        ("platforms", [""]),
        ("immutable", ["move"]),
        ("bases", ["base:v*", "Base:v1"]),
        ("bases", ["base/**:a/b"]),
        ("max_floors", 0),
        ("advice", "a\nb"),
        ("advice", "x" * 501),
    ],
)
async def test_a_fault_names_its_field(directory: Directory, field: str, value: Any) -> None:
    """A violation of each expectation is refused at its field, and nothing is stored."""
    with pytest.raises(InvalidError) as caught:
        await directory.rules.put("r", RuleInput(**{"repository": "**", "max_layers": 3, field: value}))
    assert [name for name, _ in caught.value.faults] == [field]
    assert await directory.rules.list() == []


async def test_a_rule_needs_a_condition(directory: Directory) -> None:
    """A rule that could refuse nothing is a mistake; its name is checked, too."""
    with pytest.raises(InvalidError, match="has no condition") as caught:
        await directory.rules.put("a b", RuleInput(repository="**", advice="text"))
    assert [name for name, _ in caught.value.faults] == ["name", ""]


async def test_rules_are_bounded(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule beyond the limit is refused; existing ones can be changed."""
    monkeypatch.setattr(rules, "RULES_MAX", 1)
    await directory.rules.put("a", RuleInput(repository="**", max_layers=1))
    with pytest.raises(InvalidError, match="already"):
        await directory.rules.put("b", RuleInput(repository="**", max_layers=1))
    await directory.rules.put("a", RuleInput(repository="**", max_layers=2))


async def test_the_documented_rules_are_accepted(directory: Directory) -> None:
    """Each example of docs/rules.md is the body of a PUT."""
    examples = re.findall(r"^```json\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    for number, example in enumerate(examples):
        await directory.rules.put(f"example-{number}", RuleInput(**json.loads(example)))
    assert len(examples) > 3
