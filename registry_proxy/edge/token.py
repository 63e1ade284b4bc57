"""The token endpoint (distribution, token-spec ``token.md``): who are you, and what may you do."""

import base64
import binascii
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from urllib.parse import parse_qsl

from registry_proxy.access.control import AccessControl
from registry_proxy.access.credentials import LoginRefusedError, LoginUnavailableError, TooManyLoginsError
from registry_proxy.access.faults import InvalidError
from registry_proxy.access.id_tokens import IdTokenRefusedError
from registry_proxy.access.logins import LoginResult
from registry_proxy.access.secrets import SecretKind
from registry_proxy.access.subject import ANONYMOUS, OIDC_LOGIN_NAME, claimed_subject
from registry_proxy.access.tokens import TokenSigner
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.revise import NotFoundError
from registry_proxy.directory.secrets import SecretInput
from registry_proxy.edge.answer import Answer, json_answer
from registry_proxy.edge.exchange import Exchange, read_small_body
from registry_proxy.http.limits import LINE_MAX_BYTES
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.events import AuditEvent, AuditKind, AuditLog
from registry_proxy.ports.metrics import LoginAttempt, LoginOutcome, Observer
from registry_proxy.protocol.errors import ErrorCode, RegistryError, unavailable
from registry_proxy.protocol.scope import Access, format_scope, parse_scopes

_EXPIRES_IN_MIN = 60  # docker takes anything less for this; the leeway covers it where an ID token ends sooner
_SCOPES_MAX = 200
_FIELDS_MAX = 1000  # clients repeat scopes
_FORM_MAX_BYTES = LINE_MAX_BYTES  # the same fields by POST as by GET


