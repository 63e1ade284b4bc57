"""The OpenAPI 3.1 document of the admin API, out of the routes themselves and the models of bodies and answers."""

import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from enum import Enum
from functools import cached_property
from importlib.metadata import version
from typing import Any, get_args, get_type_hints

from aiohttp import web
from pydantic import BaseModel, RootModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from registry_proxy.api.answers import Answer
from registry_proxy.api.models import Body, Document
from registry_proxy.api.problems import ProblemDocument
from registry_proxy.api.requests import read_body, read_query

_TIME = {"type": "string", "format": "date-time"}
_TEXT = {"type": "string"}
_QUERY: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "limit": (
        {"type": "integer", "minimum": 1, "maximum": 999_999_999},
        "Maximum number of entries; never more than 1000.",
    ),
    "after": (_TEXT, "Start of the page: `next` of the page before."),
    "subject": (_TEXT, "Only this subject, such as user:ann."),
    "repository": (_TEXT, "Only this repository."),
    "tag": (_TEXT, "Name of the tag."),
    "reference": (_TEXT, "Tag or digest."),
    "subscription": (_TEXT, "Only this subscription."),
    "state": (_TEXT, "Only in this state."),
    "environment": (_TEXT, "Only this environment."),
    "history": ({"type": "boolean"}, "With true also the receipts before those."),
    "prefix": (_TEXT, "Only names with this prefix."),
    "action": (_TEXT, "Only this action."),
    "outcome": (_TEXT, "Only this outcome."),
    "request_id": (_TEXT, "Only this request."),
    "since": (_TIME, "From this time."),
    "until": (_TIME, "Before this time."),
    "last": ({"type": "integer", "minimum": 1, "maximum": 999_999_999}, "Only this number of the newest."),
}
_MARK = "endpoint"  # attribute of a method that answers one
_ETAG = {"description": "The value for If-Match.", "required": True, "schema": _TEXT}
_CONDITIONS = {
    "If-Match": "Only if the object still has this ETag; else 412.",
    "If-None-Match": "With *: only if the object does not exist yet; else 412.",
}
_DESCRIPTION = (
    "Lists have pages; errors are problems (RFC 9457), with the first 100 faults of a body. Bodies are JSON of at "
    "most 1 MiB within 10 s, of grants, personal tokens and questions 64 KiB, a whole policy 8 MiB within 80 s. "
    "Credentials are Basic, or a bearer token that was requested without a scope."
)


_Method = Callable[..., Awaitable[Answer[Any] | Document | web.StreamResponse | None]]
_Handler = Callable[[Any, web.Request], Awaitable[web.StreamResponse]]


