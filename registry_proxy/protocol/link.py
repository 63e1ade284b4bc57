"""Link headers (RFC 8288, section 3), as far as lists use them: where the next page is."""

import re
from collections.abc import Iterable

_LINK = re.compile(r"[\s,]*<([^<>]*)>")
_PARAMETER = re.compile(r'\s*;\s*([^\s=;,"<>]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*)))?')


def parse_next(headers: Iterable[str]) -> str | None:
    """Return the target of the first link to the next page among the Link values of an answer, None without one.

    The time it takes is in proportion to the length. Unreadable text ends the value in which it stands.
    """
    for header in headers:
        position = 0
        while link := _LINK.match(header, position):
            position, is_next = link.end(), False
            while parameter := _PARAMETER.match(header, position):
                position = parameter.end()
                value = parameter[2] if parameter[2] is not None else parameter[3] or ""
                is_next = is_next or (parameter[1].lower() == "rel" and "next" in value.lower().split())
            if is_next:
                return link[1]
    return None
