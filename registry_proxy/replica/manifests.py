"""Manifests at one replica, as it stores them (spec, "Endpoints"): one method for each request."""

import time

import aiohttp

from registry_proxy.protocol.descriptor import (
    BLOB_MEDIA_TYPE,
    MANIFEST_MAX_BYTES,
    MANIFEST_MEDIA_TYPES,
    Descriptor,
    Manifest,
    derive_media_type,
    stated_media_type,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, digest_of
from registry_proxy.protocol.scope import Action, format_scope, repository_access
from registry_proxy.replica.answers import Answers, stated_digest
from registry_proxy.replica.failure import (
    BadUpstreamError,
    ReplicaFailedError,
    WrongBytesError,
    parse_errors,
    refusal,
)
from registry_proxy.replica.placeholder import placeholder_of
from registry_proxy.replica.transport import Request, Transport

_ACCEPT = {"Accept": ", ".join(MANIFEST_MEDIA_TYPES)}
_MANIFEST_CODES = frozenset({ErrorCode.MANIFEST_INVALID, ErrorCode.MANIFEST_BLOB_UNKNOWN, ErrorCode.MANIFEST_UNKNOWN})


class Manifests:
    """Requests for the manifests of one replica; their errors are those of ``HttpReplicaClient``."""

    def __init__(self, transport: Transport, answers: Answers) -> None:
        self._name = transport.name
        self._transport = transport
        self._answers = answers

    def request(
        self, method: str, repository: Repository, tag_or_digest: Tag | Digest, action: Action = Action.PULL
    ) -> Request:
        """Return a request without a body."""
        return Request(
            method=method,
            target=self._transport.target(f"/v2/{repository}/manifests/{tag_or_digest}"),
            scopes=(format_scope(repository_access(repository, action)),),
            headers=_ACCEPT if action is Action.PULL else {},
        )

    async def head(self, repository: Repository, tag: Tag) -> Descriptor | None:
        """Ask by HEAD what a tag is; None where the answer says too little."""
        async with self._transport.request(self.request("HEAD", repository, tag)) as response:
            await self._answers.check_found(response, ErrorCode.MANIFEST_UNKNOWN, {"tag": tag})
            media_type = stated_media_type(response.headers.get("Content-Type"))
            digest, size_bytes = stated_digest(response), response.content_length
        if digest is None or media_type is None or not size_bytes:
            return None
        return Descriptor(media_type, digest, size_bytes)

    async def get(self, repository: Repository, tag_or_digest: Tag | Digest) -> Manifest:
        """Return a manifest; its bytes were compared with a digest."""
        started_at = time.monotonic()
        async with self._transport.request(self.request("GET", repository, tag_or_digest)) as response:
            key = "digest" if isinstance(tag_or_digest, Digest) else "tag"
            await self._answers.check_found(response, ErrorCode.MANIFEST_UNKNOWN, {key: str(tag_or_digest)})
            if response.content_type == "text/html":
                raise BadUpstreamError(self._name, "it sends a page of HTML as a manifest")
            body = await self._transport.read_body(response, MANIFEST_MAX_BYTES)
            stated = stated_media_type(response.headers.get("Content-Type"))
        if body is None:
            raise BadUpstreamError(self._name, f"the manifest is larger than {MANIFEST_MAX_BYTES} bytes")
        digest = tag_or_digest if isinstance(tag_or_digest, Digest) else digest_of(body)
        if not digest.matches(body):
            self._transport.count("GET", "mismatch", started_at)
            raise WrongBytesError(f"{self._name}: the manifest's bytes are not those of its digest")
        media_type = stated or derive_media_type(body) or BLOB_MEDIA_TYPE
        return Manifest(Descriptor(media_type, digest, len(body)), body)

    async def put(
        self, repository: Repository, tag_or_digest: Tag | Digest, manifest: Manifest, *, tag: Tag | None = None
    ) -> bool:
        """Store a manifest.

        Args:
            repository: the one that holds it afterwards.
            tag_or_digest: its name.
            manifest: the manifest.
            tag: a tag to be set besides a digest (spec 1.2, ``OCI-Tag``).

        Returns:
            False where the registry does not say that it set ``tag``.
        """
        started_at = time.monotonic()
        query = "" if tag is None else f"?tag={tag}"
        request = Request(
            method="PUT",
            target=self._transport.target(f"/v2/{repository}/manifests/{tag_or_digest}{query}"),
            scopes=(format_scope(repository_access(repository, Action.PULL, Action.PUSH)),),
            headers={"Content-Type": manifest.descriptor.media_type},
            body=manifest.body,
            takes_long=True,
        )
        async with self._transport.request(request) as response:
            if response.status in {200, 201, 202}:
                stored = response.headers.get("Docker-Content-Digest")
                if stored is not None and stored != str(manifest.descriptor.digest):
                    raise self._answers.mismatch("PUT", "it stored the manifest under another digest", started_at)
                return tag is None or tag in _tags_set(response)
            body = await self._transport.read_error(response)
            status = response.status
        if status >= 500:
            # distribution 2.8.2 answers 500 to what it holds against the manifest (a foreign layer, say).
            if not any(code in _MANIFEST_CODES for code, _ in parse_errors(body)):
                raise ReplicaFailedError(f"{self._name}: it answers {status}", "5xx")
            status = 400
        raise refusal(self._name, status, body, ErrorCode.MANIFEST_INVALID)

    async def delete(self, repository: Repository, digest: Digest) -> None:
        """Delete a manifest with all its tags; a 404 counts as done."""
        request = self.request("DELETE", repository, digest, Action.DELETE)
        async with self._transport.request(request) as response:
            await self._answers.check_deleted(response, ErrorCode.MANIFEST_UNKNOWN)

    async def delete_tag(self, repository: Repository, tag: Tag) -> None:
        """Delete a tag that exists; where only manifests can be deleted it is moved to its placeholder before."""
        if not await self._untag(repository, tag):
            await self._delete_by_placeholder(repository, tag)

    async def _untag(self, repository: Repository, tag: Tag) -> bool:
        """Ask for the delete of a tag (spec, "Deleting tags"); return whether the registry did it."""
        async with self._transport.request(self.request("DELETE", repository, tag, Action.DELETE)) as response:
            return response.status in {200, 202, 204}

    async def _delete_by_placeholder(self, repository: Repository, tag: Tag) -> None:
        placeholder = placeholder_of(repository, tag)
        digest = placeholder.descriptor.digest
        await self.delete(repository, digest)  # where deletes are off it fails here: the tag is not touched
        manifest = await self.get(repository, tag)
        await self.put(repository, tag, placeholder)
        try:
            await self.delete(repository, digest)
        except RegistryError:
            await self.put(repository, tag, manifest)
            raise


def _tags_set(response: aiohttp.ClientResponse) -> set[str]:
    """Return the tags that an answer says to have been set: one or several in each of its ``OCI-Tag`` headers."""
    return {tag.strip() for value in response.headers.getall("OCI-Tag", ()) for tag in value.split(",")}
