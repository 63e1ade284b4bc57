"""Names and pages that requests of the admin listener may come from: a browser is no friend of its user.

A page of another site can send requests with the credentials that a browser remembers, or, by DNS rebinding, have its
own name lead to this listener. Plain HTTP has no ``Sec-Fetch-Site``, so Origin, Host and Content-Type decide.
"""

import re
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from aiohttp import web

from registry_proxy.api.problems import ProblemError
from registry_proxy.protocol.addresses import parse_address

_AUTHORITY = re.compile(r"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
SAFE_METHODS = frozenset({"GET", "HEAD"})
"""Methods of requests that change nothing."""

_OTHER_SITES = frozenset({"cross-site", "same-site"})
_JSON = re.compile(r"application/(?:[a-z0-9.-]+\+)?json")
_FORM_TYPES = frozenset({"", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})


class Sites:
    """Refuses requests that come by a foreign name, from a foreign page, or in a form that any page can send.

    Args:
        public_url: where the public listener is reached, such as ``https://registry.example.com``; None if not known.
        admin_hosts: further names of this listener.
    """

    def __init__(self, public_url: str | None, admin_hosts: Iterable[str]) -> None:
        names = [name.lower() for name in admin_hosts]
        self._origins = {f"{scheme}://{name}" for scheme in _DEFAULT_PORTS for name in names}
        if public_url is not None:
            parts = urlsplit(public_url.lower())
            self._origins.add(f"{parts.scheme}://{parts.netloc}")
            names.append(parts.hostname or "")
        self._names: Collection[str] = frozenset({"localhost", *names})

    def check(self, request: web.Request) -> None:
        """Raise ProblemError unless a request may be looked at.

        Raises:
            ProblemError: 421 for a Host that is not ours (RFC 9110, section 15.5.20), 403 for a foreign page, 415 for
                a change that is not JSON.
        """
        hosts = request.headers.getall("Host", [])
        for host in hosts:
            if not self._is_ours(host):
                detail = (
                    "the Host header is not a name of this listener: use its address, or add the name to admin_hosts"
                )
                raise ProblemError(421, detail)
        for origin in request.headers.getall("Origin", []):
            if not self._is_own_origin(origin, hosts):
                raise ProblemError(403, "requests from pages of another origin are refused")
        if request.method in SAFE_METHODS:
            return
        if request.headers.get("Sec-Fetch-Site") in _OTHER_SITES:
            raise ProblemError(403, "changes from pages of other sites are refused")
        _check_is_json(request)

    def _is_ours(self, host: str) -> bool:
        match = _AUTHORITY.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower().strip("[]")
        return name.removesuffix(".") in self._names or parse_address(name) is not None

    def _is_own_origin(self, origin: str, hosts: Collection[str]) -> bool:
        scheme, _, authority = origin.lower().partition("://")
        if origin.lower() in self._origins:
            return True
        wanted = _with_port(authority, scheme)
        return wanted is not None and all(_with_port(host.lower(), scheme) == wanted for host in hosts) and bool(hosts)


def _with_port(authority: str, scheme: str) -> tuple[str, int] | None:
    """Return host and port of an authority; None for what is none, or of a scheme that no page is served by."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None or scheme not in _DEFAULT_PORTS:
        return None
    return match[1], int(match[2] or _DEFAULT_PORTS[scheme])


def _check_is_json(request: web.Request) -> None:
    """Refuse a body that is not JSON, and without a body a type that a page sends without asking (Fetch, "CORS")."""
    given = [each.partition(";")[0].strip().lower() for each in request.headers.getall("Content-Type", [])]
    is_json = len(given) == 1 and _JSON.fullmatch(given[0]) is not None
    is_empty = not request.can_read_body and _FORM_TYPES.isdisjoint(given)
    if not is_json and not is_empty:
        raise ProblemError(415, "a change must be JSON: send Content-Type: application/json")
