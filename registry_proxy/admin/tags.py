"""Tags in the admin API: what each is, how it came to be that, and what an image holds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

from aiohttp import web
from pydantic import Field

from registry_proxy.access.control import AccessControl
from registry_proxy.access.policy import Policy
from registry_proxy.admission.auth import CALLER, NAMESPACES
from registry_proxy.api.models import USERS_BODY_MAX_BYTES, Body, Document, Page, Text, Time, format_time
from registry_proxy.api.openapi import Audience, Endpoint
from registry_proxy.api.problems import Fault, ProblemError, invalid
from registry_proxy.api.requests import PAGE, parse_page, read_query
from registry_proxy.history.images import ImageFacts
from registry_proxy.history.open import History
from registry_proxy.history.promotions import Promotion
from registry_proxy.history.record import RecordedTag
from registry_proxy.history.ways_back import NoWayBackError, WayBack
from registry_proxy.ports.history import Cause, Move, MoveKind
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor
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
from registry_proxy.tasks import request_id

_FILTERS = (*PAGE, "repository")
_HISTORY = (*PAGE, "repository", "tag")
_IMAGE = ("repository", "reference")
_REASON_MAX = 1000
_USER_AGENT_MAX = 512


class TagDocument(Document):
    """A tag at the registries, with its digest and last move on record; null where none is."""

    tag: str
    digest: str | None
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


class WayBackBody(Body):
    """A tag and an earlier state of it; ``digest`` null for the last one.

    ``override_rules`` sets aside rules of images, for administrators alone.
    """

    max_bytes = USERS_BODY_MAX_BYTES
    repository: str
    tag: str
    digest: str | None = None
    reason: Annotated[str, Field(max_length=_REASON_MAX)] = ""
    dry_run: bool = False
    override_rules: bool = False


class RollbackBody(WayBackBody):
    """A tag and an earlier state of it: a digest, or how many distinct digests back; one if neither is given."""

    steps: Annotated[int, Field(ge=1, le=1000)] | None = None


class PromotionBody(Body):
    """An image, by tag or digest, and the tag that it becomes; ``override_rules`` as for a way back."""

    max_bytes = USERS_BODY_MAX_BYTES
    source: str
    target: str
    reason: Annotated[str, Field(max_length=_REASON_MAX)] = ""
    dry_run: bool = False
    override_rules: bool = False


class MovedTagDocument(Document):
    """A tag that was moved, or would be with ``dry_run``; ``previous`` null for one that was deleted."""

    digest: Text
    previous: Text | None


class TagResource:
    """The handlers of tags: reading needs the right to pull, moving that to push.

    Hidden and absent repositories answer alike.
    """

    def __init__(
        self,
        history: History,
        route: Callable[[Repository], RoutedRepository],
        control: AccessControl,
        client_address: Callable[[web.BaseRequest], str],
    ) -> None:
        self._history = history.record
        self._images = history.images
        self._ways = history.ways
        self._promotions = history.promotions
        self._client_address = client_address
        self._route = route
        self._control = control

    @Endpoint("GET /tags", "List the tags of a repository", Page[TagDocument], query=_FILTERS, audience=Audience.USERS)
    async def list_tags(self, request: web.Request) -> web.Response:
        """Return the tags at the registries that the caller may pull."""
        query = read_query(request, _FILTERS)
        page, repository = parse_page(query), _repository(query.get("repository", ""))
        policy = await self._check_pull(request, repository, None)
        is_pullable = policy.tags_to_pull(request[CALLER].subject, repository) or (lambda _: True)
        routed = self._routed(repository)
        listed = await self._history.listed(routed, self._ways.readers[routed.upstream])
        found = {str(tag.tag): tag for tag in listed if is_pullable(tag.tag)}
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
        await self._check_pull(request, repository, tag)
        sees_all = NAMESPACES not in request
        limit = None if page.after else page.limit + 1  # the first page is asked for most, and shows that there is more
        found = await self._history.moves(self._routed(repository), tag, limit=limit)
        moves = {_id_of(move): move for move in found}
        return page.answer(moves, lambda move: _move_document(move, sees_all=sees_all))

    @Endpoint("GET /tags/image", "Show an image", query=_IMAGE, audience=Audience.USERS)
    async def show_image(self, request: web.Request) -> ImageDocument:
        """Answer what a tag or digest holds, out of its manifest and configuration."""
        query = read_query(request, _IMAGE)
        repository = _repository(query.get("repository", ""))
        reference = _reference(query.get("reference", ""))
        await self._check_pull(request, repository, reference if not isinstance(reference, Digest) else None)
        try:
            return _image_document(await self._images.read(self._routed(repository), reference))
        except RegistryError as error:
            if error.status != 404:
                raise
            raise ProblemError(404, f"there is no image {repository}{_separator(reference)}{reference}") from None

    @Endpoint("POST /tags/rollback", "Make a tag what it was before", statuses=(200,), audience=Audience.USERS)
    async def roll_back(self, request: web.Request, body: RollbackBody) -> MovedTagDocument:
        if body.digest is not None and body.steps is not None:
            raise invalid([Fault("#/steps", "expected either digest or steps")])
        way = await self._way(request, body, body.steps or 1)
        with _explained():
            return MovedTagDocument.of(await self._ways.roll_back(way, self._cause(request, body, MoveKind.ROLLBACK)))

    @Endpoint("POST /tags/restore", "Make a deleted tag what it was", statuses=(200,), audience=Audience.USERS)
    async def restore(self, request: web.Request, body: WayBackBody) -> MovedTagDocument:
        way = await self._way(request, body, 1)
        with _explained():
            return MovedTagDocument.of(await self._ways.restore(way, self._cause(request, body, MoveKind.RESTORE)))

    @Endpoint(
        "POST /tags/promote", "Make a tag an image of another repository", statuses=(200,), audience=Audience.USERS
    )
    async def promote(self, request: web.Request, body: PromotionBody) -> MovedTagDocument:
        """Copy an image within the proxy, with its children and all that refers to it."""
        source, image = _image("source", body.source)
        target, tag = _image("target", body.target)
        if isinstance(tag, Digest):
            raise invalid([Fault("#/target", "expected a tag, such as team/app:1.2")])
        await self._check_pull(request, source, None if isinstance(image, Digest) else image)
        may_move = await self._check_push(request, body, target, tag)
        routed = self._routed(source), self._routed(target)
        policy, subject = await self._control.policy(), request[CALLER].subject
        promotion = Promotion(
            routed[0],
            image,
            routed[1],
            tag,
            is_dry=body.dry_run,
            may_move=may_move,
            may_push=lambda each: policy.decide_request(subject, target, Action.PUSH, each)[0].allowed,
        )
        with _explained():
            cause = self._cause(request, body, MoveKind.PROMOTION)
            return MovedTagDocument.of(await self._promotions.promote(promotion, cause))

    async def _way(self, request: web.Request, body: WayBackBody, steps: int) -> WayBack:
        """Return what a body asks for, once the caller may push the tag. Raises ProblemError."""
        repository, tag = _repository(body.repository), _tag(body.tag)
        digest = None if body.digest is None else _reference(body.digest)
        if digest is not None and not isinstance(digest, Digest):
            raise invalid([Fault("#/digest", "expected a digest, such as sha256: and 64 hexadecimal digits")])
        may_move = await self._check_push(request, body, repository, tag)
        return WayBack(self._routed(repository), tag, digest, steps, is_dry=body.dry_run, may_move=may_move)

    async def _check_push(
        self, request: web.Request, body: WayBackBody | PromotionBody, repository: Repository, tag: Tag
    ) -> bool:
        """Return whether the caller may move the tag if it exists. Raises ProblemError 403 without a right to it."""
        policy, caller = await self._control.policy(), request[CALLER]
        needed = {Action.PUSH, Action.CREATE}
        is_narrowed = not caller.may_manage or (caller.actions is not None and not needed & caller.actions)
        decision, may_move = policy.decide_request(caller.subject, repository, Action.PUSH, tag)
        if is_narrowed or not decision.allowed:
            fault = Fault("", f"{caller.subject} needs the right to push {repository}:{tag}")
            raise ProblemError(403, "this is not yours to move", faults=[fault])
        if body.override_rules and NAMESPACES in request:
            raise ProblemError(403, "only an administrator overrides rules of images")
        return may_move and (caller.actions is None or Action.PUSH in caller.actions)

    def _cause(self, request: web.Request, body: WayBackBody | PromotionBody, kind: MoveKind) -> Cause:
        agent = request.headers.get("User-Agent", "")[:_USER_AGENT_MAX]
        actor = Actor(request[CALLER].subject, self._client_address(request), request_id.get(), agent)
        return Cause(actor, kind, body.reason, overrides_rules=body.override_rules)

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


@contextmanager
def _explained() -> Iterator[None]:
    """Answer why a tag cannot be moved, with the contents that are missing."""
    try:
        yield
    except NoWayBackError as error:
        faults = [Fault("", f"missing: {each}") for each in error.missing]
        raise ProblemError(409, f"{error}; nothing was changed", faults=faults) from None


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


def _image(field: str, text: str) -> tuple[Repository, Tag | Digest]:
    """Return repository and tag or digest of an image, such as team/app:1.2 or team/app@sha256:…."""
    name, separator, reference = text.partition("@" if "@" in text else ":")
    if not separator or ("@" in text and not isinstance(_reference(reference), Digest)):
        raise invalid([Fault(f"#/{field}", "expected an image, such as team/app:1.2")])
    return _repository(name), _reference(reference)


def _separator(reference: Tag | Digest) -> str:
    return "@" if isinstance(reference, Digest) else ":"


def _id_of(move: Move) -> str:
    """Return the id of a move among those of its tag; ids sort newest first."""
    return f"{10**17 - move.number:017d}"


def _tag_document(tag: RecordedTag, move: Move | None) -> TagDocument:
    """Return a tag with its last move, unless that is of another state: a replica's choice came between."""
    digest = None if tag.digest is None else str(tag.digest)
    if move is None or move.digest != digest:
        return TagDocument(tag=tag.tag, digest=digest, size_bytes=None, pushed_by=None, pushed_at=None, kind=None)
    return TagDocument(
        tag=tag.tag,
        digest=digest,
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
