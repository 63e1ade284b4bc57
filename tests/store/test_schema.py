"""check_schema: an older release never touches the store of a newer one."""

import pytest

from registry_proxy.store.schema import SCHEMA_VERSION, SchemaTooNewError, check_schema


def test_older_and_same_are_taken_newer_is_not() -> None:
    """Only a version above ours raises, and the message has the place and the next step."""
    for version in range(SCHEMA_VERSION + 1):
        check_schema(version, "the store")
    with pytest.raises(SchemaTooNewError, match="the store has schema version"):
        check_schema(SCHEMA_VERSION + 1, "the store")
