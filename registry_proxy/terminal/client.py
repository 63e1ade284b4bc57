"""The admin API as the commands call it: one HTTP client, every failure a CommandError that says what to do next."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

from registry_proxy.protocol.addresses import is_loopback
from registry_proxy.terminal.credentials import (
    CA_FILE_VARIABLE,
    URL_VARIABLE,
    Credentials,
    admin_url,
    find_credentials,
    tls_context,
)
from registry_proxy.terminal.errors import CommandError, NotAdminError
from registry_proxy.terminal.output import print_note

if TYPE_CHECKING:
    import httpx

_PAGE_SIZE = 500
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 30
_HINT = f"Is this the admin listener of registry-proxy? {URL_VARIABLE} sets the URL."
_WARNING = re.compile(r'299 \S+ "([^"]*)"')  # RFC 7234, section 5.5


Locate = Callable[[Sequence[str]], str]
"""Says where in what the user wrote a place in the body is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer: the JSON object (empty for 204), and the ETag to give back when changing it."""

    document: dict[str, Any]
    etag: str | None


def _read_document(response: "httpx.Response", url: str) -> dict[str, Any]:
    try:
        document = response.json() if response.content else {}
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        return document
    raise CommandError(f"{url} answered {response.status_code} with something that is not JSON", hint=_HINT)


def given(**fields: Any) -> dict[str, Any]:
    """Return the fields whose options were given."""
    return {name: value for name, value in fields.items() if value is not None}


def _dotted(pointer: Sequence[str]) -> str:
    return ".".join(pointer)


def _fault_line(fault: Any, locate: Locate) -> str:
    if not isinstance(fault, dict):
        return str(fault)
    pointer = str(fault.get("pointer", "")).removeprefix("#").removeprefix("/")
    place = locate(pointer.split("/")) if pointer else ""
    return f"{place}: {fault.get('detail')}" if place else str(fault.get("detail"))


def _to_error(response: "httpx.Response", url: str, username: str, locate: Locate) -> CommandError:
    """Return the error that an error answer means; its text is the server's where the server knows best."""
    status = response.status_code
    if status == HTTPStatus.UNAUTHORIZED:
        return CommandError(
            f"{url} refused the login of {username}: wrong name or password",
            hint="Run `registry-proxy login` again, or correct REGISTRY_PROXY_ADMIN_USER and _PASSWORD.",
        )
    problem = _read_document(response, url)
    faults = problem.get("errors")
    lines = [_fault_line(fault, locate) for fault in faults] if isinstance(faults, list) else []
    # What users do for themselves needs no admin: the server says what it was.
    if status == HTTPStatus.FORBIDDEN and not lines and "/me/" not in response.request.url.path:
        return NotAdminError(
            f"{username} is not an admin at {url}", hint="Log in as one: `registry-proxy login --user NAME`."
        )
    if isinstance(faults, list) and faults and isinstance(faults[0], dict) and faults[0].get("message"):
        return CommandError(f"{url}: {faults[0]['message']}", hint=f"{URL_VARIABLE} sets the URL.")
    if not (problem.get("detail") or problem.get("title")):
        return CommandError(f"{url} answered {status}", hint=_HINT)
    hint = None
    if retry_after := response.headers.get("Retry-After"):
        hint = f"Try again in {retry_after} s."
    elif status == HTTPStatus.PRECONDITION_FAILED:
        if "If-None-Match" in response.request.headers:
            hint = "Change it with the command `set`, or choose another name."
        else:
            hint = "Look at it as it is now, then run the command again."
    return CommandError(str(problem.get("detail") or problem["title"]), faults=lines, hint=hint)


class AdminClient:
    """A logged-in client of the admin API. Use it as a context manager."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        import httpx  # noqa: PLC0415 - a third of the start of `serve`, which does without

        self._url = url
        self._username = credentials.username
        self._http = httpx.Client(
            base_url=f"{url}/admin/v1",
            auth=httpx.BasicAuth(credentials.username, credentials.password),
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            # Another machine's HTTP proxy cannot reach our loopback, and must not see the password.
            trust_env=not is_loopback(urlsplit(url).hostname or ""),
            verify=tls_context() if url.startswith("https:") else False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        *path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        patient: bool = False,
        warns: bool = True,
        locate: Locate = _dotted,
    ) -> Answer:
        """Send a request and return its answer; its warnings are printed on standard error.

        Args:
            method: of HTTP.
            path: components, quoted here.
            body: sent as JSON.
            query: parameters.
            headers: such as If-Match.
            patient: wait as long as it takes; for work that reads the whole disk.
            warns: print the warnings of the answer; False where the same request follows.
            locate: names the place of each fault of the body.

        Raises:
            CommandError: it could not be sent, or the answer is an error.
        """
        import httpx  # noqa: PLC0415 - as above

        target = "/" + "/".join(quote(component, safe="") for component in path)
        timeout = httpx.Timeout(None if patient else _ANSWER_SECONDS, connect=_CONNECT_SECONDS)
        try:
            response = self._http.request(method, target, json=body, params=query, headers=headers, timeout=timeout)
        except httpx.ConnectError as error:
            hint = f"Is registry-proxy running there? {URL_VARIABLE} sets the URL of its admin listener."
            if "WRONG_VERSION_NUMBER" in str(error):
                hint = f"No TLS is spoken there: {URL_VARIABLE} should begin with http://."
            elif "CERTIFICATE_VERIFY_FAILED" in str(error):
                hint = f"{CA_FILE_VARIABLE} names the file of the authority that signed its certificate."
            raise CommandError(f"Cannot connect to {self._url}: {error}", hint=hint) from error
        except httpx.TimeoutException as error:
            raise CommandError(
                f"{self._url} did not answer in time", hint="Try again; look at the log of registry-proxy."
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise CommandError(f"Talking to {self._url} failed: {error}", hint=_HINT) from error
        if not response.is_success:
            raise _to_error(response, self._url, self._username, locate)
        for warning in _WARNING.findall(response.headers.get("Warning", "")) if warns else ():
            print_note(f"warning: {warning}")
        return Answer(_read_document(response, self._url), response.headers.get("ETag"))

    def check_login(self) -> None:
        """Check the login, before a person is asked for anything. Raises CommandError."""
        self.call("GET", "me")

    def list_all(self, *path: str, query: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Return every item of a list, page by page."""
        items: list[dict[str, Any]] = []
        parameters = {**(query or {}), "limit": str(_PAGE_SIZE)}
        while True:
            page = self.call("GET", *path, query=parameters).document
            try:
                items += page["items"]
                following = page["next"]
            except (KeyError, TypeError):
                raise CommandError(f"{self._url} answered with something that is not a list", hint=_HINT) from None
            if following is None:
                return items
            parameters["after"] = following


def admin_client() -> AdminClient:
    """Return a client with the URL and login that environment and store give. Raises CommandError."""
    url = admin_url()
    return AdminClient(url, find_credentials(url))
