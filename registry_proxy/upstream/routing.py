"""Which upstream a repository lies in: the longest prefix of whole components wins."""

from collections.abc import Sequence
from dataclasses import dataclass

from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.patterns import literal_prefix, may_match_below
from registry_proxy.protocol.reference import RESERVED_PREFIX, Repository, is_repository


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the configuration.

    Args:
        prefix: whole components with a slash at the end, such as ``hub/``; empty for everything.
        upstream: where they lie.
        strip_prefix: whether the upstream's names have no prefix.
        namespaces: values of ``ns`` that mean this route (spec, "Registry Proxying"), in lower case.
        is_docker_hub: whether a name of one component means an official image there: ``library/NAME``.
        is_writable: whether clients may push there: names of our own are reserved then.
    """

    prefix: str
    upstream: str
    strip_prefix: bool = False
    namespaces: tuple[str, ...] = ()
    is_docker_hub: bool = False
    is_writable: bool = False

    def name_there(self, canonical: Repository) -> Repository:
        """Return what the upstream calls a repository."""
        name = canonical.removeprefix(self.prefix) if self.strip_prefix else canonical
        return Repository(f"library/{name}" if self.is_docker_hub and "/" not in name else name)


class PrefixRouter:
    """The routes of the configuration as a ``ports.names.Router``."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = sorted(routes, key=lambda route: len(route.prefix), reverse=True)
        self._by_namespace = {namespace: route for route in routes for namespace in route.namespaces}
        self._reserving = frozenset(route.upstream for route in routes if route.is_writable)

    @property
    def upstreams(self) -> Sequence[str]:
        """The upstreams that some route leads to, sorted."""
        return sorted({route.upstream for route in self._routes})

    def canonical(self, repository: Repository, source_host: str | None) -> Repository:
        if source_host is None:
            return repository
        route = self._by_namespace.get(source_host.lower())
        name = None if route is None else route.prefix + repository
        if name is None or not is_repository(name):
            raise RegistryError(
                ErrorCode.NAME_UNKNOWN, "no route serves this namespace", detail={"ns": source_host[:200]}
            )
        return name

    def route(self, canonical: Repository) -> RoutedRepository:
        for route in self._routes:
            if canonical.startswith(route.prefix):
                name = route.name_there(canonical)
                if route.is_writable and name.startswith(RESERVED_PREFIX):
                    raise RegistryError(ErrorCode.NAME_UNKNOWN, "the name is reserved", detail={"name": str(canonical)})
                return RoutedRepository(route.upstream, name)
        raise RegistryError(
            ErrorCode.NAME_UNKNOWN, "no route leads to this repository", detail={"name": str(canonical)}
        )

    def reserves_names(self, upstream: str) -> bool:
        return upstream in self._reserving

    def local_name(self, routed: RoutedRepository) -> Repository | None:
        for route in self._routes:
            if route.upstream == routed.upstream:
                name = route.prefix + routed.repository if route.strip_prefix else routed.repository
                # Another, longer route may take the name elsewhere.
                if is_repository(name) and self._leads_to(name, routed):
                    return name
        return None

    def may_lead(self, pattern: str, upstream: str) -> bool:
        literal = literal_prefix(pattern)
        begin = literal if literal == pattern else f"{literal}/".lstrip("/")
        for route in self._routes:
            if route.upstream == upstream and may_match_below(pattern, route.prefix):
                return True
            if begin.startswith(route.prefix):  # takes all that no longer one has taken
                return False
        return False

    def _leads_to(self, name: Repository, routed: RoutedRepository) -> bool:
        try:
            return self.route(name) == routed
        except RegistryError:
            return False
