"""Commands for grants: tables and lines show all fields of a grant."""

from dataclasses import fields

from registry_proxy.access.grant import GrantInput
from registry_proxy.cli import grants


def test_tables_and_lines_show_all_fields_of_a_grant() -> None:
    """A field added to a grant is in the table and the line; a line leaves out usual values."""
    names = [field.name for field in fields(GrantInput)]
    assert list(grants._COLUMNS) == ["id", *names]
    grant = {name: f"the {name}" for name in ["id", *names]} | {"actions": ["pull", "the actions"]}
    line = grants.grant_text(grant)
    assert [name for name in ["id", *names] if f"the {name}" not in line] == []
