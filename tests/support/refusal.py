"""The error that a call ends in."""

from collections.abc import Awaitable

import pytest

from registry_proxy.protocol.errors import RegistryError


async def refused(attempt: Awaitable[object]) -> RegistryError:
    """Return the error of the protocol that a call ends in."""
    with pytest.raises(RegistryError) as caught:
        await attempt
    return caught.value
