"""Requests that users, groups and robots have in common: a PUT by name, and a deletion with all that they held."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from aiohttp import web

from registry_proxy.access.subject import is_name
from registry_proxy.admin.grants import GrantDocument
from registry_proxy.api.requests import ASKED_FOR, name_of
from registry_proxy.api.revisions import Revised, expected_revision
from registry_proxy.directory.removed import Removed
from registry_proxy.directory.revise import NotFoundError

_R = TypeVar("_R", bound=Revised)


class _Subjects(Protocol):
    """Users, groups or robots of the directory."""

    async def get(self, name: str) -> Revised: ...
    async def delete(self, name: str, *, expect: int | None) -> Removed: ...


@dataclass(frozen=True, slots=True)
class Put(Generic[_R]):
    """A PUT by name: the value that is stored, None for a new one, and the revision it may replace."""

    name: str
    current: _R | None
    expect: int | None


async def read_put(request: web.Request, get: Callable[[str], Awaitable[_R]]) -> Put[_R]:
    """Return the PUT that a request is. Raises ProblemError."""
    name = request.match_info["name"]
    try:
        current = await get(name) if is_name(name) else None
    except NotFoundError:
        current = None
    return Put(name, current, expected_revision(request, None if current is None else current.revision))


async def delete_subject(request: web.Request, kind: str, subjects: _Subjects) -> None:
    """Delete what the path names; its grants, secrets, groups or members go with it, into the audit log too."""
    name = name_of(request, kind)
    current = await subjects.get(name)
    removed = await subjects.delete(name, expect=expected_revision(request, current.revision))
    parts = {
        "grants_removed": [GrantDocument.of(grant).as_json() for grant in removed.grants],
        "secret_ids_removed": [secret.id for secret in removed.secrets],
        "groups": list(removed.groups),
        "members": list(removed.members),
    }
    request[ASKED_FOR] = {name: part for name, part in parts.items() if part}
