"""IP addresses of callers: one notation for each, and the owner that bounds and shares are counted for."""

import functools
import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED_PREFIX_BITS = 96

_OWNER_PREFIX_BITS = 64
"""One IPv6 customer has at least a /64: each host chooses the other half freely."""


def parse_address(text: str) -> Address | None:
    """Return the address; IPv4-mapped IPv6 (``::ffff:192.0.2.1``) as IPv4, without a zone; None where it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str) -> bool:
    """Tell whether a host of a URL is this machine, by its address or as ``localhost``."""
    address = parse_address(host)
    return host == "localhost" if address is None else address.is_loopback


def parse_network(text: str) -> Network:
    """Return the network; one of IPv4-mapped addresses as IPv4. Raises ValueError for any other text."""
    network = ipaddress.ip_network(text)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < _MAPPED_PREFIX_BITS:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - _MAPPED_PREFIX_BITS))


_SITE_PREFIX_BITS = 48
"""What one organisation is given at most, as a rule (RFC 6177): it is 65,536 owners if it likes."""


@functools.lru_cache(maxsize=16_384)
def plain_address(text: str) -> str:
    """Return the usual notation of an address, and any other text as it is.

    A listener on ``[::]`` knows IPv4 callers by their mapped addresses; networks and logs mean the plain ones.
    """
    address = parse_address(text)
    return text if address is None else str(address)


@functools.lru_cache(maxsize=16_384)
def address_owner(text: str) -> str:
    """Return the name under which all addresses of one caller are counted.

    The owner is the address itself for IPv4, the /64 network for IPv6 (``2001:db8::/64``), and any other text as it is.
    """
    address = parse_address(text)
    if address is None:
        return text
    if address.version == 4 or address.is_loopback:
        return str(address)
    return str(ipaddress.ip_network((int(address), _OWNER_PREFIX_BITS), strict=False))


@functools.lru_cache(maxsize=16_384)
def site_of(owner: str) -> str:
    """Return the name of the site that an ``address_owner`` is at: the /48 of one with IPv6, else the owner itself."""
    address = parse_address(owner.partition("/")[0])
    if address is None or address.version == 4:
        return owner
    return str(ipaddress.ip_network((int(address), _SITE_PREFIX_BITS), strict=False))
