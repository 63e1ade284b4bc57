"""Scopes and access (token-spec, scope.md and jwt.md)."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from registry_proxy.protocol.reference import is_repository


class Action(StrEnum):
    """An action on a repository: the names used in scopes, tokens and grants."""

    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    CREATE = "create"
    """Push that makes tags and never moves them; only in grants, a token says push."""

    MANAGE = "manage"
    """To give and take rights there; only in grants, no token carries it."""

    __hash__ = str.__hash__  # that of Enum is written in Python, and every request looks up a decision


@dataclass(frozen=True, slots=True)
class Access:
    """One resource and the actions asked for or allowed on it; an entry of a token's ``access`` claim.

    ``type`` is ``repository`` or ``registry``; ``name`` the repository as the client writes it, or ``catalog``.
    """

    type: str
    name: str
    actions: frozenset[str]


CATALOG = Access("registry", "catalog", frozenset({"*"}))


def repository_access(repository: str, *actions: Action) -> Access:
    """Return the access of ``actions`` on a repository."""
    return Access("repository", repository, frozenset(actions))


def parse_scopes(texts: Iterable[str]) -> list[Access]:
    """Return what the ``scope`` parameters ask for; parts that are not a scope are left out, duplicates merged.

    Each text may hold several scopes separated by spaces. A name may hold colons (``host:5000/name``) and a
    type a class in parentheses (``repository(plugin)``): the first colon ends the type, the last starts the actions.
    Order is that of first mention.
    """
    merged: dict[tuple[str, str], set[str]] = {}
    for text in texts:
        for scope in text.split():
            kind, separator, rest = scope.partition(":")
            name, separator2, actions = rest.rpartition(":")
            kind = kind.partition("(")[0]
            if not (separator and separator2 and kind and name):
                continue
            merged.setdefault((kind, name), set()).update(a for a in actions.split(",") if a)
    return [Access(kind, name, frozenset(actions)) for (kind, name), actions in merged.items()]


_ORDER = {"pull": 0, "push": 1, "delete": 2}


def format_scope(access: Access) -> str:
    """Return the text form, ``type:name:action,action``, actions in the customary order."""
    actions = sorted(access.actions, key=lambda action: (_ORDER.get(action, 9), action))
    return f"{access.type}:{access.name}:{','.join(actions)}"


def is_repository_access(access: Access) -> bool:
    """Tell whether it names a repository that can exist."""
    return access.type == "repository" and is_repository(access.name)
