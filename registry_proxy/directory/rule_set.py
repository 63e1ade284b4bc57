"""All rules as a part of one document, against those that are stored: the differences."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from registry_proxy.directory.named_set import SetDifference, check_inputs, compare_named
from registry_proxy.directory.rules import RULES_MAX, rule_faults
from registry_proxy.ports.store import Table
from registry_proxy.rules.rule import Rule, RuleInput


def changed_rule_fields(before: Rule, after: Rule) -> list[str]:
    """Return the names of the fields in which two rules differ."""
    old, new = before.stored(), after.stored()
    return [name for name in new if old[name] != new[name]]


def compare_rules(stored: Sequence[Rule], wanted: Mapping[str, RuleInput]) -> SetDifference[Rule]:
    """Return the differences between the stored rules and a whole set of wanted ones.

    Raises:
        InvalidError: with every fault of the set, each as ``rules/strict/mode``.
    """
    check_inputs(wanted, "rules", RULES_MAX, rule_faults)
    rules = {name: Rule(name=name, **asdict(given)) for name, given in wanted.items()}
    return compare_named(Table.RULES, stored, rules, changed_rule_fields)
