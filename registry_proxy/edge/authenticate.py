"""The caller, and their right: only Bearer tokens, denied unless token and grants both allow it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from registry_proxy.access.control import AccessControl
from registry_proxy.access.grants import Decision, Policy
from registry_proxy.access.required import required_access
from registry_proxy.access.tokens import InvalidTokenError, VerifiedToken
from registry_proxy.edge.exchange import Exchange
from registry_proxy.edge.origin import Origins
from registry_proxy.ports.events import AskedRight, AuditEvent, AuditLog
from registry_proxy.ports.metrics import AccessDecision, Observer
from registry_proxy.ports.names import RoutedRepository, Router
from registry_proxy.protocol.challenge import format_challenge
from registry_proxy.protocol.endpoints import Operation, RegistryRequest
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, Repository
from registry_proxy.protocol.scope import Access, Action, format_scope


@dataclass(frozen=True, slots=True)
class Authorized:
    """A request that may be done.

    ``routed`` is None where the request names no repository. ``may_move_tags`` is False where only new tags may be
    made. ``asked`` is what was decided, ``rule`` by which grant or for which reason; both are for the audit log.
    """

    subject: str
    policy: Policy
    token: VerifiedToken
    routed: RoutedRepository | None
    may_move_tags: bool = True
    asked: AskedRight | None = None
    rule: str = ""


class Authenticator:
    """Decides about requests to /v2/.

    Args:
        control: verifies tokens and knows the policy.
        router: gives the names under which rights are judged.
        observer: is told each decision.
        audit: is told what was refused, and what was asked.
        origins: by which address the client called: its token endpoint lies there.
        service: the audience of our tokens.
    """

    def __init__(
        self,
        *,
        control: AccessControl,
        router: Router,
        observer: Observer,
        audit: AuditLog,
        origins: Origins,
        service: str,
    ) -> None:
        self._control = control
        self._router = router
        self._observer = observer
        self._audit = audit
        self._records_pulls = audit.records_pulls
        self._origins = origins
        self._service = service

    async def authenticate(self, exchange: Exchange, wanted: RegistryRequest | None) -> tuple[VerifiedToken, Policy]:
        """Return the caller's token and the policy that holds now.

        Args:
            exchange: the request.
            wanted: what it asks for, for the challenge; None when that is not known.

        Raises:
            RegistryError: UNAUTHORIZED with the challenge.
            StoreUnavailableError: the policy cannot be known.
        """
        headers = exchange.request.headers.getall("Authorization", [])
        if not headers:
            raise self._challenge(exchange, wanted, ErrorCode.UNAUTHORIZED, "log in first: this registry needs a token")
        token = _bearer_token(headers)
        if token is None:
            message = "only one Bearer token, of the token endpoint, is taken here"
            raise self._challenge(exchange, wanted, ErrorCode.UNAUTHORIZED, message)
        try:
            verified, policy = await self._control.authenticate(token, time.time())
        except InvalidTokenError as error:
            self._audit.record(AuditEvent("token", "refused", address=exchange.address, rule=str(error)))
            message = f"the token is not accepted: {error}"
            raise self._challenge(exchange, wanted, ErrorCode.UNAUTHORIZED, message, error="invalid_token") from error
        exchange.subject = verified.subject
        return verified, policy

    async def authorize(self, exchange: Exchange, wanted: RegistryRequest) -> Authorized:
        """Return what the request may do, decided by subject and names alone, before anything is looked up.

        Raises:
            RegistryError: UNAUTHORIZED or DENIED, both 401 with a challenge; NAME_UNKNOWN for what is not routed.
            StoreUnavailableError: the policy cannot be known.
        """
        token, policy = await self.authenticate(exchange, wanted)
        canonical = self._canonical(wanted)
        access = required_access(wanted, canonical)
        if canonical is None or access is None:
            # /v2/ and the catalogue are for any valid token; the catalogue shows only what its caller may pull.
            return Authorized(token.subject, policy, token, None)
        return self._judge(exchange, wanted, token, policy, access)

    def authorize_now(self, headers: Sequence[str], wanted: RegistryRequest) -> tuple[Authorized, Decision] | None:
        """Do what ``authorize`` does for a pull that is allowed, and without waiting; None for all else.

        The decision is not counted yet: ``allowed`` does that once the request is sure to be answered.

        Args:
            headers: the values of Authorization.
            wanted: what is asked for; it names a repository.
        """
        bearer, policy = _bearer_token(headers), self._control.policy_now()
        if bearer is None or policy is None:
            return None
        try:
            token = self._control.verify(bearer, policy, time.time())
            access = required_access(wanted, self._canonical(wanted))
            if access is None:
                return None
            asked = _question(token, wanted, access)
            decision, may_move_tags, is_allowed = _weigh(policy, token, asked)
            if not is_allowed:
                return None
            routed = self._router.route(Repository(access.name))
        except (InvalidTokenError, RegistryError):
            return None
        rule = decision.grant or decision.reason
        return Authorized(token.subject, policy, token, routed, may_move_tags, asked=asked, rule=rule), decision

    def allowed(self, asked: AskedRight, decision: Decision, wanted: RegistryRequest, address: str) -> None:
        """Count a permission, and tell the audit log what it wants to know of it."""
        action = asked[2]
        self._observer.observe(AccessDecision(action, "would_deny" if decision.would_deny else "allow"))
        self._audit.asked(asked)
        if self._records_pulls and action is Action.PULL:
            self._audit.record(_event(asked, wanted, address, "ok", decision.grant or decision.reason))

    def may_read_source(self, authorized: Authorized, source: Repository) -> bool:
        """Tell whether the source of a mount may be pulled, by token and grants; a no is no error there."""
        if not authorized.token.allows("repository", source, Action.PULL):
            return False
        return authorized.policy.decide(authorized.subject, source, Action.PULL).allowed

    def may_push(self, authorized: Authorized, wanted: RegistryRequest) -> bool:
        """Tell whether the caller of a read may push there as well; nothing is counted.

        For a blob the grants decide: notation asks for it with a token to pull, and pushes with another one. For a
        manifest the token has to allow it too: clients that pull ask for manifests by HEAD as well.
        """
        if wanted.operation is not Operation.HEAD_BLOB:
            return self.comes_to_push(authorized, wanted)
        repository = self._canonical(wanted)
        return repository is not None and self._may_push(authorized, wanted, repository)

    def comes_to_push(self, authorized: Authorized, wanted: RegistryRequest) -> bool:
        """Tell whether the caller of a read may push there, by its token too; nothing is counted."""
        repository = self._canonical(wanted)
        if repository is None or not authorized.token.allows("repository", repository, Action.PUSH):
            return False
        return self._may_push(authorized, wanted, repository)

    @staticmethod
    def _may_push(authorized: Authorized, wanted: RegistryRequest, repository: Repository) -> bool:
        decision, _ = authorized.policy.decide_request(authorized.subject, repository, Action.PUSH, _tag(wanted))
        return decision.allowed

    def _canonical(self, wanted: RegistryRequest) -> Repository | None:
        if wanted.repository is None:
            return None
        return self._router.canonical(wanted.repository, wanted.source_host)

    def _judge(
        self, exchange: Exchange, wanted: RegistryRequest, token: VerifiedToken, policy: Policy, access: Access
    ) -> Authorized:
        repository = Repository(access.name)
        action = Action(next(iter(access.actions)))
        asked = _question(token, wanted, access)
        decision, may_move_tags, is_allowed = _weigh(policy, token, asked)
        if is_allowed:
            self.allowed(asked, decision, wanted, exchange.address)
            routed = self._router.route(repository)
            rule = decision.grant or decision.reason
            return Authorized(token.subject, policy, token, routed, may_move_tags, asked=asked, rule=rule)
        reason = decision.reason if not decision.allowed else f"the token does not carry {action} on {repository}"
        refusal = self._challenge(
            exchange,
            wanted,
            ErrorCode.DENIED,
            f"requested access to {repository} is denied: {reason}",
            error="insufficient_scope",
            detail={"repository": repository, "action": action.value},
        )
        self._observer.observe(AccessDecision(action, "deny"))
        self._audit.asked(asked)
        self._audit.record(_event(asked, wanted, exchange.address, "denied", reason))
        raise refusal

    def _challenge(
        self,
        exchange: Exchange,
        wanted: RegistryRequest | None,
        code: ErrorCode,
        message: str,
        *,
        error: str | None = None,
        detail: object = None,
    ) -> RegistryError:
        realm = self._origins.url(exchange.request) + "/auth/token"
        scope = None if wanted is None else self._scope(wanted)
        challenge = format_challenge(realm, self._service, scope, error)
        return RegistryError(code, message, detail=detail, headers={"WWW-Authenticate": challenge})

    def _scope(self, wanted: RegistryRequest) -> str | None:
        try:
            access = required_access(wanted, self._canonical(wanted))
        except RegistryError:
            return None
        if access is None:
            return None
        if Action.PUSH in access.actions:
            # A push reads before it writes; clients ask for both, and some only for what they are told.
            access = Access(access.type, access.name, access.actions | {Action.PULL})
        return format_scope(access)


def _bearer_token(headers: Sequence[str]) -> str | None:
    scheme, _, token = "".join(headers[:1]).strip().partition(" ")
    return None if len(headers) != 1 or scheme.lower() != "bearer" else token.strip()


def _tag(wanted: RegistryRequest) -> str | None:
    return None if isinstance(wanted.tag_or_digest, Digest) else wanted.tag_or_digest


def _question(token: VerifiedToken, wanted: RegistryRequest, access: Access) -> AskedRight:
    return token.subject, access.name, Action(next(iter(access.actions))), _tag(wanted)


def _weigh(policy: Policy, token: VerifiedToken, asked: AskedRight) -> tuple[Decision, bool, bool]:
    """Return the decision, whether existing tags may be moved, and whether grants and token both allow it."""
    decision, may_move_tags = policy.decide_request(*asked)
    return decision, may_move_tags, decision.allowed and token.allows("repository", asked[1], asked[2])


def _event(asked: AskedRight, wanted: RegistryRequest, address: str, outcome: str, rule: str) -> AuditEvent:
    subject, repository, action, tag = asked
    digest = wanted.digest or (wanted.tag_or_digest if isinstance(wanted.tag_or_digest, Digest) else None)
    return AuditEvent(
        action.value,
        outcome,
        subject=subject,
        address=address,
        repository=repository,
        tag=tag or "",
        digest="" if digest is None else str(digest),
        rule=rule,
        detail={"operation": wanted.operation.name.lower()},
    )
