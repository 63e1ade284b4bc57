"""The OpenAPI 3.1 document of the admin API, out of the routes themselves and the models of bodies and answers."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from registry_proxy.admin.bodies import Body
from registry_proxy.admin.documents import OpenApiDocument, ProblemDocument
from registry_proxy.admin.requests import read_query

PAGE = ("limit", "after")
"""The query parameters of every list."""

_TIME = {"type": "string", "format": "date-time"}
_TEXT = {"type": "string"}
_QUERY: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "limit": ({"type": "integer", "minimum": 1, "maximum": 999_999_999}, "How many at most; never more than 1000."),
    "after": (_TEXT, "What the list goes on after: `next` of the part before."),
    "subject": (_TEXT, "Only of this subject, such as user:ann."),
    "repository": (_TEXT, "Only of this repository."),
    "prefix": (_TEXT, "Only what begins so."),
    "action": (_TEXT, "Only of this action."),
    "outcome": (_TEXT, "Only with this outcome."),
    "request_id": (_TEXT, "Only of this request."),
    "since": (_TIME, "From this time on."),
    "until": (_TIME, "Before this time."),
    "last": ({"type": "integer", "minimum": 1, "maximum": 999_999_999}, "Only so many of the newest."),
}
_ETAG = {"description": "To be given back in If-Match.", "required": True, "schema": _TEXT}
_CONDITIONS = {
    "If-Match": "Only if it still has this ETag; else 412.",
    "If-None-Match": "With *: only if it is not there yet; else 412.",
}
_DESCRIPTION = (
    "Lists come in parts; errors are problems (RFC 9457), with the first 100 faults of a body. Bodies are JSON of at "
    "most 1 MiB within 10 s, of grants, personal tokens and questions 64 KiB, a whole policy 8 MiB within 80 s. "
    "Credentials are Basic, or a bearer token that was asked for without a scope."
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route of the admin API, and what it takes and answers.

    Args:
        method: of HTTP.
        path: below the prefix.
        handler: answers.
        summary: what it does, in a few words.
        answers: the document of each status that is no error; None for an empty body.
        body: what is taken; None for nothing.
        query: the names of the parameters that are taken.
        conditional: whether If-Match and If-None-Match are honoured.
        tagged: whether what is answered carries its ETag.
    """

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    summary: str
    answers: Mapping[int, type[BaseModel] | None]
    body: type[Body] | None = None
    query: Sequence[str] = ()
    conditional: bool = False
    tagged: bool = False


def make_openapi(endpoints: Sequence[Endpoint], prefix: str) -> dict[str, Any]:
    """Return the document that describes the endpoints; ``prefix`` stands before their paths."""
    modes: list[tuple[type[BaseModel], JsonSchemaMode]] = [(ProblemDocument, "serialization")]
    for endpoint in endpoints:
        modes += [(model, "serialization") for model in endpoint.answers.values() if model is not None]
        if endpoint.body is not None:
            modes.append((endpoint.body, "validation"))
    schemas, definitions = models_json_schema(
        list(dict.fromkeys(modes)), ref_template="#/components/schemas/{model}", title="registry-proxy"
    )
    problem = {
        "description": "Why it was not done.",
        "content": {"application/problem+json": {"schema": schemas[ProblemDocument, "serialization"]}},
    }
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(prefix + endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
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


def _operation(endpoint: Endpoint, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    parameters = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for part in endpoint.path.split("/")
        if part.startswith("{")
    ]
    for name in endpoint.query:
        schema, text = _QUERY[name]
        parameters.append({"name": name, "in": "query", "description": text, "schema": schema})
    if endpoint.conditional:
        parameters += [
            {"name": name, "in": "header", "description": text, "schema": _TEXT} for name, text in _CONDITIONS.items()
        ]
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": endpoint.summary,
        "tags": [endpoint.path.split("/")[1]],
        "parameters": parameters,
        "responses": {
            **{str(status): _answer(endpoint, status, schemas) for status in endpoint.answers},
            "4XX": {"$ref": "#/components/responses/problem"},
            "503": {"$ref": "#/components/responses/problem"},
        },
    }
    if endpoint.body is not None:
        is_required = any(field.is_required() for field in endpoint.body.model_fields.values())
        media_type = "application/merge-patch+json" if endpoint.method == "PATCH" else "application/json"
        content = {media_type: {"schema": schemas[endpoint.body, "validation"]}}
        operation["requestBody"] = {"required": is_required, "content": content}
    return operation


def _answer(endpoint: Endpoint, status: int, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": web.Response(status=status).reason}
    if endpoint.tagged:
        answer["headers"] = {"ETag": _ETAG}
    model = endpoint.answers[status]
    if model is not None:
        answer["content"] = {"application/json": {"schema": schemas[model, "serialization"]}}
    return answer


class OpenApiResource:
    """Answers with the document; it describes itself, too."""

    def __init__(self, endpoints: Sequence[Endpoint], prefix: str) -> None:
        self._endpoints = endpoints
        self._prefix = prefix

    def routes(self) -> list[Endpoint]:
        """Return the routes, below /admin/v1."""
        return [
            Endpoint("GET", "/openapi.json", self.get_openapi, "The description of this API", {200: OpenApiDocument})
        ]

    async def get_openapi(self, request: web.Request) -> web.Response:
        read_query(request)
        return web.json_response(self._document)

    @cached_property
    def _document(self) -> dict[str, Any]:
        """Made when it is first asked for: no start of a worker waits for it."""
        return make_openapi([*self._endpoints, *self.routes()], self._prefix)
