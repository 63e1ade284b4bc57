"""The connections of a listener in a test."""

import asyncio

from registry_proxy.edge.origin import Origins
from registry_proxy.http.connections import ConnectionLimits, Connections
from tests.support.fakes.memory import RecordingObserver


def any_connections(limits: ConnectionLimits | None = None, origins: Origins | None = None) -> Connections:
    """Return what counts the connections of a listener on the running loop; by default nobody is a trusted proxy."""
    clock = asyncio.get_running_loop().time
    return Connections(limits or ConnectionLimits(), origins or Origins(None, ()), clock, "public", RecordingObserver())
