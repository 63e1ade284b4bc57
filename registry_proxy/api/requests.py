"""Requests of the admin API: their bodies, queries and pages. An answer lists all faults at once."""

import asyncio
import json
import re
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from aiohttp import web
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from registry_proxy.access.subject import is_name
from registry_proxy.api.models import BODY_MAX_BYTES, Body, Document
from registry_proxy.api.problems import FAULTS_MAX, Fault, ProblemError, pointer_to
from registry_proxy.http.limits import scattered

_BODY_SECONDS = 10.0  # for what has 1 MiB at most; what may be larger has as much longer. Scattered
_FAULTS_COUNTED_MAX = 1000
_PAGE_SIZE_DEFAULT = 100
_PAGE_SIZE_MAX = 1000
_PAGE_SIZE = re.compile(r"[0-9]{1,9}")
_EXPECTED = {
    "missing": "expected a value: the field is not there",
    "extra_forbidden": "unknown field",
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "list_type": "expected a list",
    "dict_type": "expected an object",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
}
_REWORDED = (
    (re.compile(r"^Invalid JSON: "), "expected JSON: "),
    (re.compile(r"^List should have at (most|least) ([0-9]+) items? .*"), r"expected at \1 \2 entries"),
    (re.compile(r"^Input should be (?=greater|less)"), "expected a number "),
    (re.compile(r"^Input should be "), "expected "),
    (re.compile(r"^String should have "), "expected text of "),
)
_SECRET = re.compile(r"password|secret(?!_id)|token(?!_id)|hash|credential|private", re.IGNORECASE)

ASKED_FOR: web.RequestKey[dict[str, Any]] = web.RequestKey("asked_for", dict)
"""The body that was read, without its secrets: for the audit log."""

JUDGE_ANEW: web.RequestKey[Callable[[], Awaitable[None]]] = web.RequestKey("judge_anew")
"""Raises ProblemError unless the caller still may; there in every request with a body."""

PAGE = ("limit", "after")
"""The query parameters of every list."""

_Item = TypeVar("_Item")
_B = TypeVar("_B", bound=Body)


async def read_body(request: web.Request, model: type[_B]) -> _B:
    """Return the JSON body; an empty one counts as ``{}``. The caller is judged again once it has come.

    Raises:
        ProblemError: 400 with every fault, 408 for a body that is held back, 415 for an encoded one; what the caller
            may not do any more.
        web.HTTPRequestEntityTooLarge: more than the model's ``max_bytes``.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ProblemError(415, "a body with Content-Encoding is not accepted: send it unencoded")
    seconds = _BODY_SECONDS * max(1, model.max_bytes / BODY_MAX_BYTES)
    try:
        async with asyncio.timeout(scattered(seconds)):
            content = await request.clone(client_max_size=model.max_bytes).read()
    except TimeoutError:
        detail = f"the body did not come within {seconds:g} s; nothing was changed"
        raise ProblemError(408, detail, headers={"Connection": "close"}) from None
    if (judge_anew := request.get(JUDGE_ANEW)) is not None:
        await judge_anew()
    try:
        body = model.model_validate_json(content or b"{}")
    except ValidationError as error:
        faults, more = _faults_of(error, model, content)
        detail = "the body is not what is expected here"
        raise ProblemError(400, detail, faults=faults, more_faults=more) from None
    request[ASKED_FOR] = without_secrets(body.model_dump(exclude_unset=True))
    return body


def _faults_of(error: ValidationError, model: type[Body], content: bytes) -> tuple[list[Fault], int]:
    """Return the first faults of a body, and how many more there are."""
    count = error.error_count()
    if count > _FAULTS_COUNTED_MAX:
        # A megabyte has room for so many that listing them all would have everybody else wait for seconds.
        try:
            model.model_validate_json(json.dumps(_beginning(json.loads(content))))
        except ValidationError as first:
            error = first
        except ValueError:  # a number of thousands of digits
            return [], count
        else:
            return [], count
    found = error.errors(include_url=False, include_context=False, include_input=False)[:FAULTS_MAX]
    return [Fault(pointer_to(fault["loc"]), _words(fault)) for fault in found], count - len(found)


def _words(fault: ErrorDetails) -> str:
    """Return pydantic's complaint as all other faults are written: what was expected."""
    kind, message = fault["type"], fault["msg"].removeprefix("Value error, ")
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    for pattern, words in _REWORDED:
        message = pattern.sub(words, message)
    return message


