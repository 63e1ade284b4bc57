"""WWW-Authenticate: ours and those of upstreams (RFC 9110 11.6.1; RFC 6750 section 3; token-spec, token.md)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PARAMETER = re.compile(r'\s*(?:,\s*)?([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


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


def parse_challenge(header: str) -> Challenge | None:
    """Return the first challenge of a WWW-Authenticate value; None when there is no scheme."""
    scheme, _, rest = header.strip().partition(" ")
    if not scheme or "=" in scheme:
        return None
    parameters: dict[str, str] = {}
    position = 0
    while match := _PARAMETER.match(rest, position):
        value = match[2] if match[2] is not None else match[3]
        parameters.setdefault(match[1].lower(), re.sub(r"\\(.)", r"\1", value))
        position = match.end()
    return Challenge(scheme.lower(), parameters)
