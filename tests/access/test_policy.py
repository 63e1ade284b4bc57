"""Policy: deny by default, and every rule about grants."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.access import policy as module
from registry_proxy.access.grant import Grant, GrantMode
from registry_proxy.access.policy import Policy
from registry_proxy.access.records import Group, Robot, User
from registry_proxy.protocol.patterns import compile_repository_pattern
from registry_proxy.protocol.scope import CATALOG, Access, Action, repository_access

ANN, BOB, ROOT = User("ann", "h"), User("bob", "h"), User("root", "h", is_admin=True)
PULL, PUSH, CREATE, DELETE, MANAGE = Action.PULL, Action.PUSH, Action.CREATE, Action.DELETE, Action.MANAGE


def grant(
    subject: str = "user:ann",
    repository: str = "team/**",
    *actions: Action,
    tags: str = "*",
    mode: GrantMode = GrantMode.ENFORCE,
    expires_at: float | None = None,
    id: str = "1",  # noqa: A002 - as the field
) -> Grant:
    """Return a grant; its only action is pull unless the test names others."""
    return Grant(
        id=id,
        subject=subject,
        repository=repository,
        actions=frozenset(actions or {PULL}),
        tags=tags,
        mode=mode,
        expires_at=expires_at,
    )


def policy(*grants: Grant, groups: tuple[Group, ...] = (), users: tuple[User, ...] = (ANN, BOB, ROOT)) -> Policy:
    """Return a policy of these grants."""
    return Policy(users, groups, grants, {"user:ann": 4})


def test_an_action_that_nobody_granted_is_denied() -> None:
    """An empty policy denies every action to everyone but administrators, and names the missing grant."""
    for action in Action:
        for subject in ("user:ann", "anonymous", "group:dev"):
            decision = policy().decide(subject, "team/a", action)
            assert (decision.allowed, decision.would_deny, decision.grant) == (False, False, None)
            assert f"no grant lets {subject} {action} team/a" in decision.reason
            assert f"the action {action}" in decision.reason


def test_a_grant_allows_its_action_for_its_subject_in_its_repositories() -> None:
    """The grant allows nothing to another subject, repository or action."""
    judge = policy(grant())
    decision = judge.decide("user:ann", "team/a", PULL)
    assert (decision.allowed, decision.grant) == (True, "1")
    assert decision.reason == "grant 1 lets user:ann pull team/**"
    assert not judge.decide("user:bob", "team/a", PULL).allowed
    assert not judge.decide("anonymous", "team/a", PULL).allowed
    assert not judge.decide("user:ann", "team", PULL).allowed
    assert not judge.decide("user:ann", "other/a", PULL).allowed
    for action in (PUSH, CREATE, DELETE):
        assert not judge.decide("user:ann", "team/a", action).allowed


@pytest.mark.parametrize(
    ("granted", "satisfied"),
    [(PULL, {PULL}), (PUSH, {PUSH, CREATE}), (CREATE, {CREATE}), (DELETE, {DELETE}), (MANAGE, {MANAGE})],
)
def test_actions_imply_nothing_but_push_create(granted: Action, satisfied: set[Action]) -> None:
    """Push includes create, which is a push of new tags only; no other action includes another, push not even pull."""
    judge = policy(grant("user:ann", "**", granted))
    assert {action for action in Action if judge.decide("user:ann", "a", action).allowed} == satisfied


def test_administrators_may_do_everything_and_explain_says_so() -> None:
    """An administrator needs no grant; a disabled one may do nothing."""
    judge = policy(users=(ROOT, User("old", "h", is_admin=True, is_disabled=True)))
    for action in Action:
        decision = judge.decide("user:root", "any/thing", action, "latest")
        assert decision.allowed
        assert "administrator" in decision.reason
        assert not judge.decide("user:old", "any/thing", action).allowed
    assert judge.is_admin("user:root")
    assert not judge.is_admin("user:old")
    assert not judge.is_admin("user:ann")


def test_everyone_may_do_as_anonymous_may() -> None:
    """A grant to anonymous counts for every existing subject, and for no other."""
    judge = policy(grant("anonymous", "public/*"))
    for subject in ("anonymous", "user:ann", "user:bob"):
        assert judge.decide(subject, "public/a", PULL).allowed
    for subject in ("user:ghost", "robot:ghost", "", "ann", "user:"):
        assert not judge.decide(subject, "public/a", PULL).allowed


def test_groups_give_their_grants_to_their_members() -> None:
    """A member has the grants of the group until the member is removed."""
    groups = (Group("dev", ("ann",)), Group("ops", ("ann", "bob")))
    given_to_groups = (grant("group:dev", "dev/*"), grant("group:ops", "ops/*", id="2"))
    judge = policy(*given_to_groups, groups=groups)
    assert judge.decide("user:ann", "dev/a", PULL).grant == "1"
    assert judge.decide("user:ann", "ops/a", PULL).grant == "2"
    assert not judge.decide("user:bob", "dev/a", PULL).allowed
    assert judge.decide("user:bob", "ops/a", PULL).allowed
    assert judge.decide("group:dev", "dev/a", PULL).allowed
    assert not policy(*given_to_groups, groups=(Group("dev", ()),)).decide("user:ann", "dev/a", PULL).allowed


def test_tag_patterns_limit_tags() -> None:
    """A grant for some tags allows those; where no single tag is meant, any grant with the action is enough."""
    judge = policy(grant("user:ann", "team/*", PUSH, CREATE, PULL, tags="v*"))
    assert judge.decide("user:ann", "team/a", PUSH, "v1").allowed
    assert not judge.decide("user:ann", "team/a", PUSH, "latest").allowed
    assert not judge.decide("user:ann", "team/a", CREATE, "latest").allowed
    assert not judge.decide("user:ann", "team/a", PULL, "latest").allowed
    assert judge.decide("user:ann", "team/a", PUSH).allowed
    assert "tag latest" in judge.decide("user:ann", "team/a", PUSH, "latest").reason


def test_explain_tells_a_push_of_new_tags_from_one_that_moves_them() -> None:
    """The right to create alone allows a push of new tags: the answer names the grant and says so."""
    judge = policy(grant("user:ann", "team/*", CREATE))
    explanation = judge.explain("user:ann", "team/a", PUSH, "v1")
    assert (explanation.allowed, explanation.grant) == (True, "1")
    assert "grant 1 lets user:ann create team/*" in explanation.reason
    assert explanation.reason.endswith(": new tags only, no grant lets user:ann move tags that exist")
    assert judge.explain("user:ann", "team/a", CREATE, "v1").grant == "1"
    assert judge.explain("user:ann", "other", PUSH, "v1") == judge.decide("user:ann", "other", PUSH, "v1")


def test_explain_names_the_grant_that_has_ended() -> None:
    """The last expired grant that would have allowed the request is named, unless another grant allows it."""
    ended = (
        grant("user:ann", "team/*", PULL, id="1", expires_at=1.0),
        grant("group:dev", "team/a", PULL, PUSH, id="2", expires_at=86_400.0),
        grant("user:ann", "team/a", PULL, id="3", tags="v*", expires_at=90_000.0),
        grant("user:ann", "team/a", DELETE, id="4", tags="v*", expires_at=1.0),
    )
    judge = policy(*ended, groups=(Group("dev", ("ann",)),))
    explanation = judge.explain("user:ann", "team/a", PULL, "latest")
    assert not explanation.allowed
    assert explanation.reason.startswith("no grant lets user:ann pull team/a, tag latest: ")
    expiry = "until it expired at 1970-01-02T00:00:00Z"
    assert explanation.reason.endswith(f"; grant 2 let group:dev pull, push team/a {expiry}")
    assert "grant 3 let user:ann pull team/a, tags v* until" in judge.explain("user:ann", "team/a", PULL, "v1").reason
    assert "grant 1 let" in judge.explain("user:ann", "team/a", PULL, namespaces=("team/*",)).reason
    for subject, repository, action in (
        ("user:bob", "team/a", PULL),
        ("user:ann", "other", PULL),
        ("user:ann", "team/a", DELETE),
    ):
        assert judge.explain(subject, repository, action) == judge.decide(subject, repository, action)
    allowed = policy(*ended, grant("user:ann", "team/a", PULL, id="5"))
    assert "expired" not in allowed.explain("user:ann", "team/a", PULL).reason


def test_a_grant_to_a_group_of_a_rule_has_an_effect() -> None:
    """A group that only the configuration knows needs no record."""
    judge = Policy([ANN], [Group("dev", ())], [], {}, oidc_groups={"ci/main": ("deployers",)})
    for subject in ("user:ann", "group:dev", "group:deployers", "oidc:ci/main/x", "anonymous"):
        assert judge.why_of_no_use(subject) is None
    for subject in ("user:bob", "group:none", "oidc:ci/other/x", "robot:ci"):
        assert judge.why_of_no_use(subject) is not None


def test_deleting_a_digest_takes_a_grant_for_all_tags() -> None:
    """A digest takes all its tags along: the right to delete some of them is not enough."""
    some = policy(grant("user:ann", "team/*", DELETE, tags="v*"))
    assert some.decide("user:ann", "team/a", DELETE, "v1").allowed
    assert not some.decide("user:ann", "team/a", DELETE).allowed
    assert "for all its tags" in some.decide("user:ann", "team/a", DELETE).reason
    assert policy(grant("user:ann", "team/*", DELETE)).decide("user:ann", "team/a", DELETE).allowed
    asked = repository_access("team/a", DELETE)
    assert some.allowed_access("user:ann", asked) == asked


def test_a_grant_on_trial_allows_and_is_counted() -> None:
    """Mode warn allows; ``would_deny`` is true where no enforcing grant allows, in any order of the grants."""
    trial = grant(mode=GrantMode.WARN, id="1")
    decision = policy(trial).decide("user:ann", "team/a", PULL)
    assert (decision.allowed, decision.would_deny, decision.grant) == (True, True, "1")
    assert "on trial" in decision.reason
    for others in ([trial, grant(id="2")], [grant(id="2"), trial]):
        decision = policy(*others).decide("user:ann", "team/a", PULL)
        assert (decision.allowed, decision.would_deny, decision.grant) == (True, False, "2")
    expired = grant(id="2", expires_at=50)
    assert policy(trial, expired).decide("user:ann", "team/a", PULL, now=51).would_deny


def test_expiry_is_not_broken_by_memory() -> None:
    """A remembered decision ends to the second when its grant expires; the other grants still count."""
    judge = policy(grant(expires_at=100))
    assert judge.decide("user:ann", "team/a", PULL, now=50).allowed
    assert judge.decide("user:ann", "team/a", PULL, now=99.9).allowed
    assert not judge.decide("user:ann", "team/a", PULL, now=100).allowed
    assert not judge.decide("user:ann", "team/a", PULL, now=200).allowed
    judge = policy(grant(expires_at=100, id="1"), grant(expires_at=200, id="2"), grant(mode=GrantMode.WARN, id="3"))
    assert [judge.decide("user:ann", "team/a", PULL, now=now).grant for now in (50, 150, 250)] == ["1", "2", "3"]
    live = policy(grant(expires_at=time.time() + 3600))
    assert live.decide("user:ann", "team/a", PULL).allowed
    assert not policy(grant(expires_at=time.time() - 1)).decide("user:ann", "team/a", PULL).allowed


def test_remembers_no_more_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come from callers: the memory of decisions does not grow with them."""
    monkeypatch.setattr(module, "_REMEMBERED_BYTES", 70_000)
    judge = policy(grant())
    for number in range(1000):
        assert judge.decide("user:ann", f"team/{number}", PULL).allowed
        assert len(judge._decided) <= 110


