"""The types of the configuration's values: how each is written, and what is expected where it is wrong.

Errors raised by the validators are read by people: each says what was expected.
"""

import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, WithJsonSchema
from pydantic_core import PydanticCustomError

from registry_proxy.protocol.addresses import is_loopback
from registry_proxy.protocol.patterns import repository_pattern_fault
from registry_proxy.protocol.reference import is_repository

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]i?)?B?", re.IGNORECASE)
_SIZE_PREFIXES = "KMGT"
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)*"
)
_UPSTREAM_NAME = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")
_REPLICA_NAME = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9.:_\[\]-]{0,99}")
_MAX_NUMBER_LENGTH = 20
_AUDIT_FILE_MIN_BYTES = 4096
_CLAIM_PATTERN_MAX_LENGTH = 500
_GROUP_NAME = re.compile(r"(?!oidc\Z)[A-Za-z0-9_][A-Za-z0-9._@+-]{0,127}")  # as access.subject has it
_OIDC_SUBJECT = re.compile(r"(?:\{[A-Za-z0-9._:/-]+\}(?!\{)|[A-Za-z0-9._@+:/-])+")


def expected(what: str) -> PydanticCustomError:
    """Return the error of a value that is not ``what``; a report puts the value found behind it."""
    return PydanticCustomError("expected", "expected {what}", {"what": what})


class Address(NamedTuple):
    """An IP address and a port to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_duration(value: Any) -> float:
    """Return seconds from ``10s``, ``500ms`` or a plain number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    text = f"{value}s" if isinstance(value, str) and value.isdecimal() else value
    match = _DURATION.fullmatch(text) if isinstance(text, str) and len(text) <= _MAX_NUMBER_LENGTH else None
    if match is None:
        raise expected("a duration such as 500ms, 10s, 5m or 24h")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def parse_size(value: Any) -> int:
    """Return bytes from ``10GiB``, ``500MB`` or a plain number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) and len(value) <= _MAX_NUMBER_LENGTH else None
    if match is None:
        raise expected("a size such as 10GiB, 500MB or a number of bytes")
    prefix = (match[2] or "").upper()
    power = _SIZE_PREFIXES.index(prefix[0]) + 1 if prefix else 0
    return int(float(match[1]) * (1024 if prefix.endswith("I") else 1000) ** power)


def _parse_address(value: Any) -> Address:
    """Return the address of ``127.0.0.1:5000``, ``[::1]:5000`` or ``localhost:5000``."""
    if isinstance(value, list | tuple) and [type(part) for part in value] == [str, int]:
        value = str(Address(*value))  # as the supervisor sends it to a worker
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise expected("an IPv6 address in brackets and a port, such as [::1]:5000")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        ipaddress.ip_address(host)
        number = int(port) if re.fullmatch(r"[0-9]{1,5}", port) else 0
    except ValueError:
        raise expected("an IP address and a port, such as 127.0.0.1:5000 or 0.0.0.0:5000") from None
    if not 0 < number < 1 << 16:
        raise expected("an IP address and a port from 1 to 65535, such as 127.0.0.1:5000")
    return Address(host, number)


def _parse_network(value: Any) -> Any:
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        return ipaddress.ip_network(value if isinstance(value, str) else "")
    except ValueError:
        raise expected("an address or network without host bits, such as 127.0.0.1/32 or 10.0.0.0/8") from None


def split_url(value: str) -> SplitResult | None:
    """Return the parts of a URL whose host and port make sense; None for anything else."""
    if not value.isascii() or not value.isprintable() or " " in value or len(value) > 2000:
        return None
    try:
        parts = urlsplit(value)
        port, host = parts.port, parts.hostname or ""
        if ":" in host:
            ipaddress.IPv6Address(host)
    except ValueError:
        return None
    if port == 0 or not (":" in host or _HOST_NAME.fullmatch(host)):
        return None
    return parts


def is_replica_place(host: str, port: int) -> bool:
    """Tell whether ``host:port`` can be where a replica is, and its name."""
    place = f"{host}:{port}"
    return split_url(f"//{place}") is not None and _REPLICA_NAME.fullmatch(place) is not None


def _parse_origin(value: Any, *, example: str) -> str:
    """Return ``scheme://host[:port]``, without the slash that some write behind it."""
    parts = split_url(value) if isinstance(value, str) else None
    if (
        parts is None
        or parts.scheme not in {"http", "https"}
        or parts.path not in {"", "/"}
        or parts.query
        or parts.fragment
    ):
        raise expected(f"http:// or https://, a host and, if need be, a port, such as {example}")
    if "@" in parts.netloc:
        raise expected("a URL without credentials: give them as username and password_file")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def _must(is_right: Callable[[Any], object], what: str) -> AfterValidator:
    """Return the check of a value that was read; ``what`` tells what is expected where it is not right."""

    def check(value: Any) -> Any:
        if not is_right(value):
            raise expected(what)
        return value

    return AfterValidator(check)


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    return _must(pattern.fullmatch, what)


