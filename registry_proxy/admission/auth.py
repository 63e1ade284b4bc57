"""Access to the admin API: administrators, owners of namespaces for grants there, each user for their own things.

They come by password, by a secret, or by one of our tokens.

Every path that is not named as open needs a login, also one that does not exist: strangers do not learn which exist.
"""

import base64
import binascii
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.typedefs import Middleware
from cachetools import FIFOCache

from registry_proxy.access.control import AccessControl
from registry_proxy.access.credentials import LoginRefusedError, LoginUnavailableError, TooManyLoginsError
from registry_proxy.access.logins import LoginResult
from registry_proxy.access.policy import Policy
from registry_proxy.access.secrets import SecretKind, is_refresh_id
from registry_proxy.access.subject import ANONYMOUS, SubjectKind, claimed_subject
from registry_proxy.access.tokens import InvalidTokenError, VerifiedToken
from registry_proxy.admission.plain_http import PlainHttp
from registry_proxy.admission.sites import SAFE_METHODS, Sites
from registry_proxy.api.openapi import Audience, endpoint_of
from registry_proxy.api.problems import Handler, ProblemError, as_problem, too_many_logins
from registry_proxy.api.requests import ASKED_FOR, JUDGE_ANEW
from registry_proxy.http.limits import CLIENT_LEFT
from registry_proxy.ports.events import AuditEvent, AuditKind, AuditLog
from registry_proxy.ports.metrics import LoginAttempt, LoginOutcome, Observer
from registry_proxy.tasks import request_id

_log = logging.getLogger(__name__)
CALLER: web.RequestKey[LoginResult] = web.RequestKey("caller", LoginResult)
"""The sender of a request that was let through."""

BY_PASSWORD: web.RequestKey[bool] = web.RequestKey("by_password", bool)
"""Whether the caller gave the password of a user: neither a secret that was made for it, nor a token."""

NAMESPACES: web.RequestKey[tuple[str, ...]] = web.RequestKey("namespaces", tuple)
"""The namespaces that the caller owns, as patterns; absent for administrators, who may do everything."""

OPS_PATHS = ("/metrics", "/healthz", "/readyz")
"""Paths that need no login."""

_CHALLENGE = 'Basic realm="registry-proxy admin", charset="UTF-8"'
_LOGIN_SECONDS = 300.0
"""Logins of one caller within this time are one event: each request brings the password, and `audit tail -f` would
otherwise report its own requests for ever."""

_LOGINS_MAX = 1000


def _unauthorized(detail: str) -> ProblemError:
    return ProblemError(401, detail, headers={"WWW-Authenticate": _CHALLENGE})


def _login_of(token: VerifiedToken, policy: Policy) -> LoginResult:
    """Return the login that a token stands for.

    Docker keeps its refresh token in a file: a reader of that file must not get the admin API with it.
    """
    if token.secret_id is None:
        return LoginResult(token.subject)
    secret = policy.find_secret(token.secret_id)
    actions = None if secret is None else secret.actions
    is_refreshed = is_refresh_id(token.secret_id) or (secret is not None and secret.kind is SecretKind.REFRESH)
    return LoginResult(token.subject, token.secret_id, actions, may_manage=not is_refreshed)


