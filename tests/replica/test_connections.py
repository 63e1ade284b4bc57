"""Pools of connections: the zones of addresses to which a replica may redirect."""

import socket
from typing import Any

from registry_proxy.protocol.zones import Zone
from registry_proxy.replica.connections import ReplicaConnections


def at(address: str) -> Any:
    """Return an address in the form in which aiohttp passes it to the socket factory."""
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, 80))


async def test_a_replica_moves_outwards_only() -> None:
    """A name that resolves to an inner address later still belongs to a registry outside."""
    connections = ReplicaConnections()
    try:
        seen = []
        for address in ("127.0.0.1", "10.0.0.1", "93.184.216.34", "10.0.0.1", "127.0.0.1"):
            connections._make_own_socket(at(address)).close()
            seen.append(connections.zone)
        assert seen == [Zone.LOOPBACK, Zone.PRIVATE, Zone.GLOBAL, Zone.GLOBAL, Zone.GLOBAL]
        assert connections.elsewhere(is_listed=False) is not connections.elsewhere(is_listed=True)
    finally:
        await connections.aclose()


async def test_without_a_connection_nothing_inside_is_asked() -> None:
    """Until its address is known a replica counts as outside."""
    connections = ReplicaConnections()
    try:
        outside = connections.elsewhere(is_listed=False)
        connections._make_own_socket(at("93.184.216.34")).close()
        assert connections.elsewhere(is_listed=False) is outside
    finally:
        await connections.aclose()
