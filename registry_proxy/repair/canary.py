"""Whether a registry remembers blobs that are gone from its storage, as distribution does with ``storage.cache``.

A blob that nothing refers to is left at a replica before its garbage collection. An answer for it afterwards, without
its bytes, is the proof: such a registry would take manifests whose layers are gone, and no question would show it.
"""

import contextlib
import secrets
from collections.abc import AsyncIterator

from registry_proxy.operations.contents import has
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.replicas import ReplicaClient
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, Descriptor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import RESERVED_PREFIX, Digest, Repository, digest_of

CANARIES = Repository(f"{RESERVED_PREFIX}pause")


async def leave_canary(client: ReplicaClient) -> Digest | None:
    """Push a new blob to a replica; return its digest, None where the replica does not take it."""
    content = f"registry-proxy left this before a garbage collection: {secrets.token_hex(16)}\n".encode()
    descriptor = Descriptor(BLOB_MEDIA_TYPE, digest_of(content), len(content))

    async def body() -> AsyncIterator[bytes]:
        yield content

    try:
        await client.push_blob(CANARIES, descriptor, body)
        await client.stat_blob(CANARIES, descriptor.digest)  # what was never asked for may not be remembered
    except (RegistryError, UpstreamUnavailableError):
        return None
    return descriptor.digest


async def is_remembered(client: ReplicaClient, digest: Digest) -> bool:
    """Tell whether a replica answers for a blob without having it; False for one that cannot be asked."""
    try:
        if not await has(client.stat_blob(CANARIES, digest)):
            return False
    except (RegistryError, UpstreamUnavailableError):
        return False
    try:
        async with client.open_blob(CANARIES, digest) as stream:
            return not digest.matches(b"".join([piece async for piece in stream]))
    except (RegistryError, UpstreamUnavailableError):
        return True


async def remove_canary(client: ReplicaClient, digest: Digest) -> None:
    """Delete the blob, as far as the replica deletes."""
    with contextlib.suppress(RegistryError, UpstreamUnavailableError):
        await client.delete_blob(CANARIES, digest)