def test_generations() -> None:
    """A generation is that of the subject, 0 where none was set, None for an unknown subject."""
    judge = policy(users=(ANN, BOB, User("off", "h", is_disabled=True)))
    assert judge.generation("user:ann") == 4
    assert judge.generation("user:bob") == 0
    assert judge.generation("anonymous") == 0
    for subject in ("user:ghost", "user:off", "robot:ci", "group:dev", ""):
        assert judge.generation(subject) is None


def test_a_disabled_user_may_do_nothing() -> None:
    """A disabled user may not even do what anonymous may."""
    judge = policy(grant("anonymous", "**"), users=(User("off", "h", is_disabled=True),))
    decision = judge.decide("user:off", "a", PULL)
    assert not decision.allowed
    assert decision.reason == "user:off is disabled"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (repository_access("team/a", PULL), {"pull"}),
        (repository_access("team/a", PULL, PUSH, DELETE), {"pull", "push"}),
        (Access("repository", "team/a", frozenset({"*"})), {"pull", "push"}),
        (Access("repository", "team/a", frozenset({"pull", "fly"})), {"pull"}),
        (repository_access("team/a", DELETE), None),
        (Access("repository", "team/a", frozenset({"create"})), None),  # tokens say push
        (Access("repository", "team/a", frozenset()), None),
        (repository_access("other", PULL), None),
        (Access("repository", "Team/../a", frozenset({"pull"})), None),
        (Access("repository", "host:5000/team/a", frozenset({"pull"})), None),
        (Access("plugin", "team/a", frozenset({"pull"})), None),
        (Access("registry", "other", frozenset({"*"})), None),
    ],
)
def test_a_token_carries_the_intersection(asked: Access, expected: set[str] | None) -> None:
    """A token carries the actions that are both asked for and granted; a right to create is push in a token."""
    judge = policy(grant("user:ann", "team/*", PULL, CREATE, tags="v*"))
    found = judge.allowed_access("user:ann", asked)
    assert (None if found is None else found.actions) == expected
    assert found is None or (found.type, found.name) == (asked.type, asked.name)


