"""The public listener on a real socket, over ports in memory and a real policy with real tokens."""

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import aiohttp

from registry_proxy.access.control import AccessControl
from registry_proxy.access.credentials import LoginRefusedError, TooManyLoginsError
from registry_proxy.access.grant import Grant, GrantMode
from registry_proxy.access.logins import LoginResult
from registry_proxy.access.policy import Policy
from registry_proxy.access.records import User
from registry_proxy.access.tokens import (
    InvalidTokenError,
    TokenSigner,
    TokenVerifier,
    VerifiedToken,
    create_key_file,
    public_key_of,
)
from registry_proxy.directory.directory import Directory
from registry_proxy.edge.origin import Origins
from registry_proxy.edge.public import PublicApp, PublicOptions
from registry_proxy.edge.server import PublicServer, run_public
from registry_proxy.http.connections import ConnectionLimits
from registry_proxy.operations.discover import Discover
from registry_proxy.operations.manage import Manage
from registry_proxy.operations.pull import Pull
from registry_proxy.operations.push import Push, PushedManifest, UploadAnswer
from registry_proxy.operations.referrers import Referrers, ReferrersPage
from registry_proxy.operations.tags import TagRules
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.history import Cause
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.ports.outbox import Actor
from registry_proxy.ports.uploads import UploadBody, Uploader, UploadRef
from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, Descriptor
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, Tag, digest_of
from registry_proxy.protocol.referrers import Referrer, index_of
from registry_proxy.protocol.scope import Action, parse_scopes
from tests.support.fakes.listeners import any_connections
from tests.support.fakes.memory import (
    MemoryAudit,
    MemoryCache,
    MemoryHoldings,
    MemoryPulls,
    MemoryReader,
    RecordingObserver,
    holdings_of,
)

SERVICE = "registry-proxy"


def grant(subject: str, repository: str, *actions: str, tags: str = "*", mode: str = "enforce") -> Grant:
    """Return a grant that never expires."""
    name = f"{subject}-{repository}-{'-'.join(actions)}"
    allowed = frozenset(map(Action, actions))
    return Grant(id=name, subject=subject, repository=repository, actions=allowed, tags=tags, mode=GrantMode(mode))


class FakeControl:
    """An ``AccessControl`` over a fixed policy; the password of each user is its name and "-password"."""

    def __init__(self, verifier: TokenVerifier) -> None:
        self.grants: list[Grant] = []
        self.generations: dict[str, int] = {}
        self.is_away = False
        self.is_limited = False
        self._verifier = verifier
        self.logins: list[tuple[str, str]] = []
        self.id_tokens: dict[str, LoginResult | Exception] = {}
        self.oidc_groups: dict[str, tuple[str, ...]] = {}

    async def policy(self) -> Policy:
        if self.is_away:
            raise StoreUnavailableError("away")
        return self._policy()

    def _policy(self) -> Policy:
        users = [User(name, "", is_admin=name == "admin") for name in ("ann", "bob", "admin")]
        return Policy(users, [], self.grants, self.generations, oidc_groups=self.oidc_groups)

    async def renewed_policy(self) -> Policy:
        return await self.policy()

    def policy_now(self) -> Policy | None:
        return None if self.is_away else self._policy()

    def verify(self, token: str, policy: Policy, now: float) -> VerifiedToken:
        verified = self._verifier.verify(token, now)
        if verified.generation != policy.generation(verified.subject):
            raise InvalidTokenError("the token was revoked")
        return verified

    async def authenticate(self, token: str, now: float) -> tuple[VerifiedToken, Policy]:
        policy = await self.policy()
        return self.verify(token, policy, now), policy

    async def login(self, username: str, password: str, address: str) -> LoginResult:
        self.logins.append((username, address))
        if self.is_limited:
            raise TooManyLoginsError(7)
        if username == "oidc" and password in self.id_tokens:
            outcome = self.id_tokens[password]
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        if password != f"{username}-password":
            raise LoginRefusedError("no", "who knows why")
        return LoginResult(f"user:{username}", is_own_password=True)

    async def public_keys(self) -> dict[str, Any]:
        return {"keys": [{"kty": "EC"}]}


