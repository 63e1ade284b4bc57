"""WWW-Authenticate: ours and those of upstreams (RFC 9110 11.6.1; RFC 6750 section 3; token-spec, token.md)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"[\s,]*({_NAME})(?=[\s,]|$)[ \t]*")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
_PARAMETER = re.compile(rf'[\s,]*({_NAME})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=][^\s,"]*))')


@dataclass(frozen=True, slots=True)
class Challenge:
    """A challenge: ``scheme`` in lower case (``bearer``, ``basic``), parameters by lower-case name."""

    scheme: str
    parameters: Mapping[str, str]


def _quote(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def format_challenge(realm: str, service: str, scope: str | None = None, error: str | None = None) -> str:
    """Return our Bearer challenge.

    Args:
        realm: absolute URL of the token endpoint, on the scheme, host and port the client called.
        service: the audience of the tokens.
        scope: exactly one scope, or none (/v2/); two make clients fail.
        error: ``invalid_token`` or ``insufficient_scope`` (RFC 6750 3.1).
    """
    parts = [f"realm={_quote(realm)}", f"service={_quote(service)}"]
    if scope is not None:
        parts.append(f"scope={_quote(scope)}")
    if error is not None:
        parts.append(f"error={_quote(error)}")
    return "Bearer " + ",".join(parts)


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Return the challenges of all WWW-Authenticate values of an answer, in their order.

    Each value may hold several (RFC 9110, 11.6.1). A token68 has no name and is left out; what cannot be read ends the
    value it stands in.
    """
    return [challenge for header in headers for challenge in _parse_header(header)]


def _parse_header(header: str) -> Iterator[Challenge]:
    position = 0
    while scheme := _SCHEME.match(header, position):
        parameters: dict[str, str] = {}
        token68 = _TOKEN68.match(header, scheme.end())
        position = (token68 or scheme).end()
        while match := _PARAMETER.match(header, position):
            value = match[2] if match[2] is not None else match[3]
            parameters.setdefault(match[1].lower(), re.sub(r"\\(.)", r"\1", value))
            position = match.end()
        yield Challenge(scheme[1].lower(), parameters)
