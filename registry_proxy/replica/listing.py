"""Lists of a replica, over all their pages (spec, "Listing Tags"; distribution's _catalog)."""

import asyncio
import heapq
import itertools
import json
import re
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.link import parse_next
from registry_proxy.protocol.reference import REPOSITORY_MAX_LENGTH
from registry_proxy.protocol.referrers import Referrer, parse_referrers
from registry_proxy.replica.failure import BadUpstreamError, has_errors
from registry_proxy.replica.long_lists import LongLists
from registry_proxy.replica.transport import Request, Transport

_N = TypeVar("_N", bound=str)
_NAMES_MAX = 1_000_000
_PAGES_MAX = 100_000
_IDLE_PAGES_MAX = 100
"""Number of pages in a row that may bring nothing new: registries page before they leave out what we may not see."""

_LIST_SECONDS = 600.0
"""Time for a whole list, which a repair may need; clients wait for less (``failover.LIST_SECONDS``)."""

_REFERRERS_MAX_BYTES = 16 * 1024 * 1024
"""An index is parsed at one go, during which nothing else happens."""

_ON_THE_LOOP_MAX_BYTES = 256 * 1024
_ON_THE_LOOP_MAX_NAMES = 5_000
_RUN = 20_000
"""Number of names sorted at a time: the interpreter does nothing else meanwhile, in whatever thread."""

_STRING = re.compile(rb'\s{0,999}+("(?:[^"\\]|\\.){0,9999}+")\s{0,999}+([,\]])')
"""A name in a list, and what follows it. The interpreter does nothing else while it matches, so that it ends early."""


async def list_names(
    transport: Transport, lists: LongLists, request: Request, key: str, detail: dict[str, str]
) -> set[str]:
    """Return all names of a list.

    Args:
        transport: to the replica.
        lists: those of the same kind that are being read there.
        request: of the first page; the others are where its Link headers say, on the replica itself. Where the replica
            refuses the size of page in its query, it is sent without.
        key: of the names in the JSON, ``tags`` or ``repositories``.
        detail: of the error when there is no such list.

    Raises:
        RegistryError: NAME_UNKNOWN; UNSUPPORTED when it gives no such list; a 502 when its answer cannot be
            understood, or has no end: in pages, names or time.
        ReplicaFailedError, UpstreamLimitError: it did not answer, for one page at least.
    """
    names: set[str] = set()
    idle_pages = 0
    try:
        async with asyncio.timeout(_LIST_SECONDS), aclosing(_pages(transport, lists, request)) as pages:
            async for status, body in pages:
                if status != 200:
                    raise _no_list(transport.name, status, body, detail)
                before = len(names)
                await _add_page(transport.name, body, key, names)
                idle_pages = idle_pages + 1 if len(names) == before else 0
                if len(names) > _NAMES_MAX or idle_pages > _IDLE_PAGES_MAX:
                    raise _endless(transport.name)
    except TimeoutError as error:
        raise _endless(transport.name) from error
    except RegistryError as error:
        if not names or isinstance(error, BadUpstreamError):
            raise
        raise BadUpstreamError(
            transport.name, f"it gives a part of a list, and for the rest: {error.message}"
        ) from error
    return names


async def list_referrers(transport: Transport, lists: LongLists, request: Request) -> list[Referrer] | None:
    """Return the entries of an index of referrers, over all its pages; None where the registry has no such API.

    Args:
        transport: to the registry.
        lists: those of referrers that are being read there.
        request: of the first page.

    Raises:
        RegistryError: a 502 when what it says cannot be understood.
        ReplicaFailedError: it did not answer.
    """
    found: list[Referrer] = []
    size_bytes = 0
    async with aclosing(_pages(transport, lists, request)) as pages:
        async for status, body in pages:
            if status in {400, 404, 405}:
                return None
            if status != 200:
                raise BadUpstreamError(transport.name, f"it answers {status} to the request for referrers")
            try:
                found += parse_referrers(body)
            except ValueError as error:
                raise BadUpstreamError(transport.name, "its referrers are no index") from error
            size_bytes += len(body)
            if size_bytes > _REFERRERS_MAX_BYTES:
                raise _endless(transport.name)
    return found


