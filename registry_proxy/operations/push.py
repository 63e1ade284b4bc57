"""Push: uploads of blobs, mounts and manifests (spec, "Pushing"). Acknowledged content is in the cache and known.

An upload touches neither disk nor replicas before its first byte. From then on one writer feeds the spool, the senders
to the replicas follow it, and nothing is committed anywhere before the digest has been compared.
"""

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from registry_proxy.operations.contents import is_committed
from registry_proxy.operations.manifests import ManifestWriter
from registry_proxy.operations.proofs import HOLDING_FRESH_SECONDS, HoldingProofs
from registry_proxy.operations.referrers import Referrers
from registry_proxy.operations.refused_pushes import (
    digest_invalid,
    no_space,
    out_of_order,
    size_invalid,
    upload_lost,
    wrapper_refused,
)
from registry_proxy.ports.content import BlobCache, Holdings
from registry_proxy.ports.errors import AbsenceUnknownError, CacheUnavailableError
from registry_proxy.ports.history import Cause
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.uploads import (
    BlobReplicas,
    Spool,
    SpoolFile,
    UploadBody,
    Uploader,
    UploadRef,
    UploadSession,
    UploadSessions,
)
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, Descriptor, Manifest, ManifestLinks, parse_manifest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Tag, digest_of, is_referrers_tag
from registry_proxy.protocol.wrapped import is_wrapper
from registry_proxy.tasks import run_to_end

_EMPTY_SHA256 = digest_of(b"").hex


@dataclass(frozen=True, slots=True)
class UploadAnswer:
    """The progress of an upload: the ``state`` belongs into its next Location, ``offset`` is how many bytes it has."""

    session_id: str
    state: str
    offset: int


