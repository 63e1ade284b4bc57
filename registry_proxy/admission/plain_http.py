"""Changes over plain HTTP: anybody on the way reads their passwords and tokens."""

from collections.abc import Callable

from aiohttp import web

from registry_proxy.api.problems import ProblemError
from registry_proxy.http.guarded import is_tls
from registry_proxy.protocol.addresses import is_loopback


class PlainHttp:
    """Refuses changes over plain HTTP from beyond this machine.

    Args:
        is_trusted: tells whether an address is that of a trusted proxy, whose X-Forwarded-Proto is believed.
        is_allowed: whether all changes are taken, as `admin_insecure` says.
    """

    def __init__(self, is_trusted: Callable[[str], bool], *, is_allowed: bool) -> None:
        self._is_trusted = is_trusted
        self._is_allowed = is_allowed

    def check(self, request: web.Request) -> None:
        """Raise ProblemError 403 for a change that others can have read."""
        remote = request.remote or ""
        if self._is_allowed or is_tls(request.transport) or is_loopback(remote):
            return
        if self._is_trusted(remote) and request.headers.get("X-Forwarded-Proto", "").lower() == "https":
            return
        raise ProblemError(
            403,
            "changes over plain HTTP are accepted from this machine alone: set admin_tls, or let a proxy of "
            "trusted_proxies add TLS and X-Forwarded-Proto: https; admin_insecure: true accepts them",
        )
