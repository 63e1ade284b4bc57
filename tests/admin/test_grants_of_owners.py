"""Owners of namespaces: they grant and revoke rights inside, and learn nothing about the outside."""

import time
from dataclasses import replace

import pytest

from registry_proxy.access.faults import InvalidError
from registry_proxy.access.grant import GrantInput
from registry_proxy.access.secrets import SecretKind
from registry_proxy.directory.secrets import SecretInput
from registry_proxy.directory.users import UserInput
from tests.support.owners import Owners

GIVEN = {"subject": "user:bob", "repository": "team/app", "tags": "*", "actions": ["pull"], "mode": "enforce"}


async def test_an_owner_gives_and_takes_rights_inside(owners: Owners) -> None:
    """An owner who is no administrator grants and revokes at once; the audit log has the owner's name."""
    question = {"subject": "user:bob", "repository": "team/app", "action": "pull"}
    assert not (await owners.call("POST", "/explain", question))[1]["allowed"]
    status, made = await owners.call("POST", "/grants", GIVEN)
    assert (status, made["repository"]) == (201, "team/app")
    assert (await owners.call("POST", "/explain", question))[1]["grant"] == made["id"]
    assert (await owners.call("GET", f"/grants/{made['id']}"))[1] == made
    assert (await owners.call("DELETE", f"/grants/{made['id']}"))[0] == 204
    assert not (await owners.call("POST", "/explain", question))[1]["allowed"]
    changes = [event for event in owners.node.audit.events if event.action in {"grants.post", "grants.delete"}]
    assert [(event.subject, event.outcome) for event in changes] == [("user:ann", "ok")] * 2


async def test_a_pattern_inside_is_taken(owners: Owners) -> None:
    """Any pattern that matches nothing outside of the owner's namespaces is accepted."""
    for repository in ("team/**", "team/*", "team/**/x", "team/{subject}/**", "home/ann/**", "team/a*"):
        assert (await owners.call("POST", "/grants", {**GIVEN, "repository": repository}))[0] == 201, repository


OUTSIDE = [
    *(
        "**",
        "*",
        "*/app",
        "**/app",
        "team",
        "team*/app",
        "t*/app",
        "teams/app",
        "team-x/**",
        "other/team/app",
        "home/**",
    ),
    *(
        "home/bob/**",
        "home/{subject}/**",
        "home/*/app",
        "{subject}/app",
        "Team/app",
        "",
        "/",
        "../team/app",
        "/team/app",
    ),
]


async def test_a_pattern_that_reaches_outside_is_refused(owners: Owners) -> None:
    """A pattern that could match a name outside of the namespace is refused, and no grant is made."""
    before = await owners.node.directory.grants.list()
    for repository in OUTSIDE:
        status, problem = await owners.call("POST", "/grants", {**GIVEN, "repository": repository})
        assert status == 403, repository
        assert problem["errors"] == [
            {"pointer": "#/repository", "detail": "expected a pattern that lies in home/ann/** or team/**"}
        ]
    # A pattern inside that is invalid or matches nothing.
    for repository in (
        "team/",
        "team//a",
        "team/A",
        "team/a**",
        "team/../other/app",
        "team/..",
        "team/*../a",
        "team/-a",
    ):
        assert (await owners.call("POST", "/grants", {**GIVEN, "repository": repository}))[0] == 400, repository
    assert await owners.node.directory.grants.list() == before


async def test_an_owner_makes_and_removes_no_owners(owners: Owners) -> None:
    """Only administrators grant and revoke the right to manage, also inside of the namespace."""
    status, problem = await owners.call("POST", "/grants", {**GIVEN, "repository": "team/a/**", "actions": ["manage"]})
    assert (status, problem["errors"][0]["pointer"]) == (403, "#/actions")
    owned = await owners.grant("user:bob", "team/sub/**", "manage", "pull")
    assert (await owners.call("DELETE", f"/grants/{owned}"))[0] == 403
    assert await owners.seen("user:bob") == {"team/sub/**"}
    assert (await owners.call("DELETE", f"/grants/{owned}", caller="user:admin"))[0] == 204


