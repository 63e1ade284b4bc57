"""The access of a token as its claims: the names, or their digests where the names are too long for a header.

The specification writes each name out. 200 names of 255 characters are a token of 84 KB, and most servers and proxies
take a header line of 8 KB. A digest is 16 characters, whatever the name: such a token stays below 6 KB. A digest hides
nothing and grants nothing; each request is still judged by the grants.
"""

import base64
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from registry_proxy.protocol.scope import Access

CarriedAccess = Mapping[str, frozenset[str]]
"""Actions by ``type:name``, or by the digest of that text; a digest has no colon."""

_NAMES_MAX_BYTES = 4096
_DIGEST_BYTES = 12
_DIGEST_LENGTH = _DIGEST_BYTES * 4 // 3


def format_carried(access: Iterable[Access]) -> dict[str, Any]:
    """Return the claims ``access`` and, where its names are too long for it, ``access_digests``."""
    entries = [{"type": each.type, "name": each.name, "actions": sorted(each.actions)} for each in access]
    if len(json.dumps(entries)) <= _NAMES_MAX_BYTES:
        return {"access": entries}
    digests: dict[str, str] = {}
    for entry in entries:
        actions = ",".join(entry["actions"])
        digests[actions] = digests.get(actions, "") + _digest(f"{entry['type']}:{entry['name']}")
    return {"access": [], "access_digests": digests}


def read_carried(claims: Mapping[str, Any]) -> CarriedAccess:
    """Return the access of a verified token. Raises ValueError, TypeError, KeyError or AttributeError."""
    carried = {f"{each['type']}:{each['name']}": _actions(*map(str, each["actions"])) for each in claims["access"]}
    for actions, text in claims.get("access_digests", {}).items():
        digests = [text[start : start + _DIGEST_LENGTH] for start in range(0, len(text), _DIGEST_LENGTH)]
        carried |= dict.fromkeys(digests, _actions(*actions.split(",")))
    return carried


def size_of(access: CarriedAccess) -> int:
    """Return how many bytes of memory the access of a token takes; tokens share the sets of actions."""
    return sys.getsizeof(access) + sum(map(sys.getsizeof, access))


def carries(access: CarriedAccess, kind: str, name: str, action: str) -> bool:
    """Tell whether the access holds an action on a resource, such as ``repository``, ``team/app``, ``pull``."""
    key = f"{kind}:{name}"
    actions = access.get(key) or access.get(_digest(key))
    return actions is not None and action in actions


@functools.lru_cache(maxsize=64)
def _actions(*actions: str) -> frozenset[str]:
    return frozenset(actions)


def _digest(key: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(key.encode()).digest()[:_DIGEST_BYTES]).decode()