@dataclass(frozen=True, slots=True)
class _Request:
    """A request for a token; ``wants_refresh_token`` as ``offline_token`` of GET and ``access_type`` of POST say it."""

    login: LoginResult
    scopes: list[str]
    wants_refresh_token: bool
    client: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEndpoint:
    """Gives tokens for a name and a password or secret, an ID token, a refresh token, or to nobody in particular.

    Args:
        control: logins and the policy.
        directory: makes refresh tokens.
        signer: signs the tokens.
        observer: receives the outcome of logins.
        audit: receives logins and refusals.
        refresh_lifetime_seconds: how long a new refresh token is valid; None makes none. Those there are stay valid.
    """

    control: AccessControl
    directory: Directory
    signer: TokenSigner
    observer: Observer
    audit: AuditLog
    refresh_lifetime_seconds: float | None

    async def handle(self, exchange: Exchange) -> Answer:
        """Answer GET and POST /auth/token; what the subject may not do is left out of the token, never an error.

        Raises:
            RegistryError: UNAUTHORIZED for wrong credentials, TOOMANYREQUESTS, UNSUPPORTED for what is no such request.
                UNAVAILABLE while the issuer of an ID token, or LDAP, cannot be asked.
            StoreUnavailableError: the subject cannot be looked up.
        """
        match exchange.method:
            case "GET":
                asked = await self._read_get(exchange)
            case "POST":
                asked = await self._read_post(exchange)
            case _:
                message = "tokens are given by GET, or by POST of a form (OAuth2)"
                raise RegistryError(ErrorCode.UNSUPPORTED, message, headers={"Allow": "GET, POST"})
        login = asked.login
        exchange.subject = login.subject
        policy = await self.control.policy()
        generation = policy.generation(login.subject)
        if generation is None:
            raise _refused("the user is no more, or was disabled")
        access = [
            allowed
            for each in _parse_scopes(asked.scopes)
            if (allowed := policy.allowed_access(login.subject, each)) is not None
            and (allowed := _narrowed(allowed, login)) is not None
        ]
        issued = self.signer.issue(
            login.subject,
            generation if login.generation is None else login.generation,
            access,
            time.time(),
            secret_id=login.secret_id,
            not_after=login.expires_at,
            is_scoped=bool(asked.scopes),
        )
        issued_at = datetime.fromtimestamp(issued.issued_at, UTC)
        answer = {
            "token": issued.token,
            "access_token": issued.token,
            "expires_in": max(_EXPIRES_IN_MIN, issued.expires_at - issued.issued_at),
            "issued_at": issued_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if exchange.method == "POST":
            answer |= {"token_type": "Bearer", "scope": " ".join(format_scope(each) for each in access)}
        if asked.wants_refresh_token and (refresh_token := await self._make_refresh_token(asked)) is not None:
            answer["refresh_token"] = refresh_token
        return json_answer(answer, {"Cache-Control": "no-store"})

    async def _read_get(self, exchange: Exchange) -> _Request:
        pairs = _pairs(exchange.raw_query)
        headers = exchange.headers.getall("Authorization", [])
        login = LoginResult(ANONYMOUS)
        username, password = _credentials(headers) if headers else ("", "")
        if username or password:
            login = await self._counted(
                exchange, username, lambda: self.control.login(username, password, exchange.address)
            )
        wants = ("offline_token", "true") in pairs
        client = next((value for key, value in pairs if key == "client_id"), "")
        return _Request(login, [value for key, value in pairs if key == "scope"], wants, client)

    async def _read_post(self, exchange: Exchange) -> _Request:
        """Read the form of RFC 6749 sections 4.3 and 6; nothing of it is repeated in an error."""
        content_type = exchange.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        body = await read_small_body(exchange, _FORM_MAX_BYTES)
        if content_type != "application/x-www-form-urlencoded":
            raise _bad_request("a form is expected: Content-Type application/x-www-form-urlencoded")
        pairs = _pairs(body.decode(errors="replace"))
        form = dict(pairs)
        match form.get("grant_type"):
            case "password":
                username, password = form.get("username", ""), form.get("password", "")
                login = await self._counted(
                    exchange, username, lambda: self.control.login(username, password, exchange.address)
                )
            case "refresh_token":
                token = form.get("refresh_token", "")
                refusal = "the refresh token is not valid, or not any more: log in again"
                login = await self._counted(exchange, "", lambda: self.control.refresh(token), refusal)
            case _:
                raise _bad_request("grant_type is expected to be password or refresh_token")
        wants = form.get("access_type") == "offline" and form["grant_type"] == "password"
        return _Request(login, [value for key, value in pairs if key == "scope"], wants, form.get("client_id", ""))

    async def _make_refresh_token(self, asked: _Request) -> str | None:
        """Return a refresh token for a login with a password; a robot keeps its secret, a personal token is one.

        One for an ID token, or for a password of LDAP, would outlive it.
        """
        if self.refresh_lifetime_seconds is None or not asked.login.is_own_password:
            return None
        label = "".join(character for character in asked.client if character.isprintable())[:100]
        given = SecretInput(label=label, expires_at=time.time() + self.refresh_lifetime_seconds)
        try:
            _, text = await self.directory.secrets.add(
                asked.login.subject, SecretKind.REFRESH, given, generation=asked.login.generation
            )
        except (InvalidError, NotFoundError, StoreUnavailableError):
            return None  # the token itself is good: the client goes on with the password
        return text

    async def _counted(
        self,
        exchange: Exchange,
        username: str,
        login: Callable[[], Awaitable[LoginResult]],
        refusal: str = "incorrect username or password",
    ) -> LoginResult:
        try:
            proved = await login()
        except IdTokenRefusedError as error:
            self._record(exchange, "refused", "", rule=str(error))
            raise _refused(f"the ID token is refused: {error}") from error
        except LoginUnavailableError as error:
            self._record(exchange, "unavailable", claimed_subject(username), rule=str(error))
            raise unavailable(f"the login cannot be checked now: {error}", detail={"reason": str(error)}) from error
        except LoginRefusedError as error:
            self._record(exchange, "refused", claimed_subject(username), rule=error.reason)
            raise _refused(refusal) from error
        except TooManyLoginsError as error:
            self._record(exchange, "limited", claimed_subject(username), rule=error.reason)
            raise RegistryError(
                ErrorCode.TOOMANYREQUESTS,
                f"the login was not checked: {error}",
                detail={"retry_after_seconds": error.retry_after_seconds},
                headers={"Retry-After": str(error.retry_after_seconds)},
            ) from error
        detail = dict(proved.evidence)
        if proved.secret_id is not None:
            detail["secret_id"] = proved.secret_id
        self._record(exchange, "ok", proved.subject, detail=detail)
        return proved

    def _record(
        self,
        exchange: Exchange,
        outcome: LoginOutcome,
        subject: str,
        *,
        rule: str = "",
        detail: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.observer.observe(LoginAttempt(outcome))
        kind = AuditKind.ACCOUNT if outcome == "ok" else AuditKind.TRAFFIC
        event = AuditEvent(
            "login",
            "failed" if outcome == "unavailable" else outcome,
            subject=subject,
            address=exchange.address,
            rule=rule,
            detail=detail,
            kind=kind,
        )
        self.audit.record(event)


def _parse_scopes(texts: list[str]) -> list[Access]:
    scopes = parse_scopes(texts)
    if len(scopes) > _SCOPES_MAX:
        message = f"{len(scopes)} scopes are more than the {_SCOPES_MAX} that one token carries: ask for several tokens"
        raise RegistryError(
            ErrorCode.UNSUPPORTED, message, detail={"scopes": len(scopes), "limit": _SCOPES_MAX}, status=400
        )
    return scopes


def _narrowed(access: Access, login: LoginResult) -> Access | None:
    """Return what is left under a secret that was made for some actions; to push new tags is less than to push."""
    if login.actions is None or access.type != "repository":
        return access
    kept = {action for action in access.actions if action in login.actions}
    return Access(access.type, access.name, frozenset(kept)) if kept else None


def _refused(message: str) -> RegistryError:
    # RFC 9110 wants a challenge with every 401; this one is for the token endpoint alone.
    challenge = 'Basic realm="registry-proxy"'
    return RegistryError(ErrorCode.UNAUTHORIZED, message, headers={"WWW-Authenticate": challenge})


def _credentials(headers: list[str]) -> tuple[str, str]:
    """Return name and password; a client without a place for a name may send an ID token as Bearer."""
    scheme, _, encoded = headers[0].strip().partition(" ")
    if len(headers) == 1 and scheme.lower() == "bearer":
        return OIDC_LOGIN_NAME, encoded.strip()
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    username, separator, password = text.partition(":")
    if len(headers) > 1 or scheme.lower() != "basic" or not separator:
        raise _refused("the credentials cannot be read: Basic with user name and password is expected")
    return username, password


def _bad_request(message: str) -> RegistryError:
    return RegistryError(ErrorCode.UNSUPPORTED, message, status=400)


def _pairs(text: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=_FIELDS_MAX, errors="replace")
    except ValueError as error:
        raise _bad_request("there are too many parameters") from error
