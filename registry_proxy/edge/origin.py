"""The caller's address, and the one we were called by; the word of a proxy in front counts only when it is trusted."""

import functools
import re
from collections.abc import Sequence
from typing import Literal, Protocol

from multidict import CIMultiDictProxy

from registry_proxy.edge.exchange import Exchange
from registry_proxy.protocol.addresses import Network, parse_address, plain_address

_REMEMBERED = 10_000
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Caller(Protocol):
    """The part of a request that identifies the caller; an ``Exchange`` is one, and so is aiohttp's BaseRequest."""

    @property
    def headers(self) -> CIMultiDictProxy[str]: ...
    @property
    def remote(self) -> str | None: ...


class Origins:
    """Reads addresses off requests.

    Args:
        public_url: how clients reach us; None takes it from each request.
        trusted_proxies: networks whose X-Forwarded-* headers are believed.
        scheme: of the listener itself.
    """

    def __init__(
        self, public_url: str | None, trusted_proxies: Sequence[Network], scheme: Literal["http", "https"] = "http"
    ) -> None:
        self._scheme = scheme
        self._public_url = None if public_url is None else public_url.rstrip("/")
        self._trusted = tuple(trusted_proxies)
        self.is_trusted = functools.lru_cache(_REMEMBERED)(self._is_in_networks)
        """Tells whether an address is that of a trusted proxy."""

    def _is_in_networks(self, address: str) -> bool:
        parsed = parse_address(address)
        return parsed is not None and any(parsed in network for network in self._trusted)

    def client_address(self, request: Caller) -> str:
        """Return the client's address: the last one of X-Forwarded-For that is no trusted proxy.

        A caller from IPv4 has its IPv4 address, also where the listener knows it by an IPv4-mapped one.
        """
        address = plain_address(request.remote or "")
        if not self.is_trusted(address):
            return address
        chain = request.headers.getall("X-Forwarded-For", None)
        if chain is None:
            return address
        for forwarded in reversed(",".join(chain).split(",")):
            candidate = parse_address(forwarded.strip())
            if candidate is None:
                return address
            address = str(candidate)
            if not self.is_trusted(address):
                return address
        return address

    def url(self, exchange: Exchange) -> str:
        """Return scheme, host and port by which the client called, or the configured public URL."""
        if self._public_url is not None:
            return self._public_url
        scheme, host = str(self._scheme), exchange.headers.get("Host", "")
        if self.is_trusted(exchange.remote or ""):
            forwarded_scheme = _first(exchange, "X-Forwarded-Proto").lower()
            scheme = forwarded_scheme if forwarded_scheme in {"http", "https"} else scheme
            host = _first(exchange, "X-Forwarded-Host") or host
        if _HOST.fullmatch(host) is None:
            # HTTP/1.0 without Host, or nonsense, which must not come back out of our headers.
            host = _local_host(exchange.client.sockname)
        return f"{scheme}://{host}"

    def request_id(self, request: Caller) -> str | None:
        """Return the request's ID where a trusted proxy gave one."""
        given = request.headers.get("X-Request-ID")
        if given is None or not self.is_trusted(request.remote or "") or _REQUEST_ID.fullmatch(given) is None:
            return None
        return given


def _first(exchange: Exchange, header: str) -> str:
    return exchange.headers.get(header, "").partition(",")[0].strip()


def _local_host(sockname: object) -> str:
    if not isinstance(sockname, tuple):
        return "localhost"
    address, port = sockname[0], sockname[1]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