def _parse_basic(encoded: str) -> tuple[str, str]:
    try:
        username, separator, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        separator = username = password = ""
    if not separator:
        raise _unauthorized("the Authorization header is not Basic with a name and a password (RFC 7617)")
    return username, password


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminGuard:
    """Lets administrators through, and the owners of namespaces to the grants there.

    Args:
        control: knows logins, tokens and who is an administrator.
        sites: refuses requests by foreign names, from foreign pages, or in a form that any page can send.
        plain_http: refuses changes that others can have read on their way.
        client_address: returns the address of the sender; failed logins are counted under it.
        name_request: gives it its ID.
        audit: receives logins, refusals and changes.
        observer: receives an event for each login.
    """

    control: AccessControl
    sites: Sites
    plain_http: PlainHttp
    client_address: Callable[[web.BaseRequest], str]
    name_request: Callable[[web.BaseRequest], str]
    audit: AuditLog
    observer: Observer
    _told_at: FIFOCache[tuple[str, str | None, str], float] = field(default_factory=lambda: FIFOCache(_LOGINS_MAX))

    def middleware(self) -> Middleware:
        """Return the check, for ``web.Application``."""

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            request_id.set(self.name_request(request))
            resource = request.match_info.route.resource
            if resource is not None and resource.canonical in OPS_PATHS:
                return await handler(request)
            self.sites.check(request)
            endpoint = endpoint_of(request)
            is_change = request.method not in SAFE_METHODS and not (endpoint is not None and endpoint.is_question)
            if is_change:
                self.plain_http.check(request)
            if request.can_read_body:
                known = await self.control.policy()
                request[JUDGE_ANEW] = lambda: self._judge_anew(request, known)
            caller = await self._judge(request)
            if not is_change:
                return await handler(request)
            status, response = CLIENT_LEFT, None
            try:
                response = await handler(request)
                status = response.status
            except Exception as error:
                status = as_problem(error).status
                raise
            finally:
                _log.info("%s %s by %s: %d", request.method, request.path, caller.subject, status)
                self._record(request, caller, "ok" if status < 400 else "failed", status, response)
            await self.audit.written()
            return response

        return guard

    async def _judge(self, request: web.Request) -> LoginResult:
        """Return the sender of a request, after the check of their rights; their namespaces are put into it.

        Raises:
            ProblemError: the sender may not.
        """
        caller = request[CALLER] = await self._caller(request)
        if not await self._may_ask(request, caller):
            self._record(request, caller, "denied", 403)
            if not caller.may_manage:
                raise ProblemError(403, "a token from a refresh token gives no rights here: log in with the password")
            raise ProblemError(403, "this needs a user with the admin's right")
        return caller

    async def _judge_anew(self, request: web.Request, known: Policy) -> None:
        """Judge a request again once its body has come: the policy may have changed. Raises ProblemError."""
        if await self.control.policy() is not known:
            await self._judge(request)

    async def _may_ask(self, request: web.Request, caller: LoginResult) -> bool:
        """Tell whether the caller may ask for this; an owner's namespaces are put into the request."""
        endpoint = endpoint_of(request)
        audience = Audience.ADMINS if endpoint is None else endpoint.audience
        if audience is Audience.SELF:
            return True
        policy, is_narrowed = await self.control.policy(), caller.actions is not None or not caller.may_manage
        if policy.is_admin(caller.subject) and not is_narrowed:
            return True
        if audience is Audience.ADMINS:
            return False
        request[NAMESPACES] = () if is_narrowed else policy.namespaces(caller.subject)
        return bool(request[NAMESPACES]) or audience is Audience.USERS

    def _record(
        self,
        request: web.Request,
        caller: LoginResult,
        outcome: str,
        status: int,
        response: web.StreamResponse | None = None,
    ) -> None:
        """Record a change, or an attempt, in the audit log; the action has the name of the route."""
        endpoint = endpoint_of(request)
        path = "" if endpoint is None else endpoint.path
        words = [word for word in path.split("/") if word and not word.startswith("{")]
        detail = {"path": request.path, "status": status, "asked": request.get(ASKED_FOR)}
        if status == 201 and isinstance(response, web.Response) and response.content_type == "application/json":
            made = json.loads(response.body if isinstance(response.body, bytes) else b"{}")
            detail |= {name: made[name] for name in ("id", "kid") if name in made}
        asked = request.get(ASKED_FOR) or {}
        event = AuditEvent(
            ".".join([*words, request.method.lower()]),
            outcome,
            subject=caller.subject,
            address=self.client_address(request),
            repository=asked["repository"] if isinstance(asked.get("repository"), str) else "",
            detail={name: value for name, value in detail.items() if value is not None},
            kind=self._kind(request, outcome),
        )
        self.audit.record(event)

    def _kind(self, request: web.Request, outcome: str) -> AuditKind:
        """Return the kind of event that a change is: others cannot push an administrator's out of the log."""
        if outcome == "denied":
            return AuditKind.TRAFFIC
        endpoint = endpoint_of(request)
        is_own = endpoint is not None and endpoint.audience is Audience.SELF
        if NAMESPACES not in request and not is_own:
            return AuditKind.ACT
        return AuditKind.ACCOUNT if outcome == "ok" else AuditKind.TRAFFIC

    async def _caller(self, request: web.Request) -> LoginResult:
        """Return the sender of the request. Raises ProblemError 401, 403, 429, 503."""
        request[BY_PASSWORD] = False
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        match scheme.lower():
            case "basic":
                username, password = _parse_basic(credentials.strip())
                login = await self._login(username, password, self.client_address(request))
                request[BY_PASSWORD] = login.secret_id is None and login.subject.startswith(f"{SubjectKind.USER}:")
                return login
            case "bearer":
                try:
                    token, policy = await self.control.authenticate(credentials.strip(), time.time())
                except InvalidTokenError:
                    raise _unauthorized("the token is not valid, or not any more") from None
                if token.subject == ANONYMOUS:
                    raise _unauthorized("an anonymous token is not accepted here")
                if token.is_scoped:
                    # A token for a repository was not meant to open the admin API as well.
                    raise ProblemError(
                        403, "a token with a scope is not accepted here: request one without a scope from /auth/token"
                    )
                return _login_of(token, policy)
            case _:
                raise _unauthorized("this needs the name and password, or a token, of an administrator")

    async def _login(self, username: str, password: str, address: str) -> LoginResult:
        try:
            login = await self.control.login(username, password, address)
        except LoginRefusedError as error:
            self._record_login("refused", claimed_subject(username), address, rule=error.reason)
            raise _unauthorized("the name or the password is wrong") from None
        except LoginUnavailableError as error:
            self._record_login("unavailable", claimed_subject(username), address, rule=str(error))
            raise ProblemError(503, f"the login cannot be checked now: {error}") from None
        except TooManyLoginsError as error:
            self._record_login("limited", claimed_subject(username), address, rule=error.reason)
            raise too_many_logins(error) from None
        if self._is_new(login, address):
            self._record_login("ok", login.subject, address)
        return login

    def _is_new(self, login: LoginResult, address: str) -> bool:
        """Tell whether no such login was recorded lately, and note that one is now."""
        who, now = (login.subject, login.secret_id, address), time.monotonic()
        if now - self._told_at.get(who, -_LOGIN_SECONDS) < _LOGIN_SECONDS:
            return False
        self._told_at[who] = now
        return True

    def _record_login(self, outcome: LoginOutcome, subject: str, address: str, *, rule: str = "") -> None:
        self.observer.observe(LoginAttempt(outcome))
        detail = {"listener": "admin"}
        kind = AuditKind.ACCOUNT if outcome == "ok" else AuditKind.TRAFFIC
        word = "failed" if outcome == "unavailable" else outcome
        event = AuditEvent("login", word, subject=subject, address=address, rule=rule, detail=detail, kind=kind)
        self.audit.record(event)
