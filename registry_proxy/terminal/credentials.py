"""Sources of the admin's URL, name and password: the environment, else what `login` stored."""

import json
import os
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from registry_proxy.files.atomic import write_file
from registry_proxy.terminal.errors import CommandError

URL_VARIABLE = "REGISTRY_PROXY_ADMIN_URL"
USER_VARIABLE = "REGISTRY_PROXY_ADMIN_USER"
PASSWORD_VARIABLE = "REGISTRY_PROXY_ADMIN_PASSWORD"  # noqa: S105 -- the name of a variable
CA_FILE_VARIABLE = "REGISTRY_PROXY_ADMIN_CA_FILE"
CERT_FILE_VARIABLE = "REGISTRY_PROXY_ADMIN_CERT_FILE"
KEY_FILE_VARIABLE = "REGISTRY_PROXY_ADMIN_KEY_FILE"
DEFAULT_URL = "http://127.0.0.1:5080"
FIRST_ADMIN = "admin"

PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", help="Read the password from the first line of a file.")
]

_SECRET_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Credentials:
    """The login of an admin."""

    username: str
    password: str = field(repr=False)


def admin_url() -> str:
    """Return the base URL of the admin listener, without a slash at its end.

    Raises:
        CommandError: the variable holds no http or https URL, or one with credentials in it.
    """
    text = os.environ.get(URL_VARIABLE) or DEFAULT_URL
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        raise CommandError(f"{URL_VARIABLE} is not a URL", hint=f"Set it to something like {DEFAULT_URL}.") from None
    if "@" in parts.netloc:
        # The text is not repeated: it holds a password.
        raise CommandError(
            f"{URL_VARIABLE} holds credentials", hint="Take them out and run `registry-proxy login` instead."
        )
    if not usable:
        raise CommandError(
            f"{URL_VARIABLE} is {text!r}, which is not an http or https URL",
            hint=f"Set it to something like {DEFAULT_URL}.",
        )
    return url.rstrip("/")


def tls_context() -> ssl.SSLContext:
    """Return how to verify the admin listener, and the certificate to show it where there is one.

    Raises:
        CommandError: a file that a variable names cannot be used.
    """
    ca_file, cert_file, key_file = map(os.environ.get, (CA_FILE_VARIABLE, CERT_FILE_VARIABLE, KEY_FILE_VARIABLE))
    name, file = CA_FILE_VARIABLE, ca_file
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        if cert_file:
            name, file = CERT_FILE_VARIABLE, cert_file
            context.load_cert_chain(cert_file, key_file or None)
    except OSError as error:  # ssl.SSLError is one
        reason = (
            error.strerror if not isinstance(error, ssl.SSLError) else "expected PEM, and the key that belongs to it"
        )
        raise CommandError(f"{name}: {file} cannot be used: {reason}") from None
    return context


def _store_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "registry-proxy" / "credentials.json"


def _read_store() -> dict[str, dict[str, str]]:
    path = _store_path()
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(
            f"The stored credentials in {path} cannot be read", hint="Remove the file and log in again."
        ) from error
    if not isinstance(stored, dict):
        raise CommandError(f"{path} does not hold credentials", hint="Remove the file and log in again.")
    return stored


def _write_store(stored: Mapping[str, Mapping[str, str]]) -> Path:
    path = _store_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(str(path), json.dumps(stored).encode())
    except OSError as error:
        raise CommandError(f"The credentials cannot be stored in {path}: {error.strerror}") from error
    return path


def store_credentials(url: str, credentials: Credentials) -> Path:
    """Remember the login for one URL, readable by its owner only; return the file."""
    entry = {"username": credentials.username, "password": credentials.password}
    return _write_store({**_read_store(), url: entry})


def forget_credentials(url: str) -> bool:
    """Remove the entry of one URL; return whether there was one."""
    stored = _read_store()
    if stored.pop(url, None) is None:
        return False
    _write_store(stored)
    return True


def is_from_environment() -> bool:
    """Tell whether the login comes from the environment, and not from the stored credentials."""
    return bool(os.environ.get(PASSWORD_VARIABLE))


def find_credentials(url: str) -> Credentials:
    """Return the login to use: that of the environment, else the stored one.

    Raises:
        CommandError: there is neither.
    """
    if password := os.environ.get(PASSWORD_VARIABLE):
        return Credentials(os.environ.get(USER_VARIABLE) or FIRST_ADMIN, password)
    match _read_store().get(url):
        case {"username": str(username), "password": str(password)}:
            return Credentials(username, password)
        case _:
            raise CommandError(
                f"Not logged in at {url}",
                hint=f"Run `registry-proxy login`, or set {USER_VARIABLE} and {PASSWORD_VARIABLE}.",
            )


def _read_text(noun: str, *, from_stdin: bool, file: Path | None) -> tuple[str, str] | None:
    """Return the text of a source and the source's name, or None where the options name no source."""
    if from_stdin and file is not None:
        raise typer.BadParameter(f"--{noun}-stdin and --{noun}-file exclude each other")
    if from_stdin:
        origin, content = "Standard input", sys.stdin.buffer.read(_SECRET_MAX_BYTES + 1)
    elif file is None:
        return None
    else:
        origin = f"The {noun} file {file}"
        try:
            with file.open("rb") as opened:
                content = opened.read(_SECRET_MAX_BYTES + 1)
        except OSError as error:
            raise CommandError(f"{origin} cannot be read: {error.strerror}") from error
    if len(content) > _SECRET_MAX_BYTES:
        raise CommandError(f"{origin} is too long for a {noun}")
    try:
        return content.decode(), origin
    except UnicodeDecodeError:
        raise CommandError(f"{origin} is not UTF-8 text") from None


def read_password(*, from_stdin: bool, file: Path | None) -> str | None:
    """Return the password from where the options say, or None when they say nothing.

    The first line counts, without its end. It is never an argument: those are visible to every user of the machine.

    Raises:
        CommandError: nothing to read there.
        typer.BadParameter: both options are given.
    """
    if (found := _read_text("password", from_stdin=from_stdin, file=file)) is None:
        return None
    text, origin = found
    password = text.split("\n", 1)[0].removesuffix("\r")
    if not password:
        raise CommandError(f"{origin} holds no password: its first line is empty")
    return password


def read_lines(noun: str, *, from_stdin: bool, file: Path | None) -> list[str] | None:
    """Return the lines with text in them from where ``--NOUN-stdin`` and ``--NOUN-file`` say, or None without these.

    Raises:
        CommandError: nothing to read there.
        typer.BadParameter: both options are given.
    """
    if (found := _read_text(noun, from_stdin=from_stdin, file=file)) is None:
        return None
    text, origin = found
    lines = [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
    if not lines:
        raise CommandError(f"{origin} holds no {noun}: it is empty")
    return lines


def ask_password(prompt: str, *, twice: bool = False, noun: str = "password") -> str:
    """Ask for a password, or another secret, on the terminal, without showing it.

    Raises:
        typer.BadParameter: there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"no terminal to ask for the {noun}: give --{noun}-stdin or --{noun}-file FILE")
    password: str = typer.prompt(prompt, hide_input=True, confirmation_prompt=twice)
    return password
