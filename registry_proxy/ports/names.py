"""Repositories and kinds of content, as the rooms pass them to each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from registry_proxy.protocol.reference import Repository


@dataclass(frozen=True, slots=True)
class RoutedRepository:
    """A repository as its upstream names it; the key of holding, tags and journal."""

    upstream: str
    repository: Repository

    def __str__(self) -> str:
        return f"{self.upstream}/{self.repository}"


def parse_routed(text: str) -> RoutedRepository:
    """Return the repository whose ``str`` is given."""
    upstream, _, repository = text.partition("/")
    return RoutedRepository(upstream, Repository(repository))


class ContentKind(StrEnum):
    """The kind that a digest is asked for as; label of metrics and part of the holding key."""

    BLOB = "blob"
    MANIFEST = "manifest"


class CacheResult(StrEnum):
    """The value of X-Cache in lower case: from disk, fetched for this request, or following another's fetch."""

    HIT = "hit"
    MISS = "miss"
    LATCH = "latch"


class StaleReason(StrEnum):
    """Why a tag could not be asked for, and is answered as it was: a label, and a word of the configuration."""

    UNAVAILABLE = "unavailable"  # no answer, 5xx, 429
    REFUSED = "refused"  # 401, 403, or no answer of a registry
    ABSENT = "absent"  # 404


class ReturnReason(StrEnum):
    """The ways in which a replica is not any more what it was: a label."""

    OLDER = "older"
    EMPTY = "empty"
    OTHER = "other"
    EXCHANGED = "exchanged"


class Router(Protocol):
    """Which upstream a repository lies in, by the longest prefix of whole components."""

    def canonical(self, repository: Repository, source_host: str | None) -> Repository:
        """Return the name under which rights are judged: that of the path, or of the route that serves ``ns``.

        Raises:
            RegistryError: NAME_UNKNOWN for an ``ns`` that no route serves.
        """

    def route(self, canonical: Repository) -> RoutedRepository:
        """Return where it lies. Raises RegistryError NAME_UNKNOWN when no route matches."""

    def local_name(self, routed: RoutedRepository) -> Repository | None:
        """Return the canonical name that ``route`` maps to ``routed``; None when none does."""

    def may_lead(self, pattern: str, upstream: str) -> bool:
        """Tell whether some repository that matches a pattern of grants may lie in an upstream."""

    def reserves_names(self, upstream: str) -> bool:
        """Tell whether names of our own are kept from clients there: where we write (``protocol.reference``)."""

    @property
    def upstreams(self) -> Sequence[str]: ...
