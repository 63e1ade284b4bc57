"""The namespaces of a caller: repositories inside are theirs to see and change, everything outside is hidden."""

from aiohttp import web

from registry_proxy.admission.auth import NAMESPACES
from registry_proxy.protocol.patterns import is_below


def lies_inside(request: web.Request, repository: str) -> bool:
    """Tell whether a repository, or all that a pattern matches, lies in a namespace of the caller's.

    An administrator sees all.
    """
    namespaces = request.get(NAMESPACES)
    return namespaces is None or any(is_below(repository, each) for each in namespaces)


def joined(namespaces: tuple[str, ...]) -> str:
    """Return namespaces as a text for people."""
    return " or ".join(namespaces)
