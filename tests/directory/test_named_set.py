"""Objects by name in one document: the faults of all, and the writes that make the difference."""

import pytest

from registry_proxy.access.faults import InvalidError
from registry_proxy.directory.named_set import check_inputs, compare_named
from registry_proxy.directory.rule_set import changed_rule_fields, compare_rules
from registry_proxy.ports.store import Change, Table
from registry_proxy.rules.rule import Rule, RuleInput


def test_each_change_expects_what_it_replaces() -> None:
    """Added, changed and removed objects become writes with their revisions; equal ones none."""
    stored = [Rule(name=name, repository="**", max_layers=1, revision=7) for name in ("gone", "kept", "moved")]
    wanted = {
        "kept": Rule(name="kept", repository="**", max_layers=1),
        "moved": Rule(name="moved", repository="**", max_layers=2),
        "new": Rule(name="new", repository="**", max_layers=1),
    }
    difference = compare_named(Table.RULES, stored, wanted, changed_rule_fields)
    assert difference.changes() == [
        Change(Table.RULES, "new", wanted["new"].stored(), 0),
        Change(Table.RULES, "gone", None, 7),
        Change(Table.RULES, "moved", wanted["moved"].stored(), 7),
    ]
    assert not compare_named(Table.RULES, stored, {each.name: each for each in stored}, changed_rule_fields)


def test_all_faults_of_a_set_are_named() -> None:
    """A bad name, a bad field and too many objects come in one error."""
    with pytest.raises(InvalidError) as caught:
        compare_rules([], {"a b": RuleInput(repository="**"), "ok": RuleInput(repository="No", max_layers=1)})
    assert [field for field, _ in caught.value.faults] == ["rules/a b", "rules/ok/repository"]
    with pytest.raises(InvalidError, match="expected at most 0"):
        check_inputs({"a": 1}, "things", 0, lambda _: [])
