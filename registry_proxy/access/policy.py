"""Decisions about rights: pure, on an immutable snapshot. A right that nobody granted is denied."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from registry_proxy.access.grant import Grant, GrantMode
from registry_proxy.access.grants import CompiledGrants, GrantIndex, given_by, own_pattern
from registry_proxy.access.records import Group, Robot, User
from registry_proxy.access.secrets import Secret
from registry_proxy.access.subject import (
    ANONYMOUS,
    Subject,
    SubjectKind,
    group_subject,
    oidc_rule,
    parse_subject,
    robot_subject,
    user_subject,
)
from registry_proxy.protocol.patterns import is_below
from registry_proxy.protocol.scope import CATALOG, Access, Action, is_repository_access
from registry_proxy.protocol.times import format_rfc3339

_REMEMBERED_BYTES = 24 * 1024 * 1024
_ENTRY_BYTES = 600  # of a decision that is remembered, besides the names, which its reason repeats
_REMEMBERED_SUBJECTS = 10_000


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one question.

    ``would_deny`` marks what only grants in mode ``warn`` allowed. ``grant`` is the id of the grant that decided, None
    for administrators and refusals. ``reason`` is a sentence for people.
    """

    allowed: bool
    would_deny: bool = False
    grant: str | None = None
    reason: str = ""


class _Question(NamedTuple):
    """Whether a subject may do something; ``needs_all_tags``: only a grant for all tags is enough."""

    subject: str
    repository: str
    action: Action
    tag: str | None
    needs_all_tags: bool


def _question(subject: str, repository: str, action: Action, tag: str | None) -> _Question:
    return _Question(subject, repository, action, tag, needs_all_tags=action is Action.DELETE and tag is None)


