"""Listing tags and repositories (spec, "Content Discovery"; distribution's ``_catalog``)."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from registry_proxy.ports.names import RoutedRepository, Router
from registry_proxy.ports.replicas import RegistryReader
from registry_proxy.protocol.endpoints import PAGE_SIZE_MAX
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import RESERVED_TAG_PREFIX, Repository

_NO_LIST = '299 - "not all upstream registries have a list of their repositories; those of the others are listed"'


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a sorted list; ``more`` tells that something follows its last item.

    ``warning`` is the value of a Warning header (spec, "Warnings") where the list lacks something.
    """

    items: Sequence[str]
    more: bool
    warning: str | None = None


def _page(items: Sequence[str], page_size: int | None, last: str | None) -> Page:
    size = PAGE_SIZE_MAX if page_size is None else min(page_size, PAGE_SIZE_MAX)
    start = 0 if last is None else bisect_right(items, last)
    # n=0 is an empty list and no next page (spec, "Listing Tags").
    return Page(items[start : start + size], more=0 < size < len(items) - start)


class Discover:
    """The lists. ``last`` need not exist: what sorts after it follows.

    Args:
        readers: by upstream.
        router: says under which name each repository is known here.
    """

    def __init__(self, *, readers: Mapping[str, RegistryReader], router: Router) -> None:
        self._readers = readers
        self._router = router

    async def list_tags(
        self,
        routed: RoutedRepository,
        page_size: int | None,
        last: str | None,
        may_pull: Callable[[str], bool] | None = None,
    ) -> Page:
        """Return a page of the tags of a repository that the caller may pull, sorted.

        Hidden tags are taken out before paging, as in ``list_repositories``.

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
        if self._router.reserves_names(routed.upstream):
            tags = [tag for tag in tags if not tag.startswith(RESERVED_TAG_PREFIX)]
        if may_pull is not None:
            tags = list(filter(may_pull, tags))
        return _page(tags, page_size, last)

    async def list_repositories(
        self,
        patterns: Sequence[str],
        may_pull: Callable[[Repository], bool],
        page_size: int | None,
        last: str | None,
    ) -> Page:
        """Return a page of the repositories that the caller may pull, sorted, of all upstreams.

        Hidden names are taken out before paging, so that no page ends in one and a page is as full as it can be.

        Args:
            patterns: what the caller may pull lies within; an upstream to which none of them leads is not asked.
            may_pull: decides.
            page_size: None for as many as one page may hold.
            last: the name after which the page begins.

        An upstream that has no list, as Docker Hub, is left out, which the page's warning tells; one that has one and
        does not give it is an error.

        Raises:
            RegistryError: UNSUPPORTED where no upstream has a list; what an upstream answered that should have one.
            UpstreamUnavailableError: an upstream cannot be asked; a list that silently lacks it would be a lie.
        """
        names: set[Repository] = set()
        listed, without_list = 0, None
        for upstream in self._router.upstreams:
            if not any(self._router.may_lead(pattern, upstream) for pattern in patterns):
                continue
            try:
                repositories = await self._readers[upstream].list_repositories()
            except RegistryError as error:
                if error.code is not ErrorCode.UNSUPPORTED:
                    raise
                without_list = error
                continue
            listed += 1
            for repository in repositories:
                name = self._router.local_name(RoutedRepository(upstream, repository))
                if name is not None and may_pull(name):
                    names.add(name)
        if without_list is not None and not listed:
            raise without_list
        page = _page(sorted(names), page_size, last)
        return page if without_list is None else replace(page, warning=_NO_LIST)
