"""The connections of a listener in a test."""

import asyncio

from registry_proxy.edge.origin import Origins
from registry_proxy.http.connections import ConnectionLimits, Connections
from tests.support.fakes.memory import RecordingObserver


def any_connections(limits: ConnectionLimits | None = None, origins: Origins | None = None) -> Connections:
    """Return a counter of a listener's connections on the running loop; by default there is no trusted proxy."""
    clock = asyncio.get_running_loop().time
    return Connections(limits or ConnectionLimits(), origins or Origins(None, ()), clock, "public", RecordingObserver())