@dataclass(frozen=True, slots=True)
class PushedManifest:
    """An acknowledged manifest; ``subject`` is what it refers to, ``warnings`` are for the client."""

    descriptor: Descriptor
    subject: Digest | None
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """The verbs of pushing, over one cache and all upstreams.

    An upload belongs to the uploader that started it. The rights are judged before, for each of its requests anew.
    """

    spool: Spool
    cache: BlobCache
    holdings: Holdings
    proofs: HoldingProofs
    sessions: UploadSessions
    blobs: BlobReplicas
    writer: ManifestWriter
    referrers: Referrers

    async def start_upload(self, routed: RoutedRepository, uploader: Uploader) -> UploadAnswer:
        """Start an upload (spec end-4a): 403 for a read-only upstream, 503 without a quorum, at once."""
        self.blobs.check_writable(routed.upstream)
        return await self._answer(routed, uploader, _new_session())

    async def append_upload(self, upload: UploadRef, body: UploadBody) -> UploadAnswer:
        """Take one PATCH (spec end-5).

        When the body ends in an error or the caller is cancelled the upload is over, here and at the replicas.

        Raises:
            RegistryError: BLOB_UPLOAD_UNKNOWN, RANGE_INVALID (416 with the true Range), SIZE_INVALID, UNAVAILABLE.
        """
        routed, uploader = upload.routed, upload.uploader
        file, session = await self._receive(routed, uploader, await self._verify(upload), body)
        file.close(self.blobs.note(routed, session.locations))
        return await self._answer(routed, uploader, session)

    async def commit_upload(self, upload: UploadRef, digest: Digest, body: UploadBody) -> Descriptor:
        """Take the PUT that ends an upload, with its last bytes or none (spec end-6).

        Where no node has all the bytes, the replicas compare the digest, and this node's cache takes none of them.

        Raises:
            RegistryError: as ``append_upload``, and DIGEST_INVALID: nothing was committed then, the upload is over.
        """
        routed, session = upload.routed, await self._verify(upload, digest)
        try:
            file, session = await self._receive(routed, upload.uploader, session, body)
        except RegistryError as error:
            # Clients repeat a commit when they got no answer. The signed state proves that this subject sent these
            # bytes to this repository, which must still hold them.
            committed = self.find_known(routed, digest) if digest == Digest("sha256", session.sha256) else None
            if error.code is not ErrorCode.BLOB_UPLOAD_UNKNOWN or committed is None:
                raise
            return committed
        return await self._commit(routed, digest, file, session)

    async def push_blob(
        self, routed: RoutedRepository, uploader: Uploader, digest: Digest, body: UploadBody
    ) -> Descriptor:
        """Take a blob in one POST (spec end-4b)."""
        self.blobs.check_writable(routed.upstream)
        file, session = await self._receive(routed, uploader, _new_session(), body)
        return await self._commit(routed, digest, file, session)

    async def upload_status(self, upload: UploadRef) -> UploadAnswer:
        """Return how far an upload is (spec end-13), also when the answer to its last request was lost.

        Raises:
            RegistryError: BLOB_UPLOAD_UNKNOWN, also where its bytes are neither here nor at a replica.
        """
        session = await self._verify(upload)
        file = self._reopen(upload.uploader, session)
        if file is None:
            if session.offset and not await self.blobs.hold_upload(upload.routed, session):
                raise upload_lost()
            return await self._answer(upload.routed, upload.uploader, session)
        try:
            if file.size_bytes != session.offset:
                digest, node_id = await file.digest("sha256"), self.spool.node_id
                sha256 = "" if digest is None else digest.hex
                session = replace(session, offset=file.size_bytes, sha256=sha256, locations={}, node_id=node_id)
        finally:
            file.close()
        return await self._answer(upload.routed, upload.uploader, session)

    async def cancel_upload(self, upload: UploadRef) -> None:
        """End an upload that nobody wants any more; BLOB_UPLOAD_UNKNOWN when it has ended already."""
        session = await self._verify(upload)
        file = self._reopen(upload.uploader, session)
        if file is not None:
            file.discard()
        self.spool.mark_ended(upload.session_id)
        await self.blobs.cancel(upload.routed, session.locations)

    async def is_everywhere(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> bool:
        """Tell whether a pusher may leave out a content: what one replica lost is pushed to all of them again."""
        return await self.blobs.is_everywhere(routed, kind, digest)

    def find_known(self, routed: RoutedRepository, digest: Digest) -> Descriptor | None:
        """Return a blob that this node knows a repository to hold; nobody is asked."""
        known = self.holdings.find(routed, ContentKind.BLOB, digest)
        return known.descriptor if known is not None and known.age_seconds < HOLDING_FRESH_SECONDS else None

    async def mount_blob(self, routed: RoutedRepository, digest: Digest, source: RoutedRepository) -> Descriptor | None:
        """Mount a blob from a repository that the caller may pull from (spec end-11); None: it has to be uploaded."""
        self.blobs.check_writable(routed.upstream)
        if source.upstream != routed.upstream:
            return None
        return await run_to_end(self._mount(routed, digest, source), "mount of a blob")

    async def put_manifest(
        self,
        routed: RoutedRepository,
        tag_or_digest: Tag | Digest,
        media_type: str,
        body: bytes,
        *,
        tags: Sequence[Tag] = (),
        may_move_tags: bool,
        cause: Cause | None = None,
    ) -> PushedManifest:
        """Take a manifest (spec end-7); it is whole at a quorum, or the caller hears an error.

        One with a subject is among the subject's referrers when this returns.

        Once begun it goes on when the caller is cancelled. ``tags`` are set
        one after the other to a manifest that comes by its digest; where one cannot be set, those before it are.

        Raises:
            RegistryError: MANIFEST_INVALID, DIGEST_INVALID, MANIFEST_BLOB_UNKNOWN; DENIED (403) when the tag exists
                and ``may_move_tags`` is False, a rule refuses it, or the upstream is read-only; UNAVAILABLE.
        """
        self.blobs.check_writable(routed.upstream)
        links = parse_manifest(body, media_type)
        if isinstance(tag_or_digest, Digest):
            digest = tag_or_digest
            if not digest.matches(body):
                raise digest_invalid(digest)
        else:
            digest, tags = digest_of(body), (tag_or_digest,)
        if is_wrapper(body):
            raise wrapper_refused(digest)
        manifest = Manifest(Descriptor(media_type, digest, len(body)), body)
        cause = None if cause is None else replace(cause, content_bytes=links.content_bytes)
        put = self._put_manifest(routed, tags or (None,), manifest, links, cause, may_move_tags=may_move_tags)
        return await run_to_end(put, "push of a manifest")

    async def _answer(self, routed: RoutedRepository, uploader: Uploader, session: UploadSession) -> UploadAnswer:
        state = await self.sessions.sign(routed, uploader, session)
        return UploadAnswer(session.session_id, state, session.offset)

    async def _verify(self, upload: UploadRef, committed: Digest | None = None) -> UploadSession:
        """Return the session of a request; BLOB_UPLOAD_UNKNOWN when it ended, but by the commit that is repeated."""
        session = await self.sessions.verify(upload.routed, upload.uploader, upload.session_id, upload.state)
        if self.spool.has_ended(upload.session_id, committed):
            raise upload_lost()
        return session

    def _reopen(self, uploader: Uploader, session: UploadSession) -> SpoolFile | None:
        """Open the file of an upload that this node received from its beginning; None when it has no byte of it.

        Else what this node may have is an older part of it, of which nobody knows that it is the same: it goes.

        Raises:
            RegistryError: BLOB_UPLOAD_UNKNOWN when the upload has ended.
        """
        file = self.spool.reopen(session.session_id, uploader)
        if file is not None and session.offset and session.node_id != self.spool.node_id:
            file.discard()
            file = None
        if file is None and self._has_ended(session):
            raise upload_lost()
        return file

    def _has_ended(self, session: UploadSession) -> bool:
        """Tell whether an upload without a file at this node has its bytes nowhere else."""
        return session.offset > 0 and (session.node_id == self.spool.node_id or not session.locations)

    def _open_spool(self, uploader: Uploader, session: UploadSession) -> SpoolFile:
        """Open the file of an upload where its state says it is, or a tail to go on with at the replicas."""
        file = self._reopen(uploader, session)
        if file is None:
            if session.offset:
                return self.spool.create_tail(session.session_id, uploader, session.offset)
            return self.spool.create(session.session_id, uploader)
        if file.size_bytes != session.offset:
            size_bytes = file.size_bytes
            file.close()
            raise out_of_order(size_bytes)
        return file

    async def _receive(
        self, routed: RoutedRepository, uploader: Uploader, session: UploadSession, body: UploadBody
    ) -> tuple[SpoolFile, UploadSession]:
        """Write one request's body to the spool, the senders behind; return the open file and the session after it."""
        size_bytes, chunk = body.size_bytes, body.chunk
        if chunk is not None:
            if chunk.first != session.offset:
                raise out_of_order(session.offset)
            if size_bytes is not None and size_bytes != chunk.size_bytes:
                raise size_invalid(chunk.size_bytes, size_bytes)
        expected = size_bytes if chunk is None else chunk.size_bytes
        file = self._open_spool(uploader, session)
        try:
            stream = self.blobs.follow(routed, file, session, expected)
            try:
                await _write(file, body.pieces, expected)
                file.finish_request()
                locations = await stream.finish()
            except BaseException:
                await stream.abort()
                raise
            return file, await self._after(session, file, locations)
        except BaseException:
            file.discard()
            raise

    async def _after(self, session: UploadSession, file: SpoolFile, locations: Mapping[str, str]) -> UploadSession:
        """Return the session after a request whose body is in ``file`` and at ``locations``."""
        sha256, node_id = session.sha256, self.spool.node_id
        if not file.is_whole:
            if not locations:
                raise upload_lost()
            node_id = ""
        if file.size_bytes != session.offset:
            digest = await file.digest("sha256")
            sha256 = "" if digest is None else digest.hex
        return replace(session, offset=file.size_bytes, sha256=sha256, locations=dict(locations), node_id=node_id)

    async def _commit(
        self, routed: RoutedRepository, digest: Digest, file: SpoolFile, session: UploadSession
    ) -> Descriptor:
        try:
            await self._check_digest(routed, digest, file, session)
            self._claim(session, digest)
        except BaseException:
            file.discard()
            raise
        descriptor = Descriptor(BLOB_MEDIA_TYPE, digest, session.offset)
        return await run_to_end(self._acknowledge(routed, descriptor, file, session.locations), "commit of a blob")

    def _claim(self, session: UploadSession, digest: Digest) -> None:
        """Have an upload become this blob and no other; BLOB_UPLOAD_UNKNOWN when it is over already."""
        if not self.spool.mark_ended(session.session_id, digest):
            raise upload_lost()

    async def _check_digest(
        self, routed: RoutedRepository, digest: Digest, file: SpoolFile, session: UploadSession
    ) -> None:
        if digest.algorithm == "sha256" and session.sha256:
            actual: Digest | None = Digest("sha256", session.sha256)
        else:
            actual = await file.digest(digest.algorithm)
        if actual is not None and actual != digest:  # what this node cannot tell the replicas compare
            await self.blobs.cancel(routed, session.locations)
            raise digest_invalid(digest)

    async def _acknowledge(
        self, routed: RoutedRepository, descriptor: Descriptor, file: SpoolFile, locations: Mapping[str, str]
    ) -> Descriptor:
        """Commit at the replicas and in the cache; what some replica misses is on record before this returns."""
        digest = descriptor.digest
        if not file.is_whole:
            file.discard()
            try:
                missing = await self.blobs.commit_sessions(routed, descriptor, locations)
            except CacheUnavailableError as error:
                raise no_space(error) from error
            return await self._recorded(routed, descriptor, missing)
        try:
            missing = await self.blobs.commit(routed, descriptor, file, locations)
            if missing:
                self.writer.pin(digest)
            await self._keep(file, digest, must=bool(missing))
        except BaseException:
            file.discard()
            raise
        file.close()
        return await self._recorded(routed, descriptor, missing)

    async def _recorded(self, routed: RoutedRepository, descriptor: Descriptor, missing: Sequence[str]) -> Descriptor:
        await self.blobs.record_missing(routed, descriptor.digest, missing)
        await self.proofs.note_push(routed, descriptor.digest)
        self.holdings.remember(routed, ContentKind.BLOB, descriptor)
        return descriptor

    @staticmethod
    async def _keep(file: SpoolFile, digest: Digest, *, must: bool) -> None:
        """Make the upload a cache entry; a full disk is an error only where a replica still needs our copy."""
        try:
            await file.commit(digest)
        except CacheUnavailableError as error:
            if must:
                raise no_space(error) from error
            file.discard()

    async def _mount(self, routed: RoutedRepository, digest: Digest, source: RoutedRepository) -> Descriptor | None:
        try:
            if not await self.proofs.may_mount(source, digest):
                return None
        except AbsenceUnknownError:  # while a replica is down: the client can upload what it would have mounted
            return None
        mounted = await self.blobs.mount(routed, source.repository, digest, self.find_known(source, digest))
        if mounted is None:
            return None
        descriptor, missing = mounted
        if missing:
            self.writer.pin(digest)
            if not is_committed(self.cache, digest):
                return None
        return await self._recorded(routed, descriptor, missing)

    async def _put_manifest(
        self,
        routed: RoutedRepository,
        tags: Sequence[Tag | None],
        manifest: Manifest,
        links: ManifestLinks,
        cause: Cause | None,
        *,
        may_move_tags: bool,
    ) -> PushedManifest:
        warnings: list[str] = []
        for tag in tags:
            async with AsyncExitStack() as stack:
                if tag is not None and is_referrers_tag(tag):
                    await stack.enter_async_context(self.referrers.replacing(routed, tag, manifest))
                warnings += await self.writer.write(
                    routed, tag, manifest, links, may_move_tags=may_move_tags, cause=cause
                )
        subject = None if links.manifest_subject is None else links.manifest_subject.digest
        if subject is not None:
            await self.referrers.note_push(routed, subject, manifest)
        return PushedManifest(manifest.descriptor, subject, warnings)


async def _write(file: SpoolFile, body: AsyncIterator[bytes], expected: int | None) -> None:
    start = file.size_bytes
    async for piece in body:
        if expected is not None and file.size_bytes - start + len(piece) > expected:
            raise size_invalid(expected, file.size_bytes - start + len(piece))
        await file.write(piece)
    if expected is not None and file.size_bytes - start != expected:
        raise size_invalid(expected, file.size_bytes - start)


def _new_session() -> UploadSession:
    return UploadSession(str(uuid.uuid4()), 0, _EMPTY_SHA256, {})
