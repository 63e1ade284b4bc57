"""Who may use the admin API: a user with the admin's right, by password or by one of our tokens.

Whatever is not named as open asks first, paths that do not exist too: nobody learns here what exists.
"""

import base64
import binascii
import logging
import time
from collections.abc import Callable, Collection
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from registry_proxy.access.control import Login
from registry_proxy.access.credentials import LoginRefusedError, TooManyLoginsError
from registry_proxy.access.grants import Policy
from registry_proxy.access.tokens import InvalidTokenError, VerifiedToken
from registry_proxy.web.problems import Handler, ProblemError

_log = logging.getLogger(__name__)
SELF_PREFIX = "/me"
"""Below it a user asks about itself, and needs no right for that."""

CALLER: web.RequestKey[Login] = web.RequestKey("caller", Login)
"""Who sends a request that was let through."""

_CHALLENGE = 'Basic realm="registry-proxy admin", charset="UTF-8"'
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_OTHER_SITES = frozenset({"cross-site", "same-site"})


class Control(Protocol):
    """What the admin listener asks of ``access.control.AccessControl``, which says what each raises."""

    async def policy(self) -> Policy: ...
    async def login(self, username: str, password: str, address: str) -> Login: ...
    async def authenticate(self, token: str, now: float) -> tuple[VerifiedToken, Policy]: ...


def _unauthorized(detail: str) -> ProblemError:
    return ProblemError(401, detail, headers={"WWW-Authenticate": _CHALLENGE})


def _parse_basic(encoded: str) -> tuple[str, str]:
    try:
        username, separator, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        separator = username = password = ""
    if not separator:
        raise _unauthorized("the Authorization header is not Basic with a name and a password (RFC 7617)")
    return username, password


class AdminGuard:
    """Lets administrators through.

    Args:
        control: knows logins, tokens and who is an administrator.
        open_paths: routes that ask for nothing.
        prefix: of the API.
        client_address: tells who sent a request; failed logins are counted under it.
    """

    def __init__(
        self,
        control: Control,
        open_paths: Collection[str],
        prefix: str,
        client_address: Callable[[web.BaseRequest], str],
    ) -> None:
        self._control = control
        self._client_address = client_address
        self._self_prefix = f"{prefix}{SELF_PREFIX}/"
        self._open_paths = frozenset(open_paths)

    def middleware(self) -> Middleware:
        """Return the check, for ``web.Application``."""

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            resource = request.match_info.route.resource
            if resource is not None and resource.canonical in self._open_paths:
                return await handler(request)
            _refuse_other_sites(request)
            caller = request[CALLER] = await self._caller(request)
            is_own = resource is not None and resource.canonical.startswith(self._self_prefix)
            if not is_own and (
                not (await self._control.policy()).is_admin(caller.subject) or caller.actions is not None
            ):
                raise ProblemError(403, "this needs a user with the admin's right")
            response = await handler(request)
            if request.method not in _SAFE_METHODS:
                _log.info("%s %s by %s: %d", request.method, request.path, caller.subject, response.status)
            return response

        return guard

    async def _caller(self, request: web.Request) -> Login:
        """Return who sends the request. Raises ProblemError 401, 429."""
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        match scheme.lower():
            case "basic":
                username, password = _parse_basic(credentials.strip())
                return await self._login(username, password, self._client_address(request))
            case "bearer":
                try:
                    token, policy = await self._control.authenticate(credentials.strip(), time.time())
                except InvalidTokenError:
                    raise _unauthorized("the token is not valid, or not any more") from None
                secret = None if token.secret_id is None else policy.find_secret(token.secret_id)
                return Login(token.subject, token.secret_id, None if secret is None else secret.actions)
            case _:
                raise _unauthorized("this needs the name and password, or a token, of an administrator")

    async def _login(self, username: str, password: str, address: str) -> Login:
        try:
            return await self._control.login(username, password, address)
        except LoginRefusedError:
            raise _unauthorized("the name or the password is wrong") from None
        except TooManyLoginsError as error:
            raise too_many_logins(error) from None


def too_many_logins(error: TooManyLoginsError) -> ProblemError:
    """Return the 429 for a login, or a new password, that has to wait."""
    return ProblemError(
        429, "too many logins: try again later", headers={"Retry-After": str(error.retry_after_seconds)}
    )


def _refuse_other_sites(request: web.Request) -> None:
    """Refuse a change that a page of another site sends with the credentials the browser remembers."""
    if request.method not in _SAFE_METHODS and request.headers.get("Sec-Fetch-Site") in _OTHER_SITES:
        raise ProblemError(403, "changes are not taken from pages of other sites")