async def test_grants_outside_are_not_visible(owners: Owners) -> None:
    """A grant outside answers like an absent one; lists, questions and all other routes reveal nothing of it."""
    outside, inside = (
        await owners.grant("user:bob", "other/**", "pull"),
        await owners.grant("user:bob", "team/a", "pull"),
    )
    assert await owners.seen() == {"team/**", "team/a"}
    assert await owners.seen("user:bob") == set()
    assert await owners.seen("user:admin") == {"team/**", "team/a", "other/**", "home/{subject}/**"}
    for method in ("GET", "DELETE"):
        status, problem = await owners.call(method, f"/grants/{outside}")
        absent = await owners.call(method, f"/grants/{'0' * len(outside)}")
        assert (status, problem["detail"].replace(outside, "0" * len(outside))) == (404, absent[1]["detail"])
    question = {"subject": "user:bob", "repository": "other/app", "action": "pull"}
    assert (await owners.call("POST", "/explain", question))[0] == 403
    for method, path in (
        ("GET", "/users"),
        ("GET", "/groups"),
        ("GET", "/policy"),
        ("PUT", "/policy"),
        ("GET", "/audit"),
    ):
        assert (await owners.call(method, path))[0] == 403, path
    assert {each.id for each in await owners.node.directory.grants.list()} >= {outside, inside}


async def test_owning_ends_with_its_grant(owners: Owners) -> None:
    """After the grant is removed or expired, or with a narrowed token, the owner is a user like any other."""
    await owners.grant("user:bob", "short/**", "manage", expires_at=time.time() - 1)
    assert (await owners.call("POST", "/grants", {**GIVEN, "repository": "short/a"}, caller="user:bob"))[0] == 403
    narrowed = SecretInput(actions=["pull"])
    secret, _ = await owners.node.directory.secrets.add("user:ann", SecretKind.PERSONAL, narrowed)
    token = owners.node.signer.issue("user:ann", 0, (), time.time(), secret_id=secret.id).token
    headers = {"Authorization": f"Bearer {token}"}
    async with owners._http.post("/admin/v1/grants", json=GIVEN, headers=headers) as response:
        assert response.status == 403
    for grant in await owners.node.directory.grants.list():
        await owners.node.directory.grants.delete(grant.id)
    status, problem = await owners.call("POST", "/grants", GIVEN)
    assert (status, problem["detail"]) == (403, "this needs a user with the admin's right")


async def test_a_grant_that_makes_no_owner_is_refused(owners: Owners) -> None:
    """The right to manage is for one namespace with all its tags, never on trial, and not for everybody."""
    good = GrantInput(subject="user:ann", repository="team/**", actions=("pull", "manage"))
    for bad, field in (
        (replace(good, repository="**"), "repository"),
        (replace(good, repository="team"), "repository"),
        (replace(good, repository="te*/**"), "repository"),
        (replace(good, tags="v*"), "tags"),
        (replace(good, mode="warn"), "mode"),
        (replace(good, subject="anonymous"), "subject"),
    ):
        with pytest.raises(InvalidError) as caught:
            await owners.node.directory.grants.add(bad)
        assert [name for name, _ in caught.value.faults] == [field]


async def test_an_owner_changes_grants_inside_alone(owners: Owners) -> None:
    """A PATCH treats a grant outside as absent; it makes and unmakes no owner, and then changes nothing."""
    _, made = await owners.call("POST", "/grants", GIVEN)
    path = f"/grants/{made['id']}"
    assert (await owners.call("PATCH", path, {"actions": ["push"]}))[1] == {**made, "actions": ["push"]}
    assert (await owners.call("PATCH", path, {"actions": ["manage"]}))[0] == 403
    assert (await owners.call("PATCH", path, {"repository": "other/**"}))[0] == 400
    outside, own = (
        await owners.grant("user:bob", "other/app", "pull"),
        await owners.grant("user:bob", "team/x/**", "manage"),
    )
    assert (await owners.call("PATCH", f"/grants/{outside}", {"actions": ["push"]}))[0] == 404
    for body in ({"actions": ["pull"]}, {"expires_at": 1}, {}):
        assert (await owners.call("PATCH", f"/grants/{own}", body))[0] == 403
    grants = {grant.id: sorted(grant.actions) for grant in await owners.node.directory.grants.list()}
    assert (grants[made["id"]], grants[outside], grants[own]) == (["push"], ["pull"], ["manage"])


