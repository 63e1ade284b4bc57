"""A rule on record: its stored form, and the tags that it covers."""

from registry_proxy.ports.store import Record
from registry_proxy.rules.rule import Rule, rule_of


def test_a_rule_covers_its_tags_without_the_excepted() -> None:
    """Repository and tag match their patterns, and the tag none of the exceptions."""
    rule = Rule(name="r", repository="prod/**", tags="v*", except_tags=("v0*", "*-rc*"))
    assert [rule.covers(*each) for each in (("prod/a", "v1"), ("prod", "v1"), ("prod/a", "x"), ("prod/a", "v0.1"))] == [
        True,
        False,
        False,
        False,
    ]
    assert not rule.covers("prod/a", "v1-rc2")


def test_a_rule_comes_back_as_it_was_stored() -> None:
    """Fields of a later release are left out; a mode of a later release refuses."""
    rule = Rule(name="r", repository="**", labels={"a": "b"}, immutable=("overwrite",), max_layers=3)
    assert rule_of(Record("r", rule.stored(), 0)).stored() == rule.stored()
    later = rule_of(Record("r", {**rule.stored(), "mode": "quarantine", "further": 1}, 4))
    assert (later.is_enforced, later.revision) == (True, 4)


def test_a_rule_says_what_it_has_to_read() -> None:
    """Immutability reads nothing, size and media types the manifest, the others the configuration."""
    assert not Rule(name="r", repository="**", immutable=("delete",)).reads_images
    sized = Rule(name="r", repository="**", max_size_bytes=1)
    assert (sized.reads_images, sized.reads_configs) == (True, False)
    assert Rule(name="r", repository="**", not_root=True).reads_configs
