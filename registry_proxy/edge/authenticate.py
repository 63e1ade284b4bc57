"""The caller, and their right: only Bearer tokens, denied unless token and grants both allow it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from registry_proxy.access.control import AccessControl, PerhapsTooNewError
from registry_proxy.access.policy import Decision, Policy
from registry_proxy.access.required import required_access
from registry_proxy.access.tokens import InvalidTokenError, VerifiedToken
from registry_proxy.edge.exchange import Exchange
from registry_proxy.edge.origin import Origins
from registry_proxy.ports.events import AskedRight, AuditEvent, AuditLog
from registry_proxy.ports.metrics import AccessDecision, Observer
from registry_proxy.ports.names import RoutedRepository, Router
from registry_proxy.protocol.challenge import format_challenge
from registry_proxy.protocol.endpoints import (
    BlobRequest,
    CommitUploadRequest,
    ManifestRequest,
    Operation,
    ReferrersRequest,
    RegistryRequest,
    StartUploadRequest,
)
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository, is_repository
from registry_proxy.protocol.scope import Access, Action, format_scope, repository_access


class Authorized(NamedTuple):
    """A request that may be done.

    ``routed`` is None where the request names no repository. ``may_move_tags`` is False where only new tags may be
    made. ``question`` is what ``decision`` answers; both are for the counters and the audit log. ``further`` are those
    about the other tags of a push that sets several.
    """

    subject: str
    policy: Policy
    token: VerifiedToken
    routed: RoutedRepository | None = None
    may_move_tags: bool = True
    question: AskedRight | None = None
    decision: Decision | None = None
    further: tuple[tuple[AskedRight, Decision], ...] = ()

    @property
    def rule(self) -> str:
        """The grant that allows it, or the reason."""
        return "" if self.decision is None else self.decision.grant or self.decision.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Authenticator:
    """Decides about requests to /v2/.

    Args:
        control: verifies tokens and knows the policy.
        router: gives the names under which rights are judged.
        observer: receives each decision.
        audit: receives refusals and questions.
        origins: by which address the client called: its token endpoint lies there.
        service: the audience of our tokens.
    """

    control: AccessControl
    router: Router
    observer: Observer
    audit: AuditLog
    origins: Origins
    service: str

    async def authenticate(self, exchange: Exchange) -> None:
        """Return if the caller has a token that is good; what it asks for is not known.

        Raises:
            RegistryError: UNAUTHORIZED with the challenge.
            StoreUnavailableError: the policy cannot be known.
        """
        self._bearer(exchange, None)
        policy = await self.control.policy()
        try:
            self._verify(exchange, None, policy, is_renewed=False)
        except PerhapsTooNewError:
            self._verify(exchange, None, await self.control.renewed_policy(), is_renewed=True)

    async def authorize(self, exchange: Exchange, request: RegistryRequest) -> Authorized:
        """Return what the request may do, by the current policy; a permission is not counted yet.

        Raises:
            RegistryError: as ``decide``.
            StoreUnavailableError: the policy cannot be known.
        """
        self._bearer(exchange, request)  # an anonymous request needs no policy to be refused
        policy = await self.control.policy()
        try:
            return self.decide(exchange, request, policy)
        except PerhapsTooNewError:
            return self.decide(exchange, request, await self.control.renewed_policy(), is_renewed=True)

    def policy_now(self) -> Policy | None:
        """Return the current policy; None where it has to be waited for."""
        return self.control.policy_now()

    def decide(
        self, exchange: Exchange, request: RegistryRequest, policy: Policy, *, is_renewed: bool = False
    ) -> Authorized:
        """Return what the request may do, by subject and names alone, before anything is looked up.

        An error is counted, and in the audit log; a permission is not yet.

        Args:
            exchange: the request.
            request: the same, parsed.
            policy: the current one.
            is_renewed: the policy was read for this request: it cannot be older than the token.

        Raises:
            RegistryError: UNAUTHORIZED or DENIED, both 401 with a challenge; NAME_UNKNOWN for what is not routed.
            PerhapsTooNewError: the token may be newer than the policy, and nothing is decided.
        """
        token = self._verify(exchange, request, policy, is_renewed=is_renewed)
        canonical = self._canonical(request)
        access = required_access(request, canonical)
        if canonical is None or access is None:
            # /v2/ and the catalogue are for any valid token; the catalogue shows only what its caller may pull.
            return Authorized(token.subject, policy, token)
        question = token.subject, access.name, Action(next(iter(access.actions))), _tag(request)
        decision, may_move_tags = policy.decide_request(*question)
        if not decision.allowed or not token.allows("repository", question[1], question[2]):
            raise self._refusal(exchange, request, question, decision)
        further: tuple[tuple[AskedRight, Decision], ...] = ()
        if isinstance(request, ManifestRequest) and len(request.tags) > 1:
            further, may_move_others = self._decide_further(exchange, request, policy, question)
            may_move_tags = may_move_tags and may_move_others
        try:
            routed = self.router.route(canonical)
        except RegistryError:
            self.count(
                exchange,
                request,
                Authorized(token.subject, policy, token, routed=None, question=question, decision=decision),
            )
            raise
        return Authorized(token.subject, policy, token, routed, may_move_tags, question, decision, further)

    def _decide_further(
        self, exchange: Exchange, request: ManifestRequest, policy: Policy, first: AskedRight
    ) -> tuple[tuple[tuple[AskedRight, Decision], ...], bool]:
        """Decide about the tags behind the first one; return whether all of them may be moved as well."""
        decided, may_move_tags = [], True
        for tag in request.tags[1:]:
            question = *first[:3], tag
            decision, may_move = policy.decide_request(*question)
            if not decision.allowed:
                raise self._refusal(exchange, request, question, decision)
            decided.append((question, decision))
            may_move_tags = may_move_tags and may_move
        return tuple(decided), may_move_tags

    def count(self, exchange: Exchange, request: RegistryRequest, authorized: Authorized) -> None:
        """Count a permission, and record it in the audit log where that is wanted."""
        question, decision = authorized.question, authorized.decision
        if question is None or decision is None:
            return
        action = question[2]
        self.observer.observe(AccessDecision(action, "would_deny" if decision.would_deny else "allow"))
        self.audit.asked(question)
        for other, decided in authorized.further:
            self.observer.observe(AccessDecision(action, "would_deny" if decided.would_deny else "allow"))
            self.audit.asked(other)
        if self.audit.records_pulls and action is Action.PULL:
            self.audit.record(_event(question, request, exchange.address, "ok", authorized.rule))

    def may_read_source(
        self, exchange: Exchange, request: StartUploadRequest, authorized: Authorized, source: Repository
    ) -> bool:
        """Tell whether the source of a mount may be pulled; a no of the grants is no error there.

        Raises:
            RegistryError: 401 where the grants allow it and the token misses it; the challenge has both scopes, as that
                of distribution, and clients come back with such a token.
        """
        if not authorized.policy.decide(authorized.subject, source, Action.PULL).allowed:
            return False
        if not authorized.token.allows("repository", source, Action.PULL):
            raise self._challenge(
                exchange,
                request,
                ErrorCode.DENIED,
                f"the token does not carry {Action.PULL} on {source}, from which the blob would be mounted",
                error="insufficient_scope",
                detail={"repository": source, "action": Action.PULL.value},
                more=repository_access(source, Action.PULL),
            )
        return True

    def readable(self, authorized: Authorized) -> Iterator[Repository]:
        """Give the repositories that the token names, and that may be pulled from."""
        for key in authorized.token.access:
            name = key.removeprefix("repository:")
            if (
                name != key
                and is_repository(name)
                and authorized.token.allows("repository", name, Action.PULL)
                and authorized.policy.decide(authorized.subject, name, Action.PULL).allowed
            ):
                yield name

    def may_push(self, authorized: Authorized, request: RegistryRequest) -> bool:
        """Tell whether the caller of a read may push there as well; nothing is counted.

        For a blob the grants decide: notation asks for it with a token to pull, and pushes with another one. For a
        manifest the token has to allow it too: clients that pull ask for manifests by HEAD as well.
        """
        if request.operation is not Operation.HEAD_BLOB:
            return self.comes_to_push(authorized, request)
        repository = self._canonical(request)
        return repository is not None and self._may_push(authorized, request, repository)

    def comes_to_push(self, authorized: Authorized, request: RegistryRequest) -> bool:
        """Tell whether the caller of a read may push there, by its token too; nothing is counted."""
        repository = self._canonical(request)
        if repository is None or not authorized.token.allows("repository", repository, Action.PUSH):
            return False
        return self._may_push(authorized, request, repository)

    @staticmethod
    def _may_push(authorized: Authorized, request: RegistryRequest, repository: Repository) -> bool:
        decision, _ = authorized.policy.decide_request(authorized.subject, repository, Action.PUSH, _tag(request))
        return decision.allowed

    def _canonical(self, request: RegistryRequest) -> Repository | None:
        if request.repository is None:
            return None
        return self.router.canonical(request.repository, request.source_host)

    def _bearer(self, exchange: Exchange, request: RegistryRequest | None) -> str:
        """Return the text of the token. Raises RegistryError UNAUTHORIZED with the challenge."""
        headers = exchange.headers.getall("Authorization", [])
        if not headers:
            raise self._challenge(
                exchange, request, ErrorCode.UNAUTHORIZED, "log in first: this registry needs a token"
            )
        scheme, _, token = headers[0].strip().partition(" ")
        if len(headers) > 1 or scheme.lower() != "bearer":
            message = "exactly one Bearer token of the token endpoint is accepted here"
            raise self._challenge(exchange, request, ErrorCode.UNAUTHORIZED, message)
        return token.strip()

    def _verify(
        self, exchange: Exchange, request: RegistryRequest | None, policy: Policy, *, is_renewed: bool
    ) -> VerifiedToken:
        token = self._bearer(exchange, request)
        try:
            verified = self.control.verify(token, policy, time.time())
        except InvalidTokenError as error:
            if isinstance(error, PerhapsTooNewError) and not is_renewed:
                raise
            self.audit.record(AuditEvent("token", "refused", address=exchange.address, rule=str(error)))
            message = f"the token is not accepted: {error}"
            raise self._challenge(exchange, request, ErrorCode.UNAUTHORIZED, message, error="invalid_token") from error
        exchange.subject = verified.subject
        return verified

    def _refusal(
        self, exchange: Exchange, request: RegistryRequest, question: AskedRight, decision: Decision
    ) -> RegistryError:
        _, repository, action, _ = question
        reason = decision.reason if not decision.allowed else f"the token does not carry {action} on {repository}"
        self.observer.observe(AccessDecision(action, "deny"))
        self.audit.asked(question)
        self.audit.record(_event(question, request, exchange.address, "denied", reason))
        return self._challenge(
            exchange,
            request,
            ErrorCode.DENIED,
            f"requested access to {repository} is denied: {reason}",
            error="insufficient_scope",
            detail={"repository": repository, "action": action.value},
        )

    def _challenge(
        self,
        exchange: Exchange,
        request: RegistryRequest | None,
        code: ErrorCode,
        message: str,
        *,
        error: str | None = None,
        detail: object = None,
        more: Access | None = None,
    ) -> RegistryError:
        realm = self.origins.url(exchange) + "/auth/token"
        scope = None if request is None else self._scope(request)
        if scope is not None and more is not None:
            scope = f"{scope} {format_scope(more)}"
        challenge = format_challenge(realm, self.service, scope, error)
        return RegistryError(code, message, detail=detail, headers={"WWW-Authenticate": challenge})

    def _scope(self, request: RegistryRequest) -> str | None:
        try:
            access = required_access(request, self._canonical(request))
        except RegistryError:
            return None
        if access is None:
            return None
        if Action.PUSH in access.actions:
            # A push reads before it writes; clients ask for both, and some only for the scope of the challenge.
            access = Access(access.type, access.name, access.actions | {Action.PULL})
        return format_scope(access)


def _tag(request: RegistryRequest) -> str | None:
    if not isinstance(request, ManifestRequest):
        return None
    if isinstance(request.tag_or_digest, Digest):
        return request.tags[0] if request.tags else None
    return request.tag_or_digest


def digest_named_by(request: RegistryRequest) -> Digest | None:
    """Return the digest that a request names; None for none."""
    match request:
        case ManifestRequest(tag_or_digest=Digest() as digest):
            return digest
        case BlobRequest() | CommitUploadRequest() | StartUploadRequest() | ReferrersRequest():
            return request.digest
        case _:
            return None


def _event(question: AskedRight, request: RegistryRequest, address: str, outcome: str, rule: str) -> AuditEvent:
    subject, repository, action, tag = question
    digest = digest_named_by(request)
    return AuditEvent(
        action.value,
        outcome,
        subject=subject,
        address=address,
        repository=repository,
        tag=tag or "",
        digest="" if digest is None else str(digest),
        rule=rule,
        detail={"operation": request.operation.label},
    )