def test_everyone_may_list_the_catalogue() -> None:
    """``registry:catalog:*`` is granted to all; the list shows each subject only repositories that it may pull."""
    for subject in ("user:ann", "anonymous"):
        assert policy().allowed_access(subject, CATALOG) == CATALOG
    assert policy().allowed_access("anonymous", Access("registry", "catalog", frozenset({"pull"}))) is None


NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join)
PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "**", "a*"]), min_size=1, max_size=4).map("/".join)
SUBJECTS = st.sampled_from(["user:ann", "user:bob", "group:dev", "anonymous"])


def test_everyone_has_a_home_of_his_own() -> None:
    """One grant to a group or to all lets each user push below their own name; a robot has no such home."""
    home = grant("anonymous", "home/{subject}/**", PULL, PUSH)
    robot = Robot("ann")
    judge = Policy([ANN, BOB], [], [home], {}, robots=[robot])
    assert judge.decide("user:ann", "home/ann/app", PUSH).allowed
    assert judge.decide("user:bob", "home/bob/a/b", PULL).allowed
    for subject, name in (
        ("user:ann", "home/bob/app"),
        ("user:ann", "home/ann"),
        ("user:bob", "home/annx/app"),
        ("robot:ann", "home/ann/app"),
        ("anonymous", "home/ann/app"),
        ("group:ann", "home/ann/app"),
        ("user:ann", "home/{subject}/app"),
    ):
        assert not judge.decide(subject, name, PULL).allowed, (subject, name)
    token = judge.allowed_access("user:ann", Access("repository", "home/ann/app", frozenset({"pull", "push"})))
    assert token is not None
    assert token.actions == {"pull", "push"}