def _beginning(value: Any) -> Any:
    """Return JSON with the first entries of each of its lists and objects alone."""
    if isinstance(value, dict):
        return {name: _beginning(inner) for name, inner in islice(value.items(), FAULTS_MAX)}
    return [_beginning(inner) for inner in value[:FAULTS_MAX]] if isinstance(value, list) else value


def note_difference(request: web.Request, name: str, before: Sequence[str], after: Sequence[str]) -> None:
    """Have the audit log record how a list of the body differs from the stored one, instead of the whole list."""
    asked, old, new = request.get(ASKED_FOR, {}), set(before), set(after)
    if name in asked:
        request[ASKED_FOR] = {**asked, name: {"added": sorted(new - old), "removed": sorted(old - new)}}


def without_secrets(value: Any) -> Any:
    """Return a value as JSON has it, with "***" in the place of every field whose name speaks of a secret."""
    if isinstance(value, Mapping):
        return {
            str(name): "***" if inner is not None and _SECRET.search(str(name)) else without_secrets(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def read_query(request: web.Request, known: Sequence[str] = ()) -> Mapping[str, str]:
    """Return the query parameters; a misspelt filter must not list everything.

    Raises:
        ProblemError: 400 for one that is not known, or given twice.
    """
    faults = [Fault("", f"unknown query parameter {key[:100]!r}") for key in request.query if key not in known]
    faults += [Fault("", f"{key} is given twice") for key in known if len(request.query.getall(key, ())) > 1]
    if faults:
        raise ProblemError(400, "the query is not what is expected here", faults=faults)
    return request.query


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A part of a list: at most ``limit`` items whose key is greater than ``after``."""

    limit: int
    after: str

    def cut(self, items: Mapping[str, _Item], document: Callable[[_Item], Any]) -> dict[str, Any]:
        """Return the part as the API answers it; ``next`` is the ``after`` of the next part, null at the end.

        Args:
            items: all that there are, by what they are sorted by.
            document: returns the answer for one item; called for those of the part alone.
        """
        keys = sorted(items)
        start = bisect_right(keys, self.after) if self.after else 0
        chosen = keys[start : start + self.limit]
        more = start + self.limit < len(keys)
        return {"items": [document(items[key]) for key in chosen], "next": chosen[-1] if more else None}

    def answer(self, items: Mapping[str, _Item], document: Callable[[_Item], Document]) -> web.Response:
        """Return the answer with the part; see ``cut``."""
        return web.json_response(self.cut(items, lambda item: document(item).as_json()))


def name_of(request: web.Request, kind: str) -> str:
    """Return the name in the path; one that cannot be is not looked up."""
    name = request.match_info["name"]
    if not is_name(name):
        raise ProblemError(404, f"there is no such {kind}")
    return name


def read_page(request: web.Request) -> PageRequest:
    """Return the page that a request without other parameters asks for. Raises ProblemError."""
    return parse_page(read_query(request, PAGE))


def parse_page(query: Mapping[str, str]) -> PageRequest:
    """Return the page that ``limit`` and ``after`` ask for; at most 1000 items, 100 when not said.

    Raises:
        ProblemError: 400 for a limit that is no number from 1.
    """
    limit = query.get("limit", str(_PAGE_SIZE_DEFAULT))
    if _PAGE_SIZE.fullmatch(limit) is None or int(limit) == 0:
        raise ProblemError(400, "limit: expected a whole number from 1")
    return PageRequest(min(int(limit), _PAGE_SIZE_MAX), query.get("after", ""))