@dataclass
class FakePush:
    """A ``Push`` that keeps bodies in memory, session IDs of its subject, and every call."""

    calls: list[tuple[object, ...]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    sessions: dict[str, str] = field(default_factory=dict)
    mounted: Descriptor | None = None
    known: set[str] = field(default_factory=set)
    """Repositories that are known to hold every blob."""
    missing: set[Digest] = field(default_factory=set)
    manifest_subject: Digest | None = None
    error: Exception | None = None

    async def _read(self, body: AsyncIterator[bytes]) -> bytes:
        if self.error is not None:
            raise self.error
        content = b"".join([chunk async for chunk in body])
        self.bodies.append(content)
        return content

    def _check(self, upload: UploadRef) -> None:
        is_theirs = self.sessions.get(upload.session_id) == upload.uploader.subject
        if not is_theirs or upload.state != f"state of {upload.session_id}":
            raise RegistryError(ErrorCode.BLOB_UPLOAD_UNKNOWN, "no such upload")

    def find_known(self, routed: RoutedRepository, digest: Digest) -> Descriptor | None:
        return Descriptor(BLOB_MEDIA_TYPE, digest, 1) if routed.repository in self.known else None

    async def start_upload(self, routed: RoutedRepository, uploader: Uploader) -> UploadAnswer:
        self.calls.append(("start", str(routed), uploader.subject))
        session_id = f"session-{len(self.sessions)}"
        self.sessions[session_id] = uploader.subject
        return UploadAnswer(session_id, f"state of {session_id}", 0)

    async def append_upload(self, upload: UploadRef, body: UploadBody) -> UploadAnswer:
        self.calls.append(("append", str(upload.routed), body.size_bytes, body.chunk))
        self._check(upload)
        content = await self._read(body.pieces)
        return UploadAnswer(upload.session_id, f"state of {upload.session_id}", len(content))

    async def commit_upload(self, upload: UploadRef, digest: Digest, body: UploadBody) -> Descriptor:
        self.calls.append(("commit", str(upload.routed), body.size_bytes, body.chunk))
        self._check(upload)
        return Descriptor(BLOB_MEDIA_TYPE, digest, len(await self._read(body.pieces)))

    async def push_blob(
        self, routed: RoutedRepository, uploader: Uploader, digest: Digest, body: UploadBody
    ) -> Descriptor:
        self.calls.append(("push", str(routed), uploader.subject, body.size_bytes))
        return Descriptor(BLOB_MEDIA_TYPE, digest, len(await self._read(body.pieces)))

    async def upload_status(self, upload: UploadRef) -> UploadAnswer:
        self.calls.append(("status", str(upload.routed)))
        self._check(upload)
        return UploadAnswer(upload.session_id, f"state of {upload.session_id}", 5)

    async def cancel_upload(self, upload: UploadRef) -> None:
        self.calls.append(("cancel", str(upload.routed)))
        self._check(upload)

    async def is_everywhere(self, routed: RoutedRepository, kind: ContentKind, digest: Digest) -> bool:
        self.calls.append(("everywhere", str(routed), kind, str(digest)))
        return digest not in self.missing

    async def mount_blob(self, routed: RoutedRepository, digest: Digest, source: RoutedRepository) -> Descriptor | None:
        self.calls.append(("mount", str(routed), str(source), str(digest)))
        return self.mounted

    async def put_manifest(
        self,
        routed: RoutedRepository,
        tag_or_digest: Tag | Digest,
        media_type: str,
        body: bytes,
        *,
        tags: Sequence[Tag] = (),
        may_move_tags: bool,
        cause: Cause | None = None,  # noqa: ARG002 - no events are kept here
    ) -> PushedManifest:
        self.calls.append(("manifest", str(routed), str(tag_or_digest), *tags, media_type, may_move_tags))
        self.bodies.append(body)
        return PushedManifest(Descriptor(media_type, digest_of(body), len(body)), self.manifest_subject)


@dataclass
class FakeReferrers:
    """A ``Referrers`` that answers with an index of its arguments; ``last`` is where its next part begins."""

    last: str | None = None
    error: Exception | None = None

    async def list_page(
        self,
        routed: RoutedRepository,
        subject: Digest,
        artifact_type: str | None,
        *,
        last: str | None = None,
        page_size: int | None = None,
    ) -> ReferrersPage:
        if self.error is not None:
            raise self.error
        fields = {"asked": [str(routed), str(subject), artifact_type, last, page_size]}
        return ReferrersPage(index_of([Referrer(subject, fields)]), self.last)


@dataclass
class FakeManage:
    """A ``Manage`` that only records its calls."""

    calls: list[tuple[str, str]] = field(default_factory=list)

    async def delete_manifest(
        self,
        routed: RoutedRepository,
        tag_or_digest: Tag | Digest,
        actor: Actor | None = None,  # noqa: ARG002 - no events are kept here
    ) -> Digest:
        self.calls.append(("manifest", f"{routed} {tag_or_digest}"))
        return tag_or_digest if isinstance(tag_or_digest, Digest) else digest_of(tag_or_digest.encode())

    async def delete_blob(self, routed: RoutedRepository, digest: Digest) -> None:
        self.calls.append(("blob", f"{routed} {digest}"))


class OneUpstream:
    """A ``Router`` with everything in ``main``; ``ns=docker.io`` means ``hub/``."""

    upstreams = ("main",)

    def canonical(self, repository: Repository, source_host: str | None) -> Repository:
        if source_host not in {None, "docker.io"}:
            raise RegistryError(ErrorCode.NAME_UNKNOWN, "no such source")
        return repository if source_host is None else Repository(f"hub/{repository}")

    def route(self, canonical: Repository) -> RoutedRepository:
        return RoutedRepository("main", canonical)

    def local_name(self, routed: RoutedRepository) -> Repository | None:
        return routed.repository

    def reserves_names(self, upstream: str) -> bool:
        return upstream == "main"

    def may_lead(self, pattern: str, upstream: str) -> bool:  # noqa: ARG002 - everything lies in the one
        return True


@dataclass(frozen=True)
class Raw:
    """The bytes of a raw connection until its end."""

    data: bytes

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1]) if self.data.startswith(b"HTTP/1.") else 0

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]


