"""The code that an image was built from, as its labels state it: foreign text, read within seconds and made short."""

import asyncio

from registry_proxy.history.images import ImageReader
from registry_proxy.operations.pull import Pull
from registry_proxy.ports.deployments import ImageLabels
from registry_proxy.ports.errors import CacheUnavailableError, FillFailedError, UpstreamUnavailableError
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest

_SECONDS = 5.0
_SHOWN_MAX = 255


async def read_labels(pull: Pull, routed: RoutedRepository, digest: Digest) -> ImageLabels:
    """Return the labels of an image; those that cannot be read within seconds, or shown, count as missing.

    Raises:
        RegistryError: the repository does not hold the manifest.
        UpstreamUnavailableError, FillFailedError: it cannot be known.
    """
    await pull.get_manifest(routed, digest)
    try:
        async with asyncio.timeout(_SECONDS):
            facts = await ImageReader(pull).read(routed, digest)
    except (TimeoutError, RegistryError, UpstreamUnavailableError, FillFailedError, CacheUnavailableError, OSError):
        return ImageLabels()
    return ImageLabels(_shown(facts.source), _shown(facts.revision))


def _shown(text: str) -> str:
    """Return a text of printable characters that is no longer than a line; "" for another one."""
    return text if len(text) <= _SHOWN_MAX and text.isprintable() else ""
