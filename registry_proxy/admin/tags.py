"""Tags in the admin API: what each is, how it came to be that, and what an image holds."""

from collections.abc import Callable

from aiohttp import web

from registry_proxy.access.control import AccessControl
from registry_proxy.access.policy import Policy
from registry_proxy.admission.auth import CALLER
from registry_proxy.api.models import Document, Page, Text, Time, format_time
from registry_proxy.api.openapi import Audience, Endpoint
from registry_proxy.api.problems import Fault, ProblemError
from registry_proxy.api.requests import PAGE, parse_page, read_query
from registry_proxy.history.images import ImageFacts
from registry_proxy.history.open import History
from registry_proxy.history.record import RecordedTag
from registry_proxy.ports.history import Move, MoveKind
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import (
    RESERVED_PREFIX,
    RESERVED_TAG_PREFIX,
    Digest,
    Repository,
    Tag,
    parse_repository,
    parse_tag,
    parse_tag_or_digest,
)
from registry_proxy.protocol.scope import Action

_FILTERS = (*PAGE, "repository")
_HISTORY = (*PAGE, "repository", "tag")
_IMAGE = ("repository", "reference")


class TagDocument(Document):
    """A tag that was made through the proxy, with its last move; null where none is on record."""

    tag: str
    digest: str
    size_bytes: int | None
    pushed_by: str | None
    pushed_at: Time | None
    kind: MoveKind | None


class MoveDocument(Document):
    """A move of a tag; ``digest`` null for a delete. Only administrators see address and request."""

    id: str
    digest: str | None
    previous: str | None
    subject: str
    at: Time
    kind: MoveKind
    reason: str
    size_bytes: int | None
    address: str | None
    request_id: str | None


class LayerDocument(Document):
    """A layer, or another blob that the manifest names."""

    digest: Text
    size_bytes: int
    media_type: str


class ChildDocument(Document):
    """An image of an index."""

    digest: Text
    platform: str


class ImageDocument(Document):
    """An image or index; ``source`` and ``revision`` are as its labels or annotations say, else ""."""

    digest: Text
    media_type: str
    size_bytes: int
    platforms: list[str]
    source: str
    revision: str
    labels: dict[str, str]
    environment: list[str]
    entrypoint: list[str]
    command: list[str]
    layers: list[LayerDocument]
    children: list[ChildDocument]