@dataclass
class PublicBench:
    """A running public listener and the fakes behind it."""

    directory: Path
    options: PublicOptions = field(default_factory=lambda: PublicOptions(service=SERVICE))
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    reader: MemoryReader = field(default_factory=MemoryReader)
    cache: MemoryCache = field(default_factory=MemoryCache)
    holdings: MemoryHoldings = field(default_factory=MemoryHoldings)
    observer: RecordingObserver = field(default_factory=RecordingObserver)
    audit: MemoryAudit = field(default_factory=MemoryAudit)
    pulls: MemoryPulls = field(default_factory=MemoryPulls)
    push: FakePush = field(default_factory=FakePush)
    referrers: FakeReferrers = field(default_factory=FakeReferrers)
    manage: FakeManage = field(default_factory=FakeManage)
    port: int = 0

    def __post_init__(self) -> None:
        key_file = self.directory / f"key-{hashlib.sha256(repr(self.options).encode()).hexdigest()[:8]}.pem"
        if not key_file.exists():
            create_key_file(str(key_file))
        self.signer = TokenSigner(str(key_file), SERVICE, 300)
        verifier = TokenVerifier(SERVICE)
        verifier.set_keys({self.signer.key_id: public_key_of(self.signer.public_jwk)})
        self.control = FakeControl(verifier)
        self.server: PublicServer | None = None
        self.logged: list[Mapping[str, Any]] = []

    def make_app(self) -> PublicApp:
        readers = {"main": self.reader}
        pull = Pull(
            readers=readers,
            impatient_readers=readers,
            cache=self.cache,
            holdings=self.holdings,
            proofs=holdings_of(self.reader, self.holdings, self.cache),
            observer=self.observer,
            tag_rules={"main": TagRules(10)},
        )
        return PublicApp(
            pull=pull,
            push=cast(Push, self.push),
            discover=Discover(readers=readers, router=OneUpstream()),
            referrers=cast(Referrers, self.referrers),
            manage=cast(Manage, self.manage),
            router=OneUpstream(),
            control=cast(AccessControl, self.control),
            directory=cast(Directory, None),
            signer=self.signer,
            observer=self.observer,
            audit=self.audit,
            pulls=self.pulls,
            log_request=self.logged.append,
            options=self.options,
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["PublicBench"]:
        """Serve for the length of a with block."""
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        app = self.make_app()
        origins = Origins(self.options.public_url, self.options.trusted_proxies)
        self.connections = any_connections(self.limits, origins)
        self.server = await run_public(app.handle, [listening], self.connections, app.fast_path.answer)
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{self.port}", auto_decompress=False) as self.session:
                yield self
        finally:
            await self.server.drain(2, 0)
            await self.cache.aclose()

    def token(self, subject: str = "user:ann", *scopes: str, generation: int | None = None) -> str:
        """Return a token that carries the scopes; by default it may ask for everything on ``team/app``."""
        texts = scopes or ("repository:team/app:pull,push,delete",)
        current = self.control.generations.get(subject, 0) if generation is None else generation
        return self.signer.issue(subject, current, parse_scopes(texts), time.time()).token

    def bearer(self, subject: str = "user:ann", *scopes: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(subject, *scopes)}"}

    def allow(self, *actions: str, subject: str = "user:ann", repository: str = "team/app", tags: str = "*") -> None:
        self.control.grants.append(grant(subject, repository, *actions, tags=tags))

    async def raw(self, data: bytes, *, half_close: bool = False, timeout_seconds: float = 10) -> Raw:
        """Send bytes unchanged and return the answer until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            if half_close:
                writer.write_eof()
            async with asyncio.timeout(timeout_seconds):
                return Raw(await read_to_end(reader))
        finally:
            writer.close()

    def request(self, line: str, headers: Iterable[str] = (), *, token: bool = True) -> bytes:
        """Return the bytes of a request that closes its connection."""
        lines = [f"{line} HTTP/1.1", "Host: registry.example:5000", "Connection: close", *headers]
        if token:
            lines.append(f"Authorization: Bearer {self.token()}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Return the received bytes until the connection ends, by a reset too."""
    chunks: list[bytes] = []
    try:
        while chunk := await reader.read(1 << 20):
            chunks.append(chunk)
    except ConnectionResetError:
        chunks.append(b"")
    return b"".join(chunks)
