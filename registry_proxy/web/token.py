"""The token endpoint (distribution, token-spec ``token.md``): who are you, and what may you do."""

import base64
import binascii
import time
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from aiohttp.web import StreamResponse

from registry_proxy.access.control import AccessControl
from registry_proxy.access.credentials import LoginRefusedError, TooManyLoginsError
from registry_proxy.access.tokens import TokenSigner
from registry_proxy.ports import Observer
from registry_proxy.spec.errors import ErrorCode, RegistryError
from registry_proxy.spec.scope import parse_scopes
from registry_proxy.web.exchange import Exchange, json_response

_ANONYMOUS = "anonymous"
_SCOPES_MAX = 100


class TokenEndpoint:
    """Gives tokens for a name and a password, or to nobody in particular.

    Args:
        control: logins and the policy.
        signer: signs the tokens.
        observer: is told the outcome of logins.
    """

    def __init__(self, control: AccessControl, signer: TokenSigner, observer: Observer) -> None:
        self._control = control
        self._signer = signer
        self._observer = observer

    async def handle(self, exchange: Exchange) -> StreamResponse:
        """Answer GET /auth/token; what the subject may not do is left out of the token, never an error.

        Raises:
            RegistryError: UNAUTHORIZED for a wrong password, TOOMANYREQUESTS, UNSUPPORTED for other methods.
            StoreUnavailableError: the subject cannot be looked up.
        """
        if exchange.request.method != "GET":
            # Clients that try POST first go on with GET after a 405.
            message = "tokens are given by GET, with the user name and the password as Basic credentials"
            raise RegistryError(ErrorCode.UNSUPPORTED, message, headers={"Allow": "GET"})
        subject = await self._subject(exchange)
        exchange.subject = subject
        policy = await self._control.policy()
        generation = policy.generation(subject)
        if generation is None:
            raise _refused("the user is no more, or was disabled")
        asked = parse_scopes(_scopes(exchange.raw_query))
        access = [allowed for each in asked if (allowed := policy.allowed_access(subject, each)) is not None]
        issued = self._signer.issue(subject, generation, access, time.time())
        issued_at = datetime.fromtimestamp(issued.issued_at, UTC)
        answer = {
            "token": issued.token,
            "access_token": issued.token,
            "expires_in": issued.expires_at - issued.issued_at,
            "issued_at": issued_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return json_response(answer, {"Cache-Control": "no-store"})

    async def _subject(self, exchange: Exchange) -> str:
        headers = exchange.request.headers.getall("Authorization", [])
        if not headers:
            return _ANONYMOUS
        username, password = _basic_credentials(headers)
        try:
            subject = await self._control.login(username, password, exchange.address)
        except LoginRefusedError as error:
            self._observer.login("refused")
            raise _refused("incorrect username or password") from error
        except TooManyLoginsError as error:
            self._observer.login("limited")
            raise RegistryError(
                ErrorCode.TOOMANYREQUESTS,
                "too many failed logins: wait and try again",
                detail={"retry_after_seconds": error.retry_after_seconds},
                headers={"Retry-After": str(error.retry_after_seconds)},
            ) from error
        self._observer.login("ok")
        return subject


def _refused(message: str) -> RegistryError:
    # RFC 9110 wants a challenge with every 401; this one is for the token endpoint alone.
    challenge = 'Basic realm="registry-proxy"'
    return RegistryError(ErrorCode.UNAUTHORIZED, message, headers={"WWW-Authenticate": challenge})


def _basic_credentials(headers: list[str]) -> tuple[str, str]:
    scheme, _, encoded = headers[0].strip().partition(" ")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    username, separator, password = text.partition(":")
    if len(headers) > 1 or scheme.lower() != "basic" or not separator:
        raise _refused("the credentials cannot be read: Basic with user name and password is expected")
    return username, password


def _scopes(raw_query: str) -> list[str]:
    try:
        pairs = parse_qsl(raw_query, keep_blank_values=True, max_num_fields=_SCOPES_MAX, errors="replace")
    except ValueError as error:
        raise RegistryError(ErrorCode.UNSUPPORTED, "the query holds too many parameters", status=400) from error
    return [value for key, value in pairs if key == "scope"]
