"""The rights that a request needs, as a function of the parsed request alone: decided before anything is looked up."""

from registry_proxy.protocol.endpoints import Operation, RegistryRequest
from registry_proxy.protocol.reference import Repository
from registry_proxy.protocol.scope import CATALOG, Access, Action, repository_access

_ACTIONS = {
    Operation.GET_BLOB: Action.PULL,
    Operation.HEAD_BLOB: Action.PULL,
    Operation.GET_MANIFEST: Action.PULL,
    Operation.HEAD_MANIFEST: Action.PULL,
    Operation.LIST_TAGS: Action.PULL,
    Operation.LIST_REFERRERS: Action.PULL,
    Operation.START_UPLOAD: Action.PUSH,
    Operation.APPEND_UPLOAD: Action.PUSH,
    Operation.COMMIT_UPLOAD: Action.PUSH,
    Operation.UPLOAD_STATUS: Action.PUSH,
    Operation.CANCEL_UPLOAD: Action.PUSH,  # one's own upload, so the right to delete is not needed
    Operation.PUT_MANIFEST: Action.PUSH,
    Operation.DELETE_MANIFEST: Action.DELETE,
    Operation.DELETE_BLOB: Action.DELETE,
}


def required_access(request: RegistryRequest, canonical: Repository | None) -> Access | None:
    """Return the access that a request needs; None for the ping, which needs only a valid token.

    The source of a mount is judged apart: a refusal there is an ordinary upload, not an error.

    Args:
        request: the parsed request.
        canonical: the name under which rights to its repository are judged; None where it names none.

    Raises:
        KeyError: an operation without an entry here, or without the repository it needs: nothing is allowed.
    """
    if request.operation is Operation.PING:
        return None
    if request.operation is Operation.LIST_REPOSITORIES:
        return CATALOG
    action = _ACTIONS[request.operation]
    if canonical is None:
        raise KeyError(request.operation)
    return repository_access(canonical, action)
