"""An authorized request, as the handlers of the registry take it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from registry_proxy.edge.authenticate import Authorized
from registry_proxy.edge.exchange import Exchange
from registry_proxy.edge.origin import Origins
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.ports.uploads import Uploader
from registry_proxy.protocol.byterange import ByteRange, parse_chunk_range
from registry_proxy.protocol.endpoints import ManifestRequest, RegistryRequest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest
from registry_proxy.tasks import request_id

_USER_AGENT_MAX_CHARACTERS = 512
R_co = TypeVar("R_co", bound=RegistryRequest, covariant=True)


@dataclass(slots=True)
class Call(Generic[R_co]):
    """A request that may be done.

    ``made`` is the digest that it turned out to be about, ``warnings`` are for its client; the audit log has both.
    """

    exchange: Exchange
    request: R_co
    authorized: Authorized
    made: Digest | None = None
    warnings: Sequence[str] = ()

    @property
    def subject(self) -> str:
        """The caller."""
        return self.authorized.subject

    @property
    def uploader(self) -> Uploader:
        """The caller, as the owner of an upload."""
        return Uploader(self.subject, self.authorized.token.generation)

    @property
    def routed(self) -> RoutedRepository:
        """The repository, as its upstream names it."""
        if self.authorized.routed is None:
            # A defect in the table of endpoints must not become a wider right here.
            raise RegistryError(ErrorCode.NAME_UNKNOWN, "the request names nothing here")
        return self.authorized.routed

    @property
    def base(self) -> str:
        """The path of the repository."""
        return f"/v2/{self.request.repository}"

    def source_query(self) -> dict[str, str]:
        """Return the parameters that every URL of the same repository needs."""
        return {} if self.request.source_host is None else {"ns": self.request.source_host}

    def has_already(self, digest: Digest) -> bool:
        """Tell whether If-None-Match names the digest (RFC 9110, 13.1.2)."""
        header = self.exchange.headers.get("If-None-Match")
        if header is None:
            return False
        return any(tag.strip().removeprefix("W/") in {"*", f'"{digest}"'} for tag in header.split(","))

    def range_header(self, digest: Digest) -> str | None:
        """Return Range unless If-Range names something else than the digest (RFC 9110, 13.1.5)."""
        headers = self.exchange.headers
        condition = headers.get("If-Range")
        if condition is not None and condition.strip() != f'"{digest}"':
            return None
        return headers.get("Range")

    def chunk(self) -> ByteRange | None:
        """Return the Content-Range of an upload's chunk."""
        header = self.exchange.headers.get("Content-Range")
        return None if header is None else parse_chunk_range(header)


def actor_of(call: Call[ManifestRequest], origins: Origins) -> Actor:
    """Return the client behind a request, for its event.

    Args:
        call: the request.
        origins: tells by which name and port the client addressed the registry.
    """
    exchange = call.exchange
    scheme, _, host = origins.url(exchange).partition("://")
    return Actor(
        call.subject,
        exchange.address,
        request_id.get(),
        exchange.headers.get("User-Agent", "")[:_USER_AGENT_MAX_CHARACTERS],
        host,
        scheme,
    )
