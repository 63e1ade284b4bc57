"""Listing tags and repositories (spec, "Content Discovery"; distribution's ``_catalog``)."""

import asyncio
import heapq
import itertools
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from registry_proxy.ports.names import RoutedRepository, Router
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.protocol.endpoints import PAGE_SIZE_MAX
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import RESERVED_TAG_PREFIX, Repository

_N = TypeVar("_N", bound=str)
_STEPS_WITHOUT_PAUSE = 500
_NO_LIST = '299 - "not all upstream registries have a list of their repositories; those of the others are listed"'


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a sorted list; ``more``: whether something follows its last item.

    ``warning`` is the value of a Warning header (spec, "Warnings") where the list misses something.
    """

    items: Sequence[str]
    more: bool
    warning: str | None = None


class Discover:
    """The lists. ``last`` need not exist: what sorts after it follows.

    Args:
        readers: by upstream.
        router: says under which name each repository is known here.
    """

    def __init__(self, *, readers: Mapping[str, RegistryReader], router: Router) -> None:
        self._readers = readers
        self._router = router
        self._names: dict[str, tuple[Sequence[Repository], Sequence[Repository]]] = {}

    async def list_tags(
        self,
        routed: RoutedRepository,
        page_size: int | None,
        last: str | None,
        may_pull: Callable[[str], bool] | None = None,
    ) -> Page:
        """Return a page of the tags of a repository that the caller may pull, sorted.

        Hidden tags are removed before paging, as in ``list_repositories``.

        Args:
            routed: the repository.
            page_size: None for as many as one page may hold.
            last: the tag after which the page begins.
            may_pull: decides; None where the caller may pull all tags.

        Raises:
            RegistryError: NAME_UNKNOWN.
            UpstreamUnavailableError: no replica answered.
        """
        tags = await self._readers[routed.upstream].list_tags(routed.repository)
        hides_reserved = self._router.reserves_names(routed.upstream)

        def is_shown(tag: str) -> bool:
            is_hidden = hides_reserved and tag.startswith(RESERVED_TAG_PREFIX)
            return not is_hidden and (may_pull is None or may_pull(tag))

        return await _page([tags], is_shown, page_size, last)

    async def list_repositories(
        self,
        patterns: Sequence[str],
        may_pull: Callable[[Repository], bool],
        page_size: int | None,
        last: str | None,
    ) -> Page:
        """Return a page of the repositories that the caller may pull, sorted, of all upstreams.

        Hidden names are removed before paging, so that no page ends in one and a page is as full as it can be.

        Args:
            patterns: what the caller may pull lies within; an upstream to which none of them leads is not asked.
            may_pull: decides.
            page_size: None for as many as one page may hold.
            last: the name after which the page begins.

        An upstream that has no list, as Docker Hub, is left out, which the page's warning tells; one that has one and
        does not give it is an error.

        Raises:
            RegistryError: UNSUPPORTED where no upstream has a list; what an upstream answered that should have one.
            UpstreamUnavailableError: an upstream cannot be asked; a list without its repositories would be wrong.
        """
        lists: list[Sequence[Repository]] = []
        without_list = None
        for upstream in self._router.upstreams:
            if not any(self._router.may_lead(pattern, upstream) for pattern in patterns):
                continue
            try:
                lists.append(await self._local_names(upstream))
            except RegistryError as error:
                if error.code is not ErrorCode.UNSUPPORTED:
                    raise
                without_list = error
        if without_list is not None and not lists:
            raise without_list
        page = await _page(lists, may_pull, page_size, last)
        return page if without_list is None else replace(page, warning=_NO_LIST)

    async def _local_names(self, upstream: str) -> Sequence[Repository]:
        """Return the repositories of an upstream by their names here, sorted; a reader gives one list several times."""
        repositories = await self._readers[upstream].list_repositories()
        known = self._names.get(upstream)
        if known is None or known[0] is not repositories:
            names = set()
            for number, repository in enumerate(repositories, 1):
                name = self._router.local_name(RoutedRepository(upstream, repository))
                if name is not None:
                    names.add(name)
                await _let_others_run(number)
            known = self._names[upstream] = repositories, sorted(names)
        return known[1]


async def _page(
    lists: Sequence[Sequence[_N]], is_shown: Callable[[_N], bool], page_size: int | None, last: str | None
) -> Page:
    """Return a page of what some sorted lists hold together; names beyond it are not looked at."""
    size = PAGE_SIZE_MAX if page_size is None else min(page_size, PAGE_SIZE_MAX)
    begins = [0 if last is None else bisect_right(names, last) for names in lists]
    following = [map(names.__getitem__, range(begin, len(names))) for names, begin in zip(lists, begins, strict=True)]
    items: list[_N] = []
    for number, (name, _) in enumerate(itertools.groupby(heapq.merge(*following)), 1):
        if len(items) > size:
            break
        if is_shown(name):
            items.append(name)
        await _let_others_run(number)
    # n=0 is an empty list and no next page (spec, "Listing Tags").
    return Page(items[:size], more=0 < size < len(items))


async def _let_others_run(number: int) -> None:
    """Let the loop go on after each so many steps of work without a pause."""
    if number % _STEPS_WITHOUT_PAUSE == 0:
        await asyncio.sleep(0)
