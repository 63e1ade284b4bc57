"""Text that commands print for people."""

from typing import Any

import pytest

from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import counted, format_value, print_error, print_facts, print_note, print_table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2030-01-31T00:00:00.123456Z", "2030-01-31T00:00:00Z"),
        ("2030-01-31T00:00:00Z", "2030-01-31T00:00:00Z"),
        ("seen at 2030-01-31T00:00:00.123456Z", "seen at 2030-01-31T00:00:00.123456Z"),
        (None, "-"),
        ([], "-"),
        ("", "-"),
        ({}, "-"),
        ({"owner": "*", "team": ""}, "owner=*, team=-"),
        (True, "yes"),
        (["a", 1], "a, 1"),
    ],
)
def test_a_value_is_printed_for_people(value: Any, text: str) -> None:
    """A time has no fractions of a second; other texts are unchanged."""
    assert format_value(value) == text


def test_a_number_has_the_right_noun_and_verb() -> None:
    """The noun and the verb are singular for one, and plural otherwise."""
    assert [counted(number, "grant") for number in (0, 1, 2)] == ["0 grants", "1 grant", "2 grants"]
    assert counted(1, "entry", plural="entries") == "1 entry"
    assert counted(2, "entry", plural="entries") == "2 entries"
    assert counted(1, "key", "are not repaired") == "1 key is not repaired"
    assert counted(2, "key", "were not repaired") == "2 keys were not repaired"


def test_foreign_text_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters, marks of direction and halves of characters are escaped in whatever a command prints."""
    evil = "a\x1b[2J\x9b1m\x07\u202e\ud800"
    escaped = r"a\x1b[2J\x9b1m\x07\u202e\ud800"
    print_facts({evil: [evil], "label": "one\ndigest  forged"})
    print_table(("reason",), [{"reason": evil}], empty="")
    print_note(evil)
    print_error(CommandError(evil, faults=[evil], hint=evil))
    printed = capsys.readouterr()
    assert printed.out.count(escaped) == 3
    assert printed.err.count(escaped) == 4
    assert (printed.out + printed.err).replace("\n", "").isprintable()
    assert "\ndigest" not in printed.out