def _check_pattern(value: str) -> str:
    if (fault := repository_pattern_fault(value)) is not None:
        raise PydanticCustomError("pattern", "{fault}", {"fault": fault})
    return value


def _is_host(value: str) -> bool:
    return split_url(f"//{value}") is not None and {"/", "@"}.isdisjoint(value)


_REDIS_SCHEMES = frozenset({"redis", "rediss", "redis+sentinel", "rediss+sentinel"})
_SQLITE_PATH = re.compile(r"/[^\0]*[^/\0]")
_REDIS_DATABASE = re.compile(r"[0-9]{0,5}")
_REDIS_PARAMETERS = frozenset(
    {
        "client_name",
        "sentinel_password",
        "sentinel_username",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
    }
)
"""Of those that redis-py takes in a URL; it passes on what it does not know, and fails at the first use."""


def _check_store(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    scheme, _, remainder = url.partition("://")
    if scheme == "sqlite" and _SQLITE_PATH.fullmatch(remainder):
        return value
    if scheme in {"redis", "rediss"} and split_url(url) is not None and _is_redis_path(remainder.partition("/")[2]):
        return value
    if scheme in {"redis+sentinel", "rediss+sentinel"} and _names_sentinels(remainder):
        return value
    text = (
        "sqlite:///relative/path.db, sqlite:////absolute/path.db, redis://host:6379/0 or "
        "redis+sentinel://host:26379,host:26379/name/0; rediss for TLS"
    )
    if scheme in _REDIS_SCHEMES:
        text += (
            f"; in a password %40 for @, %2F for /, %3F for ?; parameters are {', '.join(sorted(_REDIS_PARAMETERS))}"
        )
    raise expected(text)


def _names_sentinels(remainder: str) -> bool:
    authority, _, path = remainder.partition("/")
    hosts = authority.rpartition("@")[2]
    before, _, query = path.partition("?")
    name, _, number = before.partition("/")
    is_path = _is_redis_path(f"{number}?{query}")
    return bool(name) and is_path and all(split_url(f"redis://{host}") is not None for host in hosts.split(","))


def _is_redis_path(path: str) -> bool:
    """Tell whether the part of a Redis URL behind its authority is a database's number and parameters that we know."""
    number, _, query = path.partition("?")
    parameters = parse_qsl(query, keep_blank_values=True)
    return _REDIS_DATABASE.fullmatch(number) is not None and all(name in _REDIS_PARAMETERS for name, _ in parameters)


def _is_syslog(value: str | None) -> bool:
    scheme, _, remainder = (value or "").partition("://")
    is_remote = scheme in {"udp", "tcp"} and _is_bare(split_url(value or ""))
    return value is None or is_remote or (scheme == "unix" and remainder.startswith("/"))


def _is_bare(parts: SplitResult | None) -> bool:
    return parts is not None and "@" not in parts.netloc and not (parts.path or parts.query or parts.fragment)


def _check_issuer(value: str) -> str:
    """Keep a URL as it is, because tokens hold it so; what it says about keys must not be forged on the way."""
    parts = split_url(value)
    if parts is None or not {"@", "?", "#"}.isdisjoint(value):
        raise expected("an https:// URL, such as https://token.actions.githubusercontent.com")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise expected("an https:// URL (http:// only for this machine), since its keys decide who may log in")
    return value


def _check_ldap(value: str) -> str:
    parts = split_url(value)
    if not _is_bare(parts) or parts is None or parts.scheme not in {"ldap", "ldaps"}:
        raise expected("ldaps://, a host and, if need be, a port, such as ldaps://ldap.example.com")
    if parts.scheme != "ldaps" and not is_loopback(parts.hostname or ""):
        raise expected("an ldaps:// URL (ldap:// only for this machine), since passwords are sent there")
    return value


def _is_bind_dn(value: str) -> bool:
    return value.count("{name}") == 1 and value != "{name}" and value.isprintable()


def _is_claim_pattern(value: str) -> bool:
    return 0 < len(value) <= _CLAIM_PATTERN_MAX_LENGTH and value.isprintable()


def _empty_is_none(value: Any) -> Any:
    return None if value == "" else value


def _told_as(*examples: str, kinds: Sequence[str] = ("string",), pattern: str = "") -> WithJsonSchema:
    """Return how the JSON schema tells what a file may hold, which is not what it becomes."""
    schema: dict[str, Any] = {"type": kinds[0] if len(kinds) == 1 else list(kinds), "examples": list(examples)}
    return WithJsonSchema(schema | ({"pattern": f"^(?:{pattern})$"} if pattern else {}))


_DURATION_TOLD = _told_as(
    "500ms", "10s", "5m", "24h", kinds=("string", "number"), pattern=_DURATION.pattern + "|[0-9]+"
)
Duration = Annotated[float, BeforeValidator(parse_duration), _DURATION_TOLD]
Timeout = Annotated[Duration, _must(lambda seconds: seconds > 0, "a duration longer than 0")]
Size = Annotated[int, BeforeValidator(parse_size), _told_as("10GiB", "500MB", kinds=("string", "integer"))]
ListenAddress = Annotated[Address, BeforeValidator(_parse_address), _told_as("127.0.0.1:5000", "[::1]:5000")]
Network = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network,
    BeforeValidator(_parse_network),
    _told_as("127.0.0.1/32", "10.0.0.0/8", "::1/128"),
]
Path = Annotated[str, _must(lambda path: path and "\0" not in path, "a path"), AfterValidator(os.path.abspath)]
PublicUrl = Annotated[
    str | None,
    BeforeValidator(lambda value: value and _parse_origin(value, example="https://registry.example.com")),
    BeforeValidator(_empty_is_none),
]
ReplicaUrl = Annotated[str, BeforeValidator(partial(_parse_origin, example="http://127.0.0.1:5001"))]
UpstreamName = Annotated[str, _matching(_UPSTREAM_NAME, "a name of lower-case letters, digits, single - or _")]
IssuerUrl = Annotated[str, AfterValidator(_check_issuer)]
ClaimPattern = Annotated[str, _must(_is_claim_pattern, "text of at most 500 characters, in which * is any text")]
ClaimPatterns = Annotated[
    tuple[ClaimPattern, ...],
    Field(min_length=1),
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
GroupName = Annotated[str, _matching(_GROUP_NAME, "the name of a group, such as deployers")]
OidcSubject = Annotated[
    str,
    _matching(_OIDC_SUBJECT, "letters, digits, any of . _ @ + : / - and, between these, names of claims in braces"),
]
RepositoryPattern = Annotated[str, AfterValidator(_check_pattern)]
HostName = Annotated[str, _must(_is_host, "a host name, such as docker.io"), AfterValidator(str.lower)]
AdminHost = Annotated[
    str,
    _matching(_HOST_NAME, "a host name without a port, such as admin.example.com"),
    AfterValidator(str.lower),
]
ReplicaName = Annotated[str, _matching(_REPLICA_NAME, "a name of up to 100 letters, digits and any of . : _ - [ ]")]
RoutePrefix = Annotated[
    str,
    _must(
        lambda prefix: not prefix or (prefix.endswith("/") and is_repository(prefix[:-1])),
        '"" or whole components of a repository name, ending in "/", such as "hub/"',
    ),
]
StoreUrl = Annotated[SecretStr, AfterValidator(_check_store)]
LdapUrl = Annotated[str, AfterValidator(_check_ldap)]
BindDn = Annotated[
    str, _must(_is_bind_dn, "a DN with the name in braces, such as uid={name},ou=people,dc=example,dc=com")
]
TokenLifetime = Annotated[
    Duration,
    _must(
        lambda seconds: 60 <= seconds <= 86400,
        "a number of seconds from 60 to 86400 (docker takes anything less as 60)",
    ),
]
AuditFileSize = Annotated[Size, _must(lambda size: size >= _AUDIT_FILE_MIN_BYTES, "a size of at least 4KiB")]
SyslogUrl = Annotated[
    str | None,
    _must(_is_syslog, "unix:///dev/log, udp://host:514 or tcp://host:514"),
    BeforeValidator(_empty_is_none),
]