async def test_explain_does_not_tell_an_owner_who_exists(owners: Owners) -> None:
    """The answer follows from the grants alone: a grant to everybody, or to any name, reveals no users."""
    await owners.node.directory.users.put("off", UserInput(password="a password", is_disabled=True))
    await owners.node.directory.robots.put("old", 1.0, ())
    await owners.grant("anonymous", "team/*", "pull")
    for subject in ("user:off", "robot:old", "user:nobody", "robot:nobody"):
        await owners.grant(subject, "team/own", "delete")
    for repository, action in (("team/app", "pull"), ("team/own", "delete")):
        question = {"repository": repository, "action": action}
        answers = []
        for subject in ("user:bob", "user:off", "robot:old", "user:nobody", "robot:nobody", "oidc:ci/main/x"):
            if (subject, action) in {("user:bob", "delete"), ("oidc:ci/main/x", "delete")}:
                continue
            _, explanation = await owners.call("POST", "/explain", {**question, "subject": subject})
            answers.append(explanation["allowed"])
        assert all(answers), action
    admin = {"subject": "user:nobody", "repository": "team/app", "action": "pull"}
    _, explanation = await owners.call("POST", "/explain", admin, caller="user:admin")
    assert (explanation["allowed"], explanation["reason"]) == (False, "there is no user:nobody")


async def test_explain_tells_an_owner_of_nothing_outside(owners: Owners) -> None:
    """The owner learns whether it is allowed and by which inner grant; nothing about the subject or outer grants."""
    await owners.node.directory.users.put("off", UserInput(password="a password", is_disabled=True))
    await owners.node.directory.users.put("boss", UserInput(password="a password", is_admin=True))
    await owners.node.directory.robots.put("old", 1.0, ())
    wide = await owners.grant("group:secret-project", "**", "pull", "create")
    await owners.node.directory.groups.put("secret-project", ["bob"])
    question = {"repository": "team/app", "action": "pull"}
    for subject in ("user:off", "user:nobody", "robot:old", "robot:nobody", "oidc:ci/main/x", "group:none"):
        _, answer = await owners.call("POST", "/explain", {**question, "subject": subject})
        refusal = f"no grant lets {subject} pull team/app: it would take one with the action pull on team/app"
        assert answer == {"allowed": False, "would_deny": False, "grant": None, "reason": refusal, "rules": []}
    _, answer = await owners.call("POST", "/explain", {**question, "subject": "user:bob"})
    reason = "what an administrator decided lets user:bob pull team/app"
    assert answer == {"allowed": True, "would_deny": False, "grant": None, "reason": reason, "rules": []}
    for action in ("pull", "push", "delete", "manage"):
        answers = [
            (await owners.call("POST", "/explain", {**question, "subject": subject, "action": action}))[1]
            for subject in ("user:boss", "user:nobody")
        ]
        assert {**answers[0], "reason": answers[0]["reason"].replace("user:boss", "user:nobody")} == answers[1]
    _, answer = await owners.call(
        "POST", "/explain", {**question, "subject": "user:bob", "action": "push", "tag": "v1"}
    )
    assert (answer["allowed"], "what an administrator decided lets user:bob" in answer["reason"]) == (True, True)
    assert not [text for text in (wide, "secret-project", "**") if text in answer["reason"]]
    over = await owners.grant("user:bob", "**", "delete", expires_at=1.0)
    _, answer = await owners.call("POST", "/explain", {**question, "subject": "user:bob", "action": "delete"})
    assert "expired" not in answer["reason"]
    inside = await owners.grant("user:bob", "team/*", "delete", expires_at=1.0)
    _, answer = await owners.call("POST", "/explain", {**question, "subject": "user:bob", "action": "delete"})
    assert (f"grant {inside} let user:bob" in answer["reason"], over in answer["reason"]) == (True, False)
    inside = await owners.grant("user:ann", "team/a*", "pull")
    assert (await owners.call("POST", "/explain", {**question, "subject": "user:ann"}))[1]["grant"] == inside
    answer = (await owners.call("POST", "/explain", {**question, "subject": "user:bob"}, caller="user:admin"))[1]
    assert (answer["grant"], wide in answer["reason"]) == (wide, True)