class TagResource:
    """The handlers of tags. Each needs the right to pull; hidden and absent repositories answer alike."""

    def __init__(
        self, history: History, route: Callable[[Repository], RoutedRepository], control: AccessControl
    ) -> None:
        self._history = history.record
        self._images = history.images
        self._route = route
        self._control = control

    @Endpoint("GET /tags", "List the tags of a repository", Page[TagDocument], query=_FILTERS, audience=Audience.USERS)
    async def list_tags(self, request: web.Request) -> web.Response:
        """Return the tags that the caller may pull."""
        query = read_query(request, _FILTERS)
        page, repository = parse_page(query), _repository(query.get("repository", ""))
        policy = await self._check_pull(request, repository, None)
        is_pullable = policy.tags_to_pull(request[CALLER].subject, repository) or (lambda _: True)
        found = {
            str(tag.tag): tag for tag in await self._history.tags(self._routed(repository)) if is_pullable(tag.tag)
        }
        answer = page.cut(found, lambda tag: tag)
        moves = await self._history.last_moves(answer["items"])
        answer["items"] = [_tag_document(tag, moves.get(tag.tag)).as_json() for tag in answer["items"]]
        return web.json_response(answer)

    @Endpoint(
        "GET /tags/history",
        "List the moves of a tag, newest first",
        Page[MoveDocument],
        query=_HISTORY,
        audience=Audience.USERS,
    )
    async def list_moves(self, request: web.Request) -> web.Response:
        query = read_query(request, _HISTORY)
        page, repository = parse_page(query), _repository(query.get("repository", ""))
        tag = _tag(query.get("tag", ""))
        policy = await self._check_pull(request, repository, tag)
        sees_all = policy.is_admin(request[CALLER].subject)
        moves = {_id_of(move): move for move in await self._history.moves(self._routed(repository), tag)}
        return page.answer(moves, lambda move: _move_document(move, sees_all=sees_all))

    @Endpoint("GET /tags/image", "Show an image", query=_IMAGE, audience=Audience.USERS)
    async def show_image(self, request: web.Request) -> ImageDocument:
        """Answer what a tag or digest holds, out of its manifest and configuration."""
        query = read_query(request, _IMAGE)
        repository = _repository(query.get("repository", ""))
        reference = _reference(query.get("reference", ""))
        await self._check_pull(request, repository, reference if not isinstance(reference, Digest) else None)
        return _image_document(await self._images.read(self._routed(repository), reference))

    async def _check_pull(self, request: web.Request, repository: Repository, tag: Tag | None) -> Policy:
        """Raise ProblemError 403 unless the caller may pull: before any look-up, so that nothing shows what exists."""
        policy, caller = await self._control.policy(), request[CALLER]
        is_narrowed = not caller.may_manage or (caller.actions is not None and Action.PULL not in caller.actions)
        decision = policy.decide(caller.subject, repository, Action.PULL, tag)
        if is_narrowed or not decision.allowed:
            fault = Fault("", f"{caller.subject} needs the right to pull {repository}{f':{tag}' if tag else ''}")
            raise ProblemError(403, "this is not yours to see", faults=[fault])
        return policy

    def _routed(self, repository: Repository) -> RoutedRepository:
        if repository.startswith(RESERVED_PREFIX):
            raise ProblemError(404, f"there is no repository {repository}")
        return self._route(repository)


def _repository(text: str) -> Repository:
    try:
        return parse_repository(text)
    except RegistryError as error:
        raise ProblemError(400, f"repository: {error.message}") from None


def _tag(text: str) -> Tag:
    try:
        tag = parse_tag(text)
    except RegistryError as error:
        raise ProblemError(400, f"tag: {error.message}") from None
    if tag.startswith(RESERVED_TAG_PREFIX):
        raise ProblemError(404, f"there is no tag {tag}")
    return tag


def _reference(text: str) -> Tag | Digest:
    try:
        reference = parse_tag_or_digest(text)
    except RegistryError as error:
        raise ProblemError(400, f"reference: {error.message}") from None
    return reference if isinstance(reference, Digest) else _tag(reference)


def _id_of(move: Move) -> str:
    """Return the id of a move among those of its tag; ids sort newest first."""
    return f"{10**17 - move.number:017d}"


def _tag_document(tag: RecordedTag, move: Move | None) -> TagDocument:
    """Return a tag with its last move, unless that is of another state: a replica's choice came between."""
    if move is None or move.digest != str(tag.digest):
        return TagDocument(
            tag=tag.tag, digest=str(tag.digest), size_bytes=None, pushed_by=None, pushed_at=None, kind=None
        )
    return TagDocument(
        tag=tag.tag,
        digest=str(tag.digest),
        size_bytes=move.size_bytes or None,
        pushed_by=move.subject,
        pushed_at=format_time(move.at),
        kind=move.kind,
    )


def _move_document(move: Move, *, sees_all: bool) -> MoveDocument:
    return MoveDocument.of(
        move,
        id=_id_of(move),
        size_bytes=move.size_bytes or None,
        address=move.address if sees_all else None,
        request_id=move.request_id if sees_all else None,
    )


def _image_document(facts: ImageFacts) -> ImageDocument:
    return ImageDocument.of(
        facts,
        platforms=list(facts.platforms),
        labels=dict(facts.labels),
        environment=list(facts.environment),
        entrypoint=list(facts.entrypoint),
        command=list(facts.command),
        layers=list(facts.layers),
        children=list(facts.children),
    )
