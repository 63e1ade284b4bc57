"""The rights that a request needs, as a function of the parsed request alone: decided before anything is looked up."""

from registry_proxy.protocol.endpoints import Operation, RegistryRequest
from registry_proxy.protocol.reference import Repository
from registry_proxy.protocol.scope import CATALOG, Access, repository_access


def required_access(request: RegistryRequest, canonical: Repository | None) -> Access | None:
    """Return the access that a request needs; None for the ping, which needs only a valid token.

    The source of a mount is judged apart: a refusal there is an ordinary upload, not an error.

    Args:
        request: the parsed request.
        canonical: the name under which rights to its repository are judged; None where it names none.

    Raises:
        KeyError: an operation without an action, or without the repository that it needs: nothing is allowed.
    """
    operation = request.operation
    if operation is Operation.PING:
        return None
    if operation is Operation.LIST_REPOSITORIES:
        return CATALOG
    if operation.action is None or canonical is None:
        raise KeyError(operation)
    return repository_access(canonical, operation.action)
