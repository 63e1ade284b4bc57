"""One replica over HTTP: both sides of the protocol (spec, "Endpoints"), the oddities of registries smoothed."""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

from registry_proxy.ports.content import ByteStream
from registry_proxy.ports.errors import UpstreamLimitError
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.names import ContentKind
from registry_proxy.protocol.descriptor import (
    BLOB_MEDIA_TYPE,
    MANIFEST_MAX_BYTES,
    MANIFEST_MEDIA_TYPES,
    OCI_INDEX,
    Descriptor,
    Manifest,
    derive_media_type,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import (
    RESERVED_PREFIX,
    Digest,
    Repository,
    Tag,
    digest_of,
    is_repository,
    is_tag,
)
from registry_proxy.protocol.referrers import Referrer
from registry_proxy.protocol.scope import CATALOG, Action, format_scope, repository_access
from registry_proxy.protocol.wrapped import unwrap_referrer
from registry_proxy.replica.answers import Answers, names_another, not_found, stated_digest
from registry_proxy.replica.connections import ReplicaAddress, ReplicaConnections, Timeouts
from registry_proxy.replica.failure import (
    AccessRefusedError,
    ReplicaFailedError,
)
from registry_proxy.replica.heads import Heads
from registry_proxy.replica.listing import list_names, list_referrers, merged
from registry_proxy.replica.long_lists import LongLists
from registry_proxy.replica.manifests import Manifests
from registry_proxy.replica.placeholder import placeholder_of
from registry_proxy.replica.streams import BlobStream
from registry_proxy.replica.transport import Request, Transport
from registry_proxy.replica.wrapped_manifests import WrappedManifests

_NOWHERE = Repository(f"{RESERVED_PREFIX}nowhere")
_UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/[^/]*")


def _scope(repository: str, *actions: Action) -> tuple[str, ...]:
    return (format_scope(repository_access(repository, *actions)),)


class HttpReplicaClient:
    """A ``ReplicaClient`` over HTTP.

    Every method raises RegistryError (what the registry refuses; 502 when it answers wrongly or refuses our
    credentials) and ReplicaFailedError (it did not answer; 429; 5xx).

    Args:
        address: where the replica is and how to log in.
        timeouts: in seconds.
        connections: its connections; their opener closes them.
        observer: receives the outcome of each request.
        may_wrap: whether manifests that it does not take as they are lie there in wrappers of our own.
    """

    def __init__(
        self,
        address: ReplicaAddress,
        timeouts: Timeouts,
        connections: ReplicaConnections,
        observer: Observer,
        *,
        may_wrap: bool = False,
    ) -> None:
        self._name = address.name
        self._transport = Transport(address, timeouts, connections, observer)
        self._answers = Answers(address.name, self._transport)
        self._stored = Manifests(self._transport, self._answers)
        self._manifests = WrappedManifests(self._stored, self._name_of_blob) if may_wrap else self._stored
        self._tag_lists, self._catalogs, self._referrers = LongLists(), LongLists(), LongLists()
        self._tag_heads, self._blob_heads = Heads(time.monotonic), Heads(time.monotonic)

    @property
    def name(self) -> str:
        return self._name

    async def probe(self) -> None:
        """Return when it is a registry that takes our credentials.

        Raises:
            AccessRefusedError, BadUpstreamError, ReplicaFailedError: it is not.
        """
        await self._transport.probe()

    async def probe_storage(self) -> None:
        """Return when it answers for a content that nobody has, with any status.

        ``probe`` asks for no content: a registry answers it while its storage hangs.

        Raises:
            ReplicaFailedError: it does not answer.
        """
        nothing = digest_of(secrets.token_bytes(16))
        try:
            with suppress(UpstreamLimitError):
                async with asyncio.timeout(self._transport.timeouts.probe):
                    await self.answers(ContentKind.BLOB, _NOWHERE, nothing)
        except TimeoutError as error:
            raise ReplicaFailedError(f"{self._name}: its contents are not answered for in time", "timeout") from error
        except ReplicaFailedError as error:
            if not error.is_elsewhere and error.outcome != "4xx":
                raise

    # ------------------------------------------------------------ manifests

    async def resolve_tag(self, repository: Repository, tag: Tag) -> Descriptor:
        """Return what the tag is; one on its placeholder is absent."""
        descriptor = await self._resolve_tag(repository, tag)
        if descriptor.digest == placeholder_of(repository, tag).descriptor.digest:
            raise not_found(ErrorCode.MANIFEST_UNKNOWN, {"tag": tag})
        return descriptor

    async def _resolve_tag(self, repository: Repository, tag: Tag) -> Descriptor:
        async def get() -> Descriptor:
            return (await self._manifests.get(repository, tag)).descriptor

        return await self._tag_heads.describe(repository, lambda: self._manifests.head(repository, tag), get)

    async def fetch_manifest(self, repository: Repository, digest: Digest) -> Manifest:
        """Return a manifest; 404 as well where the digest is that of a blob, which registries fail over."""
        try:
            return await self._manifests.get(repository, digest)
        except ReplicaFailedError as error:
            if error.outcome != "5xx" or not await self._is_mere_blob(repository, digest):
                raise
            message, detail = "this digest is that of a blob, not of a manifest", {"digest": str(digest)}
            raise RegistryError(ErrorCode.MANIFEST_UNKNOWN, message, detail=detail) from error

    async def _is_mere_blob(self, repository: Repository, digest: Digest) -> bool:
        """Tell whether the repository holds the digest as a blob, and what it holds is no manifest."""
        try:
            async with self._transport.request(self._blob_request("GET", repository, digest, 0)) as response:
                await self._answers.check_blob(response, digest)
                if (response.content_length or 0) > MANIFEST_MAX_BYTES:
                    return True
                content = await self._transport.read_body(response, MANIFEST_MAX_BYTES)
        except (RegistryError, ReplicaFailedError):
            return False
        if content is None:
            return True
        return digest.matches(content) and derive_media_type(content) not in MANIFEST_MEDIA_TYPES

    async def put_manifest(self, repository: Repository, tag_or_digest: Tag | Digest, manifest: Manifest) -> None:
        await self._manifests.put(repository, tag_or_digest, manifest)
        self._took_push(repository)

    async def delete_manifest(self, repository: Repository, digest: Digest) -> None:
        await self._manifests.delete(repository, digest)

    async def delete_tag(self, repository: Repository, tag: Tag) -> None:
        """Delete a tag and leave its manifest to other tags; the caller excludes other writers of the tag."""
        try:
            await self._resolve_tag(repository, tag)
            await self._manifests.delete_tag(repository, tag)
        except RegistryError as error:
            if error.status != 404:
                raise

    # ------------------------------------------------------------ blobs

    async def stat_blob(self, repository: Repository, digest: Digest) -> Descriptor:
        async def head() -> Descriptor | None:
            async with self._transport.request(self._blob_request("HEAD", repository, digest, 0)) as response:
                await self._answers.check_blob(response, digest)
                size_bytes = response.content_length
            if size_bytes is None or (size_bytes == 0 and not digest.matches(b"")):  # some say 0 of everything
                return None
            return Descriptor(BLOB_MEDIA_TYPE, digest, size_bytes)

        async def get() -> Descriptor:
            async with self.open_blob(repository, digest) as stream:
                size_bytes = stream.size_bytes
                if size_bytes is None:  # only the whole tells
                    size_bytes = sum([len(chunk) async for chunk in stream])
            return Descriptor(BLOB_MEDIA_TYPE, digest, size_bytes)

        return await self._blob_heads.describe(repository, head, get)

    async def _name_of_blob(self, repository: Repository, digest: Digest) -> Digest | None:
        """Return the digest that the registry itself names a blob by; None where it does not have it, or names none."""
        async with self._transport.request(self._blob_request("HEAD", repository, digest, 0)) as response:
            return stated_digest(response) if response.status == 200 else None

    @asynccontextmanager
    async def open_blob(self, repository: Repository, digest: Digest, offset: int = 0) -> AsyncIterator[ByteStream]:
        async with self._transport.request(self._blob_request("GET", repository, digest, offset)) as response:
            await self._answers.check_blob(response, digest)
            begin, size_bytes = self._answers.extent(response, offset)
            yield BlobStream(
                response,
                self._name,
                offset=begin,
                size_bytes=size_bytes,
                stall_seconds=self._transport.timeouts.stall,
                is_elsewhere=not self._transport.is_here(response),
                failed=lambda outcome, started_at: self._transport.count("GET", outcome, started_at),
            )

    def _blob_request(self, method: str, repository: Repository, digest: Digest, offset: int) -> Request:
        return Request(
            method=method,
            target=self._transport.target(f"/v2/{repository}/blobs/{digest}"),
            scopes=_scope(repository, Action.PULL),
            headers={"Range": f"bytes={offset}-"} if offset else {},
        )

    async def answers(self, kind: ContentKind, repository: Repository, digest: Digest) -> bool:
        """Tell whether a HEAD finds a content in a repository; False also where the question is refused.

        Raises:
            ReplicaFailedError: it does not answer, or asks us to wait.
        """
        if kind is ContentKind.MANIFEST:
            request = self._stored.request("HEAD", repository, digest)
        else:
            request = self._blob_request("HEAD", repository, digest, 0)
        try:
            async with self._transport.request(request) as response:
                return response.status == 200
        except RegistryError as error:
            if error.code is ErrorCode.TOOMANYREQUESTS:
                raise ReplicaFailedError(f"{self._name}: it asks us to wait", "4xx") from error
        except ReplicaFailedError as error:
            if error.outcome != "5xx":
                raise
        return False

    async def delete_blob(self, repository: Repository, digest: Digest) -> None:
        target = self._transport.target(f"/v2/{repository}/blobs/{digest}")
        request = Request(method="DELETE", target=target, scopes=_scope(repository, Action.DELETE))
        async with self._transport.request(request) as response:
            await self._answers.check_deleted(response, ErrorCode.BLOB_UNKNOWN)

    # ------------------------------------------------------------ lists

    async def list_tags(self, repository: Repository) -> list[Tag]:
        target = self._transport.target(f"/v2/{repository}/tags/list?n=1000")
        request = Request(method="GET", target=target, scopes=_scope(repository, Action.PULL))
        names = await list_names(self._transport, self._tag_lists, request, "tags", {"repository": repository})
        return await merged([(cast("set[Tag]", names), is_tag)])

    async def list_repositories(self) -> list[Repository]:
        """Return its repositories. Raises UNSUPPORTED where it gives no list, or not to us, as Docker Hub does."""
        target = self._transport.target("/v2/_catalog?n=1000")
        request = Request(method="GET", target=target, scopes=(format_scope(CATALOG),))
        try:
            names = await list_names(self._transport, self._catalogs, request, "repositories", {"registry": self._name})
        except RegistryError as error:
            if not isinstance(error, AccessRefusedError) and error.code is not ErrorCode.NAME_UNKNOWN:
                raise
            reason = "the upstream registry gives no list of its repositories"
            raise RegistryError(ErrorCode.UNSUPPORTED, reason, detail={"replica": self._name}) from error
        return await merged([(cast("set[Repository]", names), _is_listed)])

    async def fetch_referrers(self, repository: Repository, digest: Digest) -> list[Referrer] | None:
        """Return the entries of what refers to a manifest (spec, "Listing Referrers"); None without that API."""
        request = Request(
            method="GET",
            target=self._transport.target(f"/v2/{repository}/referrers/{digest}"),
            scopes=_scope(repository, Action.PULL),
            headers={"Accept": OCI_INDEX},
        )
        found = await list_referrers(self._transport, self._referrers, request)
        return None if found is None else [unwrap_referrer(entry) for entry in found]

    # ------------------------------------------------------------ uploads

    async def start_upload(self, repository: Repository) -> str:
        async with self._transport.request(self._post(repository, "", ())) as response:
            if response.status != 202:
                raise await self._answers.refusal(response, ErrorCode.BLOB_UPLOAD_INVALID)
            self._took_push(repository)
            return self._answers.location(response)

    async def append_upload(self, location: str, body: AsyncIterator[bytes], size_bytes: int | None) -> str:
        request = Request(
            method="PATCH",
            target=location,
            scopes=self._upload_scope(location),
            headers={"Content-Type": BLOB_MEDIA_TYPE},
            body=body,
            size_bytes=size_bytes,
        )
        async with self._transport.request(request) as response:
            if response.status not in {202, 204}:
                raise await self._answers.refusal(response, ErrorCode.BLOB_UPLOAD_INVALID)
            return self._answers.location(response)

    async def holds_upload(self, location: str, size_bytes: int) -> bool:
        request = Request(method="GET", target=location, scopes=self._upload_scope(location))
        async with self._transport.request(request) as response:
            last = response.headers.get("Range", "").rpartition("-")[2]
            return response.status in {202, 204} and last == str(size_bytes - 1)

    async def commit_upload(self, location: str, digest: Digest) -> None:
        await self._put_blob(location, digest, b"", None)

    async def cancel_upload(self, location: str) -> None:
        scopes = self._upload_scope(location)
        request = Request(method="DELETE", target=location, scopes=scopes)
        async with self._transport.request(request) as response:
            if response.status >= 300 and response.status != 404:
                raise await self._answers.refusal(response, ErrorCode.BLOB_UPLOAD_INVALID)

    async def push_blob(
        self, repository: Repository, descriptor: Descriptor, body: Callable[[], AsyncIterator[bytes]]
    ) -> None:
        location = await self.start_upload(repository)
        await self._put_blob(location, descriptor.digest, body(), descriptor.size_bytes)

    async def mount_blob(self, repository: Repository, digest: Digest, from_repository: Repository) -> bool:
        scopes = _scope(from_repository, Action.PULL)
        request = self._post(repository, f"?mount={digest}&from={from_repository}", scopes)
        async with self._transport.request(request) as response:
            if response.status == 201:
                # distribution links the blob by its sha256 alone, and does not find it by the digest that was mounted.
                return digest.algorithm == "sha256" or await self.answers(ContentKind.BLOB, repository, digest)
            if response.status != 202:
                raise await self._answers.refusal(response, ErrorCode.BLOB_UPLOAD_INVALID)
            location = self._answers.location(response)
        await self.cancel_upload(location)
        return False

    async def _put_blob(
        self, location: str, digest: Digest, body: bytes | AsyncIterator[bytes], size_bytes: int | None
    ) -> None:
        started_at = time.monotonic()
        request = Request(
            method="PUT",
            target=f"{location}{'&' if '?' in location else '?'}digest={digest}",
            scopes=self._upload_scope(location),
            headers={"Content-Type": BLOB_MEDIA_TYPE},
            body=body,
            size_bytes=size_bytes,
            takes_long=True,
        )
        async with self._transport.request(request) as response:
            if response.status in {201, 204}:
                if names_another(response, digest):
                    raise self._answers.mismatch("PUT", "it stored the blob under another digest", started_at)
                return
            if response.status >= 500:
                raise ReplicaFailedError(f"{self._name}: it answers {response.status}", "5xx")
            raise await self._answers.refusal(response, ErrorCode.BLOB_UPLOAD_INVALID)

    def _post(self, repository: Repository, query: str, more_scopes: tuple[str, ...]) -> Request:
        return Request(
            method="POST",
            target=self._transport.target(f"/v2/{repository}/blobs/uploads/{query}"),
            scopes=_scope(repository, Action.PULL, Action.PUSH) + more_scopes,
            body=b"",
        )

    def _upload_scope(self, location: str) -> tuple[str, ...]:
        match = _UPLOAD.fullmatch(self._transport.path_of(location))
        return _scope(match[1], Action.PULL, Action.PUSH) if match else ()

    def _took_push(self, repository: Repository) -> None:
        self._tag_heads.took_push(repository)
        self._blob_heads.took_push(repository)


def _is_listed(name: str) -> bool:
    return is_repository(name) and not name.startswith(RESERVED_PREFIX)