class Audience(Enum):
    """The callers of an endpoint beside administrators; the handler keeps each within their own."""

    ADMINS = "nobody else"
    OWNERS = "owners of namespaces"
    USERS = "every user"
    SELF = "every user, about their own account"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route of the admin API, its requests and answers; a decorator of the method that answers.

    The method takes the request and, where it has a parameter for one, the body. It returns a document, an ``Answer``
    with one, or None for an empty answer; its annotations say which. One that returns a response names the document.

    Args:
        route: such as ``GET /users``, the path below the prefix.
        summary: its effect, in a few words.
        document: of an answer that is no error; None for that of the annotations.
        statuses: of answers that are no error; 200, or 204 without a document, where there are none.
        body: of a request; None for that of the annotations.
        query: the names of the parameters.
        is_revised: whether it is about an object with a revision: the ETag of answers, and what If-Match and
            If-None-Match of a change are compared with.
        audience: its callers.
        is_question: whether it changes nothing although it is a POST.
    """

    route: str
    summary: str
    document: type[BaseModel] | None = None
    statuses: Sequence[int] = ()
    _: KW_ONLY
    body: type[Body] | None = None
    query: Sequence[str] = ()
    is_revised: bool = False
    audience: Audience = Audience.ADMINS
    is_question: bool = False

    def __call__(self, method: _Method) -> _Handler:
        hints = get_type_hints(method)
        returned = hints.pop("return")
        classes = [hint for hint in hints.values() if isinstance(hint, type)]
        body = self.body or next((each for each in classes if issubclass(each, Body)), None)
        document = self.document or next(iter(get_args(returned)), returned)
        is_response = not issubclass(document, BaseModel)
        endpoint = replace(self, body=body, document=None if is_response else document)
        status = next(iter(self.statuses), 200)

        @functools.wraps(method)
        async def handler(resource: Any, request: web.Request) -> web.StreamResponse:
            bodies = () if body is None else (await read_body(request, body),)
            answer = await method(resource, request, *bodies)
            match answer:
                case Document():
                    return Answer(answer).response(status)
                case Answer():
                    return answer.response(status)
                case None:
                    return web.Response(status=204)
                case _:
                    return answer

        vars(handler)[_MARK] = endpoint
        return handler

    @property
    def method(self) -> str:
        return self.route.partition(" ")[0]

    @property
    def path(self) -> str:
        return self.route.partition(" ")[2]


def endpoints_of(resource: object) -> Iterator[tuple[str, Endpoint]]:
    """Return the endpoints of a resource with the names of their methods, in the order of its class."""
    for name, member in vars(type(resource)).items():
        if isinstance(found := getattr(member, _MARK, None), Endpoint):
            yield name, found


def endpoint_of(request: web.Request) -> Endpoint | None:
    """Return the endpoint that a request is for; None for other paths and methods."""
    found = getattr(request.match_info.handler, _MARK, None)
    return found if isinstance(found, Endpoint) else None


def make_openapi(resources: Sequence[object], prefix: str) -> dict[str, Any]:
    """Return the document that describes the endpoints of resources; ``prefix`` stands before their paths."""
    endpoints = [each for resource in resources for each in endpoints_of(resource)]
    modes: list[tuple[type[BaseModel], JsonSchemaMode]] = [(ProblemDocument, "serialization")]
    for _, row in endpoints:
        if row.document is not None:
            modes.append((row.document, "serialization"))
        if row.body is not None:
            modes.append((row.body, "validation"))
    schemas, definitions = models_json_schema(
        list(dict.fromkeys(modes)), ref_template="#/components/schemas/{model}", title="registry-proxy"
    )
    problem = {
        "description": "The reason for which the request failed.",
        "content": {"application/problem+json": {"schema": schemas[ProblemDocument, "serialization"]}},
    }
    paths: dict[str, dict[str, Any]] = {}
    for name, row in endpoints:
        paths.setdefault(prefix + row.path, {})[row.method.lower()] = _operation(name, row, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The admin API of registry-proxy",
            "version": version("registry-proxy"),
            "description": _DESCRIPTION,
        },
        "security": [{"basic": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "responses": {"problem": problem},
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            },
        },
    }


def _operation(name: str, row: Endpoint, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    parameters = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for part in row.path.split("/")
        if part.startswith("{")
    ]
    parameters += [
        {"name": each, "in": "query", "description": _QUERY[each][1], "schema": _QUERY[each][0]} for each in row.query
    ]
    if row.is_revised and row.method in {"PUT", "PATCH", "DELETE"}:
        parameters += [
            {"name": each, "in": "header", "description": text, "schema": _TEXT} for each, text in _CONDITIONS.items()
        ]
    statuses = row.statuses or ((204,) if row.document is None else (200,))
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": row.summary,
        "tags": [row.path.split("/")[1]],
        "parameters": parameters,
        "responses": {
            **{str(status): _answer(row, status, schemas) for status in statuses},
            "4XX": {"$ref": "#/components/responses/problem"},
            "503": {"$ref": "#/components/responses/problem"},
        },
    }
    if row.body is not None:
        is_required = any(field.is_required() for field in row.body.model_fields.values())
        media_type = "application/merge-patch+json" if row.method == "PATCH" else "application/json"
        content = {media_type: {"schema": schemas[row.body, "validation"]}}
        operation["requestBody"] = {"required": is_required, "content": content}
    return operation


def _answer(row: Endpoint, status: int, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": web.Response(status=status).reason}
    if row.is_revised and row.document is not None:
        answer["headers"] = {"ETag": _ETAG}
    if row.document is not None:
        answer["content"] = {"application/json": {"schema": schemas[row.document, "serialization"]}}
    return answer


class OpenApiDocument(RootModel[dict[str, Any]]):
    """An OpenAPI 3.1 document."""


class OpenApiResource:
    """The document that describes all resources, and itself."""

    def __init__(self, resources: Sequence[object], prefix: str) -> None:
        self._resources = resources
        self._prefix = prefix

    @Endpoint("GET /openapi.json", "The description of this API", OpenApiDocument)
    async def get_openapi(self, request: web.Request) -> web.Response:
        read_query(request)
        return web.json_response(self._document)

    @cached_property
    def _document(self) -> dict[str, Any]:
        """Made when it is first asked for: no start of a worker waits for it."""
        return make_openapi([*self._resources, self], self._prefix)