class Policy:
    """A snapshot of all that decides, compiled; never changed, so that what was decided once can be remembered.

    Args:
        users: all users.
        groups: all groups.
        grants: all grants; an expired one counts for nothing.
        generations: by subject; tokens of an older generation are revoked.
        robots: all robots.
        secrets: all secrets; a token that came from one is revoked with it.
        revoked_tokens: ids of revoked tokens.
        oidc_groups: by rule of the configuration, as ``ISSUER/RULE``: the groups of all its subjects.
    """

    def __init__(
        self,
        users: Collection[User],
        groups: Collection[Group],
        grants: Iterable[Grant] | CompiledGrants,
        generations: Mapping[str, int],
        *,
        robots: Collection[Robot] = (),
        secrets: Collection[Secret] = (),
        revoked_tokens: Collection[str] = (),
        oidc_groups: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> None:
        self._parts = (users, groups, generations, robots, secrets, revoked_tokens, oidc_groups)
        self._oidc_groups = oidc_groups
        self._groups = {group_subject(group.name) for group in groups}
        self._groups |= {group_subject(group) for named in oidc_groups.values() for group in named}
        self._users = {user_subject(user.name): user for user in users}
        self._robots = {robot_subject(robot.name): robot for robot in robots}
        self._secrets = {secret.id: secret for secret in secrets}
        self._revoked_tokens = frozenset(revoked_tokens)
        self._generations = dict(generations)
        memberships: dict[str, list[str]] = {}
        for group in groups:
            for member in group.members:
                memberships.setdefault(user_subject(member), []).append(group_subject(group.name))
        self._memberships = memberships
        self._grants = grants if isinstance(grants, CompiledGrants) else CompiledGrants(grants)
        # (subject, repository, action, tag) -> the decision, and until when it holds
        self._decided: dict[tuple[str, str, Action, str | None], tuple[Decision, float | None]] = {}
        self._decided_bytes = 0
        # (subject, action) -> all grants of the action that the subject has part in
        self._held: dict[tuple[str, Action], GrantIndex] = {}

    def with_grants(self, grants: Iterable[Grant], members: Mapping[str, Sequence[str]] | None = None) -> "Policy":
        """Return the same policy with these grants instead of its own, and other members of groups that are named."""
        users, groups, generations, robots, secrets, revoked_tokens, oidc_groups = self._parts
        if members:
            others = [group for group in groups if group.name not in members]
            groups = [*others, *(Group(name, tuple(inside)) for name, inside in members.items())]
        return Policy(
            users,
            groups,
            grants,
            generations,
            robots=robots,
            secrets=secrets,
            revoked_tokens=revoked_tokens,
            oidc_groups=oidc_groups,
        )

    def generation(self, subject: str) -> int | None:
        """Return the generation that a token of the subject must have; None when it may have none at all."""
        user = self._users.get(subject)
        if user is not None:
            may_have_one = not user.is_disabled
        elif (robot := self._robots.get(subject)) is not None:
            may_have_one = robot.is_valid(time.time())
        else:
            may_have_one = subject == ANONYMOUS or oidc_rule(subject) in self._oidc_groups
        return self._generations.get(subject, 0) if may_have_one else None

    def find_robot(self, subject: str) -> Robot | None:
        """Return a robot."""
        return self._robots.get(subject)

    def find_secret(self, secret_id: str) -> Secret | None:
        """Return a secret, which may have expired."""
        return self._secrets.get(secret_id)

    def is_revoked(self, token_id: str) -> bool:
        """Tell whether this one token is revoked."""
        return token_id in self._revoked_tokens

    def is_admin(self, subject: str) -> bool:
        """Tell whether the subject is an administrator."""
        user = self._users.get(subject)
        return user is not None and user.is_admin and not user.is_disabled

    def groups_of(self, subject: str) -> Sequence[str]:
        """Return the groups that a user or an ID token's subject is in, each as ``group:dev``."""
        rule = oidc_rule(subject)
        if rule is None:
            return self._memberships.get(subject, ())
        return [group_subject(group) for group in self._oidc_groups.get(rule, ())]

    def grants_of(self, subject: str) -> list[Grant]:
        """Return the grants to a subject, its groups and everyone, also those that have expired."""
        holders = dict.fromkeys((subject, *self.groups_of(subject), ANONYMOUS))
        return [compiled.grant for holder in holders for compiled in self._grants.by_subject.get(holder, ())]

    def find_equal(self, grant: Grant) -> Grant | None:
        """Return the grant that says the same as this one, whatever their ids; None without one."""
        content = grant.content()
        equal = (each.grant for each in self._grants.by_subject.get(grant.subject, ()))
        return next((each for each in equal if each.content() == content), None)

    def count_grants_below(self, namespaces: Collection[str]) -> int:
        """Return how many grants are for nothing but what lies in some namespaces, such as ``team/**``."""
        return sum(_lies_in(grant, namespaces) for grant in self._grants.by_id.values())

    def why_of_no_use(self, subject: str) -> str | None:
        """Return why what is granted to a subject is of no use to anybody now; None where it may be."""
        if subject.startswith(f"{SubjectKind.GROUP}:"):
            is_known = subject in self._groups
            return None if is_known else f"there is no {subject}, and no rule of auth.oidc puts anybody into it"
        return self._subject_fault(subject, time.time())

    def namespaces(self, subject: str) -> tuple[str, ...]:
        """Return the namespaces in which a subject gives and takes rights, as patterns such as ``team/**``, sorted."""
        now = time.time()
        if self._subject_fault(subject, now) is not None:
            return ()
        grants = [compiled.grant for compiled in self._hold(subject, Action.MANAGE)]
        patterns = [own_pattern(each.repository, subject) for each in grants if not _has_ended(each, now)]
        return tuple(sorted({pattern for pattern in patterns if pattern is not None}))

    def patterns(self, subject: str, action: Action) -> Sequence[str]:
        """Return patterns within which lies every repository where a subject may do an action."""
        if self.is_admin(subject):
            return ["**"]
        now = time.time()
        grants = [
            each for each in self.grants_of(subject) if action in given_by(each.actions) and not _has_ended(each, now)
        ]
        own = (own_pattern(each.repository, subject) for each in grants)
        return sorted({pattern for pattern in own if pattern is not None})

    def decide(
        self, subject: str, repository: str, action: Action, tag: str | None = None, now: float | None = None
    ) -> Decision:
        """Decide one action.

        For a push that may only make new tags, ask for ``PUSH`` first and for ``CREATE`` when that is refused.

        Args:
            subject: such as ``user:ann`` or ``anonymous``; a group is judged by its own grants.
            repository: the canonical name.
            action: what it wants to do.
            tag: on which tag; None where no single tag is meant (blobs, digests, uploads): then a grant for any tag is
                enough, except for DELETE, which takes all tags of a digest with it and needs a grant for all.
            now: Unix seconds; None takes the clock.
        """
        key = (subject, repository, action, tag)
        known = self._decided.get(key)
        if known is not None:
            decision, until = known
            if until is None or (time.time() if now is None else now) < until:
                return decision
        now = time.time() if now is None else now
        decision, until = self._judge(_question(*key), now)
        if self._decided_bytes >= _REMEMBERED_BYTES:
            self._decided.clear()  # names come from callers: memory must stay bounded
            self._decided_bytes = 0
        self._decided[key] = (decision, until)
        names_bytes = len(subject) + len(repository) + len(tag or "")
        self._decided_bytes += _ENTRY_BYTES + names_bytes + len(decision.reason)
        return decision

    def decide_request(self, subject: str, repository: str, action: Action, tag: str | None) -> tuple[Decision, bool]:
        """Decide what a request asks for; return with it whether a push may move tags that exist.

        The right to create is enough for a push of blobs, and of tags that do not exist yet.
        """
        decision = self.decide(subject, repository, action, tag)
        if action is not Action.PUSH or decision.allowed:
            return decision, True
        created = self.decide(subject, repository, Action.CREATE, tag)
        return (created, False) if created.allowed else (decision, False)

    def explain(
        self,
        subject: str,
        repository: str,
        action: Action,
        tag: str | None = None,
        *,
        namespaces: Collection[str] | None = None,
    ) -> Decision:
        """Return what ``decide_request`` says, with the reason for people.

        A push that may only make new tags is allowed, and the reason says so. A refusal names the grant that allowed it
        before it expired. A grant for some tags allows every digest, which the reason says where no tag is named.

        Args:
            subject: see ``decide``, also for what follows.
            repository: in question.
            action: in question.
            tag: in question.
            namespaces: patterns the caller owns. Grants outside them, the subject's groups, and whether it exists, is
                enabled or an administrator, are left out: the answer says what grants allow. None for an administrator.
        """
        question = _question(subject, repository, action, tag)
        decide = self.decide_request if namespaces is None else self._decide_by_grants
        decision, may_move_tags = decide(subject, repository, action, tag)
        explanation = self._explained(decision, question, namespaces)
        if explanation.allowed and not may_move_tags:
            explanation = replace(
                explanation, reason=f"{explanation.reason}: new tags only, no grant lets {subject} move tags that exist"
            )
        if action is Action.PULL and tag is None and self._is_for_some_tags(explanation.grant):
            explanation = replace(explanation, reason=f"{explanation.reason}; by digest, any manifest of {repository}")
        if explanation.allowed or (ended := self._ended(question, namespaces)) is None:
            return explanation
        return replace(explanation, reason=f"{explanation.reason}; {ended}")

    def _decide_by_grants(
        self, subject: str, repository: str, action: Action, tag: str | None
    ) -> tuple[Decision, bool]:
        """Decide as ``decide_request`` does of a user who exists, is enabled, and is no administrator."""
        now = time.time()
        decision, _ = self._weigh(_question(subject, repository, action, tag), now)
        if action is not Action.PUSH or decision.allowed:
            return decision, True
        created, _ = self._weigh(_question(subject, repository, Action.CREATE, tag), now)
        return (created, False) if created.allowed else (decision, False)

    def _is_for_some_tags(self, grant_id: str | None) -> bool:
        grant = self._grants.by_id.get(grant_id or "")
        return grant is not None and grant.tags.strip("*") != ""

    def _ended(self, question: _Question, namespaces: Collection[str] | None) -> str | None:
        """Tell of the grant that allowed it until it ended, the last one if there were several."""
        now = time.time()
        over = [
            (grant.expires_at, grant.id, grant)
            for grant in self._matching(question)
            if grant.expires_at is not None and _has_ended(grant, now) and _lies_in(grant, namespaces)
        ]
        if not over:
            return None
        expired_at, _, grant = max(over)
        moment = format_rfc3339(expired_at, "seconds")
        return f"{_states(grant, 'let')} until it expired at {moment}"

    def _explained(self, decision: Decision, question: _Question, namespaces: Collection[str] | None) -> Decision:
        """Return of a decision what the owner of namespaces may know: the verdict, and what lies inside of them."""
        if namespaces is None:
            return decision
        if not decision.allowed:
            return replace(decision, reason=_refuses(question))
        grant = self._grants.by_id.get(decision.grant or "")
        if grant is not None and _lies_in(grant, namespaces):
            return decision
        reason = f"what an administrator decided lets {question.subject} {question.action} {question.repository}"
        return replace(decision, grant=None, reason=reason)

    def tags_to_pull(self, subject: str, repository: str) -> Callable[[str], bool] | None:
        """Return a test for the tags that a subject may pull by name; None where it may pull them all."""
        if self.is_admin(subject):
            return None
        now, allowed = time.time(), []
        for compiled in self._hold(subject, Action.PULL).find(repository):
            if compiled.matches(subject, repository, None) and not _has_ended(compiled.grant, now):
                if compiled.tags is None:
                    return None
                allowed.append(compiled.tags)
        return lambda tag: any(pattern.fullmatch(tag) is not None for pattern in allowed)

    def allowed_access(self, subject: str, access: Access) -> Access | None:
        """Return the part of ``access`` that a token of the subject may carry; None when it is empty.

        Every subject may list the catalogue, which shows it only what it may pull. ``*`` asks for all actions.
        """
        if (access.type, access.name) == (CATALOG.type, CATALOG.name):
            return CATALOG if access.actions >= CATALOG.actions else None
        if not is_repository_access(access):
            return None
        now = time.time()
        asked = {Action.PULL, Action.PUSH, Action.DELETE}
        if "*" not in access.actions:
            asked = {action for action in asked if action in access.actions}
        allowed = {action for action in asked if self._may_somehow(subject, access.name, action, now)}
        return Access(access.type, access.name, frozenset(allowed)) if allowed else None

    def _may_somehow(self, subject: str, repository: str, action: Action, now: float) -> bool:
        # A token says push for both kinds of push; which tags, and whether they may be moved, is judged by request.
        least = Action.CREATE if action is Action.PUSH else action
        return self._judge(_Question(subject, repository, least, None, needs_all_tags=False), now)[0].allowed

    def _judge(self, question: _Question, now: float) -> tuple[Decision, float | None]:
        """Return a decision, and until when it holds: the first expiry of any grant it rests on."""
        fault = self._subject_fault(question.subject, now)
        if fault is not None:
            return Decision(allowed=False, reason=fault), None
        if self.is_admin(question.subject):
            reason = f"{question.subject} is an administrator, who may do everything"
            return Decision(allowed=True, reason=reason), None
        return self._weigh(question, now)

    def _weigh(self, question: _Question, now: float) -> tuple[Decision, float | None]:
        """Return a decision by grants alone, and until when it holds."""
        trial: Grant | None = None
        robot = self._robots.get(question.subject)
        until = None if robot is None else robot.expires_at
        for grant in self._matching(question):
            if _has_ended(grant, now):
                continue
            if grant.expires_at is not None:
                until = grant.expires_at if until is None else min(until, grant.expires_at)
            if grant.mode is GrantMode.ENFORCE:
                return Decision(allowed=True, grant=grant.id, reason=_states(grant)), until
            trial = trial or grant
        if trial is not None:
            reason = f"{_states(trial)}; it is on trial (mode warn), and no enforcing grant would allow this"
            return Decision(allowed=True, would_deny=True, grant=trial.id, reason=reason), until
        return Decision(allowed=False, reason=_refuses(question)), None

    def _subject_fault(self, subject: str, now: float) -> str | None:
        user = self._users.get(subject)
        if user is not None:
            return f"{subject} is disabled" if user.is_disabled else None
        robot = self._robots.get(subject)
        if robot is not None:
            return None if robot.is_valid(now) else f"{subject} has expired"
        try:
            parsed = parse_subject(subject)
        except ValueError:
            parsed = Subject(SubjectKind.USER, "")
        if parsed.kind in {SubjectKind.ANONYMOUS, SubjectKind.GROUP}:
            return None
        if parsed.kind is SubjectKind.OIDC:
            return None if oidc_rule(subject) in self._oidc_groups else f"no rule of auth.oidc makes {subject}"
        return f"there is no {parsed}" if parsed.name else "this is not a subject"

    def _matching(self, question: _Question) -> Iterator[Grant]:
        """Yield the grants that allow an action, or did until they ended."""
        subject, repository, action, tag, needs_all_tags = question
        for compiled in self._hold(subject, action).find(repository):
            if compiled.matches(subject, repository, tag) and not (needs_all_tags and compiled.tags is not None):
                yield compiled.grant

    def _hold(self, subject: str, action: Action) -> GrantIndex:
        """Return the grants of the action to the subject, its groups and everyone."""
        held = self._held.get((subject, action))
        if held is None:
            held = self._grants.index((subject, *self.groups_of(subject), ANONYMOUS), action)
            if len(self._held) >= _REMEMBERED_SUBJECTS:
                self._held.clear()  # names come from callers: memory must stay bounded
            self._held[subject, action] = held
        return held


def _lies_in(grant: Grant, namespaces: Collection[str] | None) -> bool:
    """Tell whether a grant is for nothing but what lies in some namespaces; None for an administrator, who has all."""
    return namespaces is None or any(is_below(grant.repository, each) for each in namespaces)


def _has_ended(grant: Grant, now: float) -> bool:
    return grant.expires_at is not None and grant.expires_at <= now


def _states(grant: Grant, lets: str = "lets") -> str:
    tags = "" if grant.tags == "*" else f", tags {grant.tags}"
    return f"grant {grant.id} {lets} {grant.subject} {_join(grant.actions)} {grant.repository}{tags}"


def _join(actions: Iterable[Action]) -> str:
    return ", ".join(sorted(actions))


def _refuses(question: _Question) -> str:
    subject, repository, action, tag, needs_all_tags = question
    where = repository if tag is None else f"{repository}, tag {tag}"
    tags = ", for all its tags," if needs_all_tags else ""
    return f"no grant lets {subject} {action} {where}: it would take one with the action {action}{tags} on {repository}"