def test_a_subject_of_an_id_token_has_its_own_grants_and_the_groups_of_its_rule() -> None:
    """The subject has no rights of a user, robot or group of that name, no home, and nothing once its rule is gone."""
    job, other = "oidc:github/main/acme/app", "oidc:github/any/acme/app"
    grants = [
        grant(job, "acme/app", PUSH, id="own"),
        grant("group:deployers", "prod/**", PULL, id="group"),
        grant("anonymous", "base/*", PULL, id="all"),
        grant("anonymous", "home/{subject}/**", PULL, id="home"),
        grant("user:ann", "team/**", PULL, id="ann"),
    ]
    groups = {"github/main": ("deployers",), "github/any": ()}
    judge = Policy([ANN, ROOT], [Group("deployers", ("ann",))], grants, {job: 3}, oidc_groups=groups)
    asked = [("acme/app", PUSH), ("prod/x", PULL), ("base/x", PULL), ("home/app/x", PULL), ("team/x", PULL)]
    assert [judge.decide(job, *each).grant for each in asked] == ["own", "group", "all", None, None]
    assert [judge.decide(other, *each).grant for each in asked] == [None, None, "all", None, None]
    assert (judge.generation(job), judge.generation(other)) == (3, 0)
    for subject in ("oidc:github/main/root", "oidc:github/main/user:root"):
        assert not judge.is_admin(subject)
        assert not judge.decide(subject, "team/x", PULL).allowed
    without = Policy([ANN], [], grants, {job: 3}, oidc_groups={"github/any": ("deployers",)})
    decision = without.decide(job, "acme/app", PUSH)
    assert (decision.allowed, decision.reason) == (False, f"no rule of auth.oidc makes {job}")
    assert without.generation(job) is None
    assert not without.decide(job, "base/x", PULL).allowed
    assert judge.with_grants([]).decide(job, "acme/app", PUSH).reason.startswith(f"no grant lets {job} push")


