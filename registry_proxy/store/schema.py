"""The version of what is stored, kept in the store itself from its first commit."""

from registry_proxy.ports.store import Table

SCHEMA_VERSION = 1
SCHEMA_TABLE = Table.META
SCHEMA_KEY = "schema"


class SchemaTooNewError(Exception):
    """The store was written by a later release; this one must not touch it."""


def check_schema(found: int, where: str) -> None:
    """Compare the version found in a store with the one this release writes.

    Args:
        found: the version that is stored.
        where: the store, in words for the operator; without any password.

    Raises:
        SchemaTooNewError: it is newer than ours.
    """
    if found > SCHEMA_VERSION:
        raise SchemaTooNewError(
            f"{where} has schema version {found}, but this release knows versions up to {SCHEMA_VERSION}: "
            "start the release that wrote it, or a later one"
        )
