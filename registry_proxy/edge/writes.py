"""The operations that write: uploads, manifests and deletions."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode

from registry_proxy.edge.allowance import DELETIONS_AT_ONCE, DELETIONS_SECONDS, Allowance
from registry_proxy.edge.answer import Answer
from registry_proxy.edge.authenticate import Authenticator, digest_named_by
from registry_proxy.edge.call import Call, actor_of
from registry_proxy.edge.exchange import as_registry_error, read_small_body
from registry_proxy.edge.origin import Origins
from registry_proxy.operations.manage import Manage
from registry_proxy.operations.push import Push, UploadAnswer
from registry_proxy.ports.events import AuditEvent, AuditLog
from registry_proxy.ports.history import Cause
from registry_proxy.ports.names import RoutedRepository, Router
from registry_proxy.ports.uploads import UploadBody, UploadRef
from registry_proxy.protocol.descriptor import MANIFEST_MAX_BYTES, Descriptor
from registry_proxy.protocol.endpoints import (
    BlobRequest,
    CommitUploadRequest,
    ManifestRequest,
    RegistryRequest,
    StartUploadRequest,
    UploadRequest,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """The handlers of the operations that write; each is named as its operation.

    Args:
        authenticator: knows whether the source of a mount may be read.
        router: finds it.
        push: the verbs of pushing.
        manage: the verbs of deleting.
        audit: receives an event for each push and deletion, also for one that failed.
        origins: tells by which name and port the client addressed the registry.
    """

    authenticator: Authenticator
    router: Router
    push: Push
    manage: Manage
    audit: AuditLog
    origins: Origins
    _deletions: Allowance = field(default_factory=lambda: Allowance(DELETIONS_AT_ONCE, DELETIONS_SECONDS), init=False)

    async def start_upload(self, call: Call[StartUploadRequest]) -> Answer:
        request, routed = call.request, call.routed
        if request.mount is not None:
            mounted = await self._mount(call, request.mount)
            if mounted is not None:
                with self._audited(call):
                    call.made = mounted.digest
                return _created(call, "blobs", mounted)
        elif request.digest is not None:
            client = call.exchange.client
            with self._audited(call):
                pushed = await self.push.push_blob(
                    routed, call.uploader, request.digest, UploadBody(client.read_body(), client.body_bytes)
                )
            return _created(call, "blobs", pushed)
        return _upload(call, 202, await self.push.start_upload(routed, call.uploader))

    async def _mount(self, call: Call[StartUploadRequest], digest: Digest) -> Descriptor | None:
        """Mount where the caller may read the source; a source that it may not read is, to it, not there.

        Without a source in the request it is one that the token names, and of which this node knows that it holds the
        blob: nobody is asked.
        """
        named = call.request.from_repository
        source = self._known_source(call, digest) if named is None else self._named_source(call, named)
        return None if source is None else await self.push.mount_blob(call.routed, digest, source)

    def _named_source(self, call: Call[StartUploadRequest], name: Repository) -> RoutedRepository | None:
        try:
            canonical = self.router.canonical(name, call.request.source_host)
            source = self.router.route(canonical)
        except RegistryError:
            return None
        is_near = source.upstream == call.routed.upstream
        may_read = is_near and self.authenticator.may_read_source(
            call.exchange, call.request, call.authorized, canonical
        )
        return source if may_read else None

    def _known_source(self, call: Call[StartUploadRequest], digest: Digest) -> RoutedRepository | None:
        for canonical in self.authenticator.readable(call.authorized):
            with suppress(RegistryError):  # it is not routed
                source = self.router.route(canonical)
                if source.upstream == call.routed.upstream and self.push.find_known(source, digest):
                    return source
        return None

    async def append_upload(self, call: Call[UploadRequest]) -> Answer:
        return _upload(call, 202, await self.push.append_upload(_ref(call), _body(call)))

    async def commit_upload(self, call: Call[CommitUploadRequest]) -> Answer:
        with self._audited(call):
            descriptor = await self.push.commit_upload(_ref(call), call.request.digest, _body(call))
        return _created(call, "blobs", descriptor)

    async def upload_status(self, call: Call[UploadRequest]) -> Answer:
        return _upload(call, 204, await self.push.upload_status(_ref(call)))

    async def cancel_upload(self, call: Call[UploadRequest]) -> Answer:
        await self.push.cancel_upload(_ref(call))
        return Answer(204)

    async def put_manifest(self, call: Call[ManifestRequest]) -> Answer:
        body = await read_small_body(call.exchange, MANIFEST_MAX_BYTES)
        media_type = call.exchange.headers.get("Content-Type", "").partition(";")[0].strip()
        with self._audited(call):
            pushed = await self.push.put_manifest(
                call.routed,
                call.request.tag_or_digest,
                media_type,
                body,
                tags=call.request.tags,
                may_move_tags=call.authorized.may_move_tags,
                cause=Cause(actor_of(call, self.origins)),
            )
            call.made = pushed.descriptor.digest
            call.warnings = pushed.warnings
        created = _created(call, "manifests", pushed.descriptor)
        further = {} if pushed.subject is None else {"OCI-Subject": str(pushed.subject)}
        if call.request.tags:
            further["OCI-Tag"] = ", ".join(call.request.tags)
        if pushed.warnings:
            further["Warning"] = ", ".join(f'299 - "{_quoted(each)}"' for each in pushed.warnings)
        return created._replace(headers={**created.headers, **further})

    async def delete_manifest(self, call: Call[ManifestRequest]) -> Answer:
        with self._audited(call):
            self._deletions.take(call.subject)
            call.made = await self.manage.delete_manifest(
                call.routed, call.request.tag_or_digest, actor_of(call, self.origins)
            )
        return Answer(202)

    async def delete_blob(self, call: Call[BlobRequest]) -> Answer:
        with self._audited(call):
            self._deletions.take(call.subject)
            await self.manage.delete_blob(call.routed, call.request.digest)
        return Answer(202)

    @contextmanager
    def _audited(self, call: Call[RegistryRequest]) -> Iterator[None]:
        """Record the end of a push or deletion in the audit log; the digest that it made is in the call by then."""
        outcome, rule, answered = "failed", call.authorized.rule, {}
        try:
            yield
            outcome = "ok"
        except ConnectionError:  # of the client, who is answered nothing
            raise
        except Exception as error:
            answer = as_registry_error(error)
            outcome, rule = "denied" if answer.code is ErrorCode.DENIED else "failed", answer.message
            answered = {"status": answer.status}
            if answer is error:
                raise
            raise answer from error
        finally:
            first = call.authorized.question or ("", call.request.repository or "", "", None)
            for question in (first, *(other for other, _ in call.authorized.further)):
                self.audit.record(_event(call, question, outcome, rule, answered))


def _event(
    call: Call[RegistryRequest],
    question: tuple[str, str, str, str | None],
    outcome: str,
    rule: str,
    answered: dict[str, int],
) -> AuditEvent:
    request, digest = call.request, call.made or digest_named_by(call.request)
    return AuditEvent(
        question[2],
        outcome,
        subject=call.subject,
        address=call.exchange.address,
        repository=question[1],
        tag=question[3] or "",
        digest="" if digest is None else str(digest),
        rule=rule,
        detail={"operation": request.operation.label, **answered, **_warned(call)},
    )


def _warned(call: Call[RegistryRequest]) -> dict[str, list[str]]:
    return {"warnings": list(call.warnings)} if call.warnings else {}


def _quoted(text: str) -> str:
    """Return the content of a quoted string in a header (RFC 9110, 5.6.4)."""
    return re.sub(r'(["\\])', r"\\\1", text).encode("ascii", "replace").decode()


def _ref(call: Call[UploadRequest | CommitUploadRequest]) -> UploadRef:
    return UploadRef(call.routed, call.uploader, call.request.session_id, call.request.state)


def _body(call: Call[RegistryRequest]) -> UploadBody:
    client = call.exchange.client
    return UploadBody(client.read_body(), client.body_bytes, call.chunk())


def _upload(call: Call[UploadRequest | StartUploadRequest], status: int, upload: UploadAnswer) -> Answer:
    query = urlencode({"_state": upload.state} | call.source_query())
    headers = {
        "Location": f"{call.base}/blobs/uploads/{quote(upload.session_id, safe='')}?{query}",
        "Docker-Upload-UUID": upload.session_id,
        "Range": f"0-{max(upload.offset - 1, 0)}",
    }
    return Answer(status, headers)


def _created(call: Call[RegistryRequest], kind: str, descriptor: Descriptor) -> Answer:
    digest = str(descriptor.digest)
    return Answer(201, {"Location": f"{call.base}/{kind}/{digest}", "Docker-Content-Digest": digest})