def test_the_owners_of_a_namespace() -> None:
    """The owners are the subject, members of its group, and each user of their home; until the grant ends."""
    grants = (
        grant("user:ann", "team/**", MANAGE, PULL),
        grant("group:dev", "shared/dev/**", MANAGE, id="2"),
        grant("anonymous", "home/{subject}/**", MANAGE, id="3"),
        grant("user:ann", "old/**", MANAGE, id="4", expires_at=1.0),
        grant("user:ann", "pulled/**", PULL, id="5"),
        grant("robot:ci", "ci/**", MANAGE, id="6"),
    )
    users = (ANN, BOB, User("off", "h", is_disabled=True))
    judge = Policy(users, [Group("dev", ("bob",))], grants, {}, robots=[Robot("ci"), Robot("gone", 1.0)])
    assert judge.namespaces("user:ann") == ("home/ann/**", "team/**")
    assert judge.namespaces("user:bob") == ("home/bob/**", "shared/dev/**")
    assert judge.namespaces("robot:ci") == ("ci/**",)
    for subject in ("user:off", "user:ghost", "robot:gone", "anonymous", "robot:ann", ""):
        assert judge.namespaces(subject) == ()
    explanation = judge.explain("user:ann", "team/a", MANAGE)
    assert (explanation.allowed, explanation.grant) == (True, "1")
    assert not judge.explain("user:bob", "team/a", MANAGE).allowed
    assert not judge.explain("user:ann", "old/a", MANAGE).allowed
    everything = Access("repository", "team/a", frozenset({"*", "manage"}))
    carried = judge.allowed_access("user:ann", everything)
    assert carried is not None
    assert carried.actions == {"pull"}


GRANTS = st.builds(
    grant,
    SUBJECTS,
    PATTERNS,
    st.sampled_from(list(Action)),
    tags=st.sampled_from(["*", "v*", "x"]),
    mode=st.sampled_from(list(GrantMode)),
    expires_at=st.sampled_from([None, 10.0, 30.0]),
    id=st.uuids().map(str),
)


@given(st.lists(GRANTS, max_size=8), SUBJECTS, NAMES, st.sampled_from(list(Action)), st.sampled_from([None, "v1", "x"]))
def test_decides_as_a_walk_over_all_grants(
    grants: list[Grant], subject: str, name: str, action: Action, tag: str | None
) -> None:
    """The index changes nothing: the decision is the same as by a walk over every grant."""
    judge = Policy([ANN, BOB], [Group("dev", ("ann",))], grants, {})
    holders = {subject, "anonymous"} | ({"group:dev"} if subject == "user:ann" else set())
    for now in (5.0, 20.0, 40.0):
        modes = {
            each.mode
            for each in grants
            if each.subject in holders
            and (action in each.actions or (action is CREATE and PUSH in each.actions))
            and compile_repository_pattern(each.repository).fullmatch(name)
            and (each.expires_at is None or now < each.expires_at)
            and (
                each.tags == "*"
                or (tag is None and action is not DELETE)
                or (tag == "v1" and each.tags == "v*")
                or tag == each.tags
            )
        }
        decision = judge.decide(subject, name, action, tag, now)
        assert decision.allowed == bool(modes)
        assert decision.would_deny == (modes == {GrantMode.WARN})


@given(st.lists(GRANTS, max_size=8), SUBJECTS, NAMES, st.sampled_from(["v1", "x", "y"]))
def test_the_tags_to_pull_are_those_that_may_be_pulled(grants: list[Grant], subject: str, name: str, tag: str) -> None:
    """A list of tags shows exactly the tags that a request for each of them would give."""
    judge = Policy([ANN, BOB], [Group("dev", ("ann",))], [replace(each, expires_at=None) for each in grants], {})
    may_pull = judge.tags_to_pull(subject, name)
    assert (may_pull is None or may_pull(tag)) == judge.decide(subject, name, PULL, tag).allowed
    if may_pull is None:
        assert judge.decide(subject, name, PULL, "any-other").allowed


def test_tags_to_pull_end_with_their_grant() -> None:
    """An expired grant shows no tag; an administrator sees all tags."""
    judge = policy(grant(tags="v*", expires_at=1.0), grant(tags="x", id="2"))
    may_pull = judge.tags_to_pull("user:ann", "team/a")
    assert may_pull is not None
    assert (may_pull("v1"), may_pull("x")) == (False, True)
    assert judge.tags_to_pull("user:root", "team/a") is None


def test_the_patterns_of_a_subject_hold_all_that_it_may() -> None:
    """The patterns are those of own grants, of groups and of everyone, on trial too; no expired grant counts."""
    judge = policy(
        grant("user:ann", "team/**"),
        grant("user:ann", "home/{subject}/**", id="2"),
        grant("group:dev", "dev/**", id="3", mode=GrantMode.WARN),
        grant("anonymous", "open/*", id="4"),
        grant("user:ann", "pushed/**", PUSH, id="5"),
        grant("user:ann", "past/**", id="6", expires_at=1.0),
        grant("user:bob", "bob/**", id="7"),
        groups=(Group("dev", ("ann",)),),
    )
    assert judge.patterns("user:ann", PULL) == ["dev/**", "home/ann/**", "open/*", "team/**"]
    assert judge.patterns("user:root", PULL) == ["**"]
    assert judge.patterns("anonymous", PULL) == ["open/*"]