async def _pages(transport: Transport, lists: LongLists, request: Request) -> AsyncGenerator[tuple[int, bytes], None]:
    """Yield status and body of each page. Raises BadUpstreamError for a list that is too long."""
    without_size = request.target.partition("?")[0]
    seen: set[str] = set()
    async with lists.reading() as reading:
        while request.target not in seen and len(seen) < _PAGES_MAX:
            seen.add(request.target)
            async with transport.request(request) as response:
                body = await reading.read_page(transport.chunks(response))
                status, links = response.status, response.headers.getall("Link", ())
            if status == 400 and len(seen) == 1 and request.target != without_size:
                # Registries that allow smaller pages alone refuse ours; they say by Link which page is the next.
                request = replace(request, target=without_size)
                continue
            if body is None:
                raise _endless(transport.name)
            yield status, body
            following = parse_next(links)
            if following is None:
                return
            request = replace(request, target=transport.local_target(following, request.target))
            await reading.go_on()
    raise _endless(transport.name)


def _endless(replica: str) -> BadUpstreamError:
    return BadUpstreamError(replica, "its list has no end")


def _no_list(replica: str, status: int, body: bytes, detail: dict[str, str]) -> RegistryError:
    if status == 404 and (not body.strip() or has_errors(body)):
        return RegistryError(ErrorCode.NAME_UNKNOWN, "no such repository in the upstream registry", detail=detail)
    if status == 405:
        return RegistryError(ErrorCode.UNSUPPORTED, "the upstream registry gives no such list", detail=detail)
    return BadUpstreamError(replica, f"it answers {status} to the request for a list")


async def _add_page(replica: str, body: bytes, key: str, names: set[str]) -> None:
    """Add the names of a page; those of a long one in a thread, and never many without a break."""
    try:
        if len(body) > _ON_THE_LOOP_MAX_BYTES:
            await asyncio.to_thread(_scan, body, key, names)
        else:
            names.update(filter(_may_be_name, json.loads(body)[key] or ()))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadUpstreamError(replica, f"its list has no {key}") from error


def _scan(body: bytes, key: str, names: set[str]) -> None:
    """Add the strings of a JSON array, up to one more than there may be. Raises ValueError where it is none.

    The parser of the standard library holds the interpreter until it has read the whole.
    """
    begin = re.compile(rb'"%s"\s{0,999}+:\s{0,999}+\[' % key.encode()).search(body)
    if begin is None:
        raise ValueError
    position, separator = begin.end(), b","
    while separator == b"," and len(names) <= _NAMES_MAX:
        match = _STRING.match(body, position)
        if match is None:
            raise ValueError
        if _may_be_name(name := json.loads(match[1])):
            names.add(name)
        position, separator = match.end(), match[2]


def _may_be_name(name: object) -> bool:
    """Tell whether to keep an entry of a list: those of any length would fill the memory, however few they are."""
    return isinstance(name, str) and len(name) <= REPOSITORY_MAX_LENGTH and name.isascii()


async def merged(lists: Sequence[tuple[Collection[_N], Callable[[_N], bool]]]) -> list[_N]:
    """Return what some lists of names hold together, sorted; of each list the names for which the function is true.

    However many they are, the loop goes on meanwhile.
    """

    def merge() -> list[_N]:
        runs = [sorted(run) for names, is_kept in lists for run in _runs(filter(is_kept, names))]
        return [name for name, _ in itertools.groupby(heapq.merge(*runs))]

    if sum(len(names) for names, _ in lists) > _ON_THE_LOOP_MAX_NAMES:
        return await asyncio.to_thread(merge)
    return merge()


def _runs(names: Iterator[_N]) -> Iterator[list[_N]]:
    while run := list(itertools.islice(names, _RUN)):
        yield run
