"""Zones of a network: how far inside an address lies, for requests that go where a foreign registry sends us."""

import errno
import ipaddress
import socket
from enum import IntEnum

from registry_proxy.protocol.addresses import Address, parse_address

_CARRIES_IPV4 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
"""NAT64 (RFC 6052), and what once was "IPv4-compatible" (RFC 4291, 2.5.5.1)."""

_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254")
)
"""Services that hand out a cloud machine's credentials, besides those at link-local addresses."""


class Zone(IntEnum):
    """Distance inside a network; the limit of one zone includes those before it."""

    GLOBAL = 0
    PRIVATE = 1
    LOOPBACK = 2
    NEVER = 3
    """Link-local addresses, metadata services of clouds, multicast, and what is no address."""


class InsideError(OSError):
    """A connection would go further inside than it may."""

    def __init__(self) -> None:
        super().__init__(errno.EACCES, "the address is inside the network")


def zone_of(host: str) -> Zone:
    """Return the zone of an address, in any notation that the system's functions take for one."""
    address = parse_address(host)
    if address is None:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))  # 0x7f000001, 0177.1, 2130706433
        except (OSError, UnicodeError):
            return Zone.NEVER
    if isinstance(address, ipaddress.IPv6Address) and not (address.is_loopback or address.is_unspecified):
        address = _carried(address) or address
    return _zone(address)


def check_zone(host: str, limit: Zone) -> None:
    """Raise InsideError unless an address lies within the limit."""
    if zone_of(host) > limit:
        raise InsideError


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address to which packets for an IPv6 address go in the end, None where they do not."""
    if any(address in network for network in _CARRIES_IPV4):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


def _zone(address: Address) -> Zone:
    if address.is_loopback:
        return Zone.LOOPBACK
    is_nowhere = address.is_unspecified or (address.version == 4 and address in _THIS_NETWORK)
    if is_nowhere or address.is_link_local or address.is_multicast or address in _METADATA:
        return Zone.NEVER
    is_site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return Zone.GLOBAL if address.is_global and not is_site_local else Zone.PRIVATE
