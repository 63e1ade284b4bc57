"""Grants of the admin API: each form of a grant has all its fields."""

from dataclasses import fields

from registry_proxy.access.grant import GrantInput, make_grant
from registry_proxy.admin.grants import GrantBody, GrantDocument, GrantPatch, StatedGrantDocument

_FIELDS = [field.name for field in fields(GrantInput)]


def test_every_form_of_a_grant_has_its_fields() -> None:
    """A field added to a grant can be given, changed and shown; its subject and repository never change."""
    assert list(GrantBody.model_fields) == list(StatedGrantDocument.model_fields) == _FIELDS
    assert list(GrantDocument.model_fields) == [*_FIELDS, "id"]
    assert [*GrantPatch.model_fields] == [name for name in _FIELDS if name not in {"subject", "repository"}]


def test_a_grant_is_shown_as_it_was_given() -> None:
    """The document holds everything of the body, with the actions in their usual order."""
    given = {
        "subject": "group:dev",
        "repository": "a/**",
        "tags": "v*",
        "actions": ["push", "pull"],
        "mode": "warn",
        "expires_at": "2030-01-31T00:00:00Z",
    }
    grant = make_grant(GrantBody.model_validate(given).content(), "7")
    assert GrantDocument.of(grant).as_json() == {**given, "actions": ["pull", "push"], "id": "7"}
