"""required_access: every operation has an entry, and the right one."""

import pytest

from registry_proxy.access.required import required_access
from registry_proxy.protocol.endpoints import Operation, RegistryRequest
from registry_proxy.protocol.reference import Repository
from registry_proxy.protocol.scope import CATALOG, Action, repository_access

NAME = Repository("team/a")
EXPECTED = {
    Operation.GET_BLOB: "pull",
    Operation.HEAD_BLOB: "pull",
    Operation.GET_MANIFEST: "pull",
    Operation.HEAD_MANIFEST: "pull",
    Operation.LIST_TAGS: "pull",
    Operation.LIST_REFERRERS: "pull",
    Operation.START_UPLOAD: "push",
    Operation.APPEND_UPLOAD: "push",
    Operation.COMMIT_UPLOAD: "push",
    Operation.UPLOAD_STATUS: "push",
    Operation.CANCEL_UPLOAD: "push",  # an upload of the caller's own
    Operation.PUT_MANIFEST: "push",
    Operation.DELETE_MANIFEST: "delete",
    Operation.DELETE_BLOB: "delete",
}


@pytest.mark.parametrize("operation", Operation)
def test_every_operation_has_an_entry(operation: Operation) -> None:
    """A new operation without an entry in the table and in this test fails."""
    needed = required_access(RegistryRequest(operation=operation, repository=NAME), NAME)
    if operation is Operation.PING:
        assert needed is None
    elif operation is Operation.LIST_REPOSITORIES:
        assert needed == CATALOG
    else:
        assert needed == repository_access(NAME, Action(EXPECTED[operation]))


def test_rights_are_judged_under_the_canonical_name() -> None:
    """The name in the path does not count where the route maps it to another one."""
    request = RegistryRequest(operation=Operation.GET_BLOB, repository=Repository("library/x"), source_host="docker.io")
    assert required_access(request, Repository("hub/library/x")) == repository_access("hub/library/x", Action.PULL)


def test_without_the_repository_it_needs_nothing_is_allowed() -> None:
    """A request that lost its repository raises; it is never taken for one that needs no right."""
    with pytest.raises(KeyError):
        required_access(RegistryRequest(operation=Operation.GET_BLOB), None)
