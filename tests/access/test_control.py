"""AccessControl: the current policy, on real stores, with outages and several nodes."""

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from registry_proxy.access import signing_keys, snapshot
from registry_proxy.access.control import AccessControl
from registry_proxy.access.credentials import LoginRefusedError, LoginUnavailableError, Passwords, TooManyLoginsError
from registry_proxy.access.grant import GrantInput
from registry_proxy.access.id_tokens import ClaimRule, IdTokenRefusedError, IdTokenVerifier, TrustedIssuer
from registry_proxy.access.issuer_keys import IssuerKeys
from registry_proxy.access.ldap import LdapPasswords
from registry_proxy.access.policy import Policy
from registry_proxy.access.secrets import SecretKind
from registry_proxy.access.tokens import InvalidTokenError, TokenSigner, TokenVerifier, create_key_file
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.secrets import SecretInput
from registry_proxy.directory.users import UserInput
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.store import Change, Record, Store, Table
from registry_proxy.protocol.patterns import compile_text_pattern
from registry_proxy.protocol.scope import Action
from registry_proxy.store.changes import StoreWatch
from registry_proxy.store.open import open_store
from registry_proxy.tasks import spawn
from tests.conftest import require_program
from tests.support.fakes.issuer import AUDIENCE, running_issuer
from tests.support.passwords import quick_passwords
from tests.support.servers import Server, free_port, ldap_server, running
from tests.support.waiting import until

SECRET = "password of ann"
NO_NAME = "the name is no user's, and the password has not the form of a secret"
HOME = "192.0.2.1"
UNKNOWN_KEY = "eyJhbGciOiJFUzI1NiIsImtpZCI6IngifQ.e30.AA"  # {"alg":"ES256","kid":"x"}


@dataclass
class Node:
    """A proxy node as far as access is concerned."""

    store: Store
    watch: StoreWatch
    directory: Directory
    control: AccessControl
    signer: TokenSigner

    async def token(self, subject: str) -> str:
        """Issue a token as /auth/token does after a login."""
        generation = (await self.control.policy()).generation(subject)
        assert generation is not None
        return self.signer.issue(subject, generation, [], time.time()).token


StartNode = Callable[..., Awaitable[Node]]


@pytest.fixture
async def start_node(tmp_path: Path) -> AsyncIterator[StartNode]:
    """Return a function that starts a node; without a URL on one SQLite file."""
    async with AsyncExitStack() as stack:

        async def start(
            name: str = "one",
            url: str | None = None,
            outage_max_age_seconds: float | None = 3600,
            id_tokens: IdTokenVerifier | None = None,
            ldap: LdapPasswords | None = None,
        ) -> Node:
            url = url or f"sqlite:///{tmp_path / 'store.db'}"
            store, watch = await stack.enter_async_context(open_store(url, str(tmp_path / f"{name}.page")))
            create_key_file(str(tmp_path / f"{name}.pem"))
            signer = TokenSigner(str(tmp_path / f"{name}.pem"), "registry-proxy", 300)
            verifier = TokenVerifier("registry-proxy")
            with quick_passwords():
                directory = Directory(store)
                control = AccessControl(
                    store,
                    watch,
                    verifier,
                    outage_max_age_seconds=outage_max_age_seconds,
                    id_tokens=id_tokens,
                    ldap=ldap,
                )
            stack.push_async_callback(control.aclose)
            await stack.enter_async_context(control.publishing(signer))
            stack.push_async_callback(directory.aclose)
            return Node(store, watch, directory, control, signer)

        yield start


@pytest.fixture
async def node(start_node: StartNode) -> Node:
    """A node with the user ann, who may pull team/**."""
    node = await start_node()
    await node.directory.users.put("ann", UserInput(password=SECRET))
    await node.directory.grants.add(GrantInput(subject="user:ann", repository="team/**", actions=["pull"]))
    return node


async def test_reads_what_was_written_on_the_node(start_node: StartNode, node: Node) -> None:
    """Every change is in force for the next request of every worker of the node, without a delay."""
    other_worker = await start_node()
    for worker in (node, other_worker):
        assert (await worker.control.policy()).decide("user:ann", "team/a", Action.PULL).allowed
    await node.directory.groups.put("dev", ["ann"])
    grant = await other_worker.directory.grants.add(
        GrantInput(subject="group:dev", repository="dev/*", actions=["push"])
    )
    for worker in (node, other_worker):
        assert (await worker.control.policy()).decide("user:ann", "dev/a", Action.PUSH).allowed
    await node.directory.grants.delete(grant.id)
    for worker in (node, other_worker):
        assert not (await worker.control.policy()).decide("user:ann", "dev/a", Action.PUSH).allowed


async def test_a_policy_is_loaded_once_for_all_who_ask(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred requests after a change cost one load, and none while nothing changes, whatever else is written."""
    loads = 0
    load = node.control.snapshots._load

    async def counted() -> snapshot.Snapshot:
        nonlocal loads
        loads += 1
        return await load()

    monkeypatch.setattr(node.control.snapshots, "_load", counted)
    await node.directory.groups.put("dev", ["ann"])
    policies = await asyncio.gather(*(node.control.policy() for _ in range(100)))
    assert loads == 1
    await node.store.commit([Change(Table.TAGS, "t", {})])
    assert await node.control.policy() is policies[0]
    assert loads == 1


async def test_a_table_that_did_not_change_is_not_read_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new group causes no reading of the grants; after ten minutes all tables are read again."""
    listed: list[Table] = []
    list_records = node.store.list

    async def counted(table: Table, prefix: str = "") -> list[Record]:
        listed.append(table)
        return await list_records(table, prefix)

    await node.control.policy()
    monkeypatch.setattr(node.store, "list", counted)
    await node.directory.groups.put("dev", ["ann"])
    listed.clear()
    policy = await node.control.policy()
    assert {*listed} - {Table.REFRESH_TOKENS} == {Table.USERS, Table.GROUPS}
    assert policy.groups_of("user:ann") == ["group:dev"]
    assert policy.decide("user:ann", "team/a", Action.PULL).allowed
    monkeypatch.setattr(snapshot, "_SNAPSHOT_MAX_AGE_SECONDS", -1)
    listed.clear()
    await node.control.policy()
    assert {*listed} - {Table.REFRESH_TOKENS} == {*snapshot._TABLES}


async def test_the_loop_goes_on_while_a_policy_is_built(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand grants take a second to build; requests that need no new policy do not wait for it."""
    building, may_end = threading.Event(), threading.Event()
    build = node.control.snapshots._build

    def held_up(tables: Mapping[Table, list[Any]]) -> Policy:
        building.set()
        assert may_end.wait(30)
        return build(tables)

    monkeypatch.setattr(node.control.snapshots, "_build", held_up)
    await node.directory.groups.put("dev", ["ann"])
    waiting = spawn(node.control.policy(), "policy")
    await until(building.is_set)
    assert not waiting.done()
    may_end.set()
    assert (await waiting).groups_of("user:ann") == ["group:dev"]


async def test_a_change_during_a_load_is_not_missed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that lands while the tables are read is in the resulting policy."""
    read = node.control.snapshots._read
    late = [GrantInput(subject="user:ann", repository="late", actions=["pull"])]

    async def interrupted() -> object:
        found = await read()
        if late:
            await node.directory.grants.add(late.pop())
        return found

    monkeypatch.setattr(node.control.snapshots, "_read", interrupted)
    await node.directory.groups.put("dev", [])
    assert (await node.control.policy()).decide("user:ann", "late", Action.PULL).allowed


async def test_a_cancelled_reader_does_not_stop_the_others(node: Node) -> None:
    """When the request that loads is cancelled, another one loads."""
    await node.directory.groups.put("dev", ["ann"])
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(node.control.policy()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
    assert tasks[0].cancelled()
    assert tasks[1].result() is tasks[2].result()


async def test_logins(node: Node) -> None:
    """A right password gives the subject; all other logins get the same refusal; only the audit log has the reason."""
    assert (await node.control.login("ann", SECRET, HOME)).subject == "user:ann"
    await node.directory.users.put("off", UserInput(password=SECRET, is_disabled=True))
    await node.directory.users.put("eve", UserInput(is_ldap=True))
    messages = set()
    for name, password, reason in [
        ("ann", "wrong", "the password is wrong"),
        ("ann", "", "the password is wrong"),
        ("off", SECRET, "the user is disabled"),
        ("eve", SECRET, "LDAP knows the password, and auth.ldap is not configured"),
        ("ghost", SECRET, "there is no such user"),
        ("robot$ci", SECRET, NO_NAME),
        ("", "", NO_NAME),
        ("a\0", "x", NO_NAME),
    ]:
        with pytest.raises(LoginRefusedError) as caught:
            await node.control.login(name, password, HOME)
        messages.add(str(caught.value))
        assert caught.value.reason == reason, name
    assert len(messages) == 1


async def test_the_reason_why_a_secret_is_refused_is_for_the_audit_log(node: Node) -> None:
    """A wrong, foreign, expired or misplaced secret gets the same answer; only the audit log has the reason."""
    await node.directory.robots.put("ci", None, ["10.0.0.0/8"])
    robot, text = await node.directory.secrets.add("robot:ci", SecretKind.ROBOT, SecretInput())
    await node.directory.robots.put("old", time.time() - 1, [])
    _, late = await node.directory.secrets.add("robot:old", SecretKind.ROBOT, SecretInput())
    attempts = [
        ("robot$ci", text[:-4] + "AAAA", "there is no such secret"),
        ("ann", text, f"secret {robot.id} is of robot:ci"),
        ("robot$ci", text, "robot:ci may not come from this address"),
        ("robot$old", late, "robot:old is no more, was disabled, or has expired"),
    ]
    messages = set()
    for name, password, reason in attempts:
        with pytest.raises(LoginRefusedError) as caught:
            await node.control.login(name, password, HOME)
        messages.add(str(caught.value))
        assert (caught.value.reason, text in caught.value.reason) == (reason, False)
    assert len(messages) == 1


async def test_guessing_is_limited_by_user_and_address(node: Node) -> None:
    """After ten failures even the right password must wait, from that address; from another one it is accepted."""
    await node.control.login("ann", SECRET, HOME)
    for _ in range(10):
        with pytest.raises(LoginRefusedError):
            await node.control.login("ann", "wrong", HOME)
    with pytest.raises(TooManyLoginsError):
        await node.control.login("ann", SECRET, HOME)
    assert (await node.control.login("ann", SECRET, "192.0.2.2")).subject == "user:ann"


async def test_an_id_token_is_a_login_that_ends_with_it(start_node: StartNode, node: Node) -> None:
    """An ID token logs in under the name oidc alone; bad ones lock no address out; its bearer tokens can be revoked."""
    with running_issuer() as issuer:
        claims = {"repository": (compile_text_pattern("acme/*"),)}
        rules = [ClaimRule("main", claims, "{repository}", ("deployers",))]
        trusted = TrustedIssuer("ci", issuer.url, AUDIENCE, rules, IssuerKeys(issuer.url))
        ci = await start_node(id_tokens=IdTokenVerifier([trusted]))
        await ci.directory.grants.add(GrantInput(subject="group:deployers", repository="prod/*", actions=["push"]))
        for _ in range(100):
            with pytest.raises(IdTokenRefusedError):
                await ci.control.login("oidc", issuer.token(aud="other"), HOME)
        id_token = issuer.token()
        login = await ci.control.login("oidc", id_token, HOME)
        assert (login.subject, login.expires_at) == ("oidc:ci/main/acme/app", issuer.claims()["exp"])
        for name in ("ann", "robot$ci", "OIDC", ""):
            with pytest.raises(LoginRefusedError):
                await ci.control.login(name, id_token, HOME)
    policy = await ci.control.policy()
    assert policy.decide(login.subject, "prod/app", Action.PUSH).allowed
    token = await ci.token(login.subject)
    assert (await ci.control.authenticate(token, time.time()))[0].subject == login.subject
    with pytest.raises(InvalidTokenError):  # another worker whose configuration has no such rule any more
        await node.control.authenticate(token, time.time())
    await ci.directory.revocations.revoke(login.subject)
    with pytest.raises(InvalidTokenError, match="revoked"):
        await ci.control.authenticate(token, time.time())
    with pytest.raises(IdTokenRefusedError, match="no issuer of ID tokens is configured"):
        await node.control.login("oidc", id_token, HOME)


async def test_the_address_of_keys_is_shown_to_nobody(start_node: StartNode) -> None:
    """An issuer that does not answer is unavailable; its address and the cause are only in the log."""
    rule = ClaimRule("main", {"repository": [compile_text_pattern("acme/*")]}, "{repository}")
    with running_issuer() as issuer:
        token, port = issuer.token(), free_port()
        keys = IssuerKeys(issuer.url, f"http://127.0.0.1:{port}/keys")
        worker = await start_node(id_tokens=IdTokenVerifier([TrustedIssuer("ci", issuer.url, AUDIENCE, [rule], keys)]))
        with pytest.raises(LoginUnavailableError) as caught:
            await worker.control.login("oidc", token, HOME)
    assert str(caught.value) == "the keys of the token's issuer cannot be fetched"


async def test_a_password_that_ldap_knows(start_node: StartNode, node: Node, tmp_path: Path) -> None:
    """LDAP is asked only for users that an administrator marked and that are not disabled; failures count."""
    require_program("slapd")
    passwords = {"ann": "password in LDAP", "eve": "password in LDAP", "off": "password in LDAP"}
    with running(ldap_server(tmp_path / "slapd", passwords)) as slapd:
        ldap = LdapPasswords("127.0.0.1", slapd.port, "uid={name},ou=people,dc=example,dc=com", None)
        worker = await start_node(ldap=ldap)
        await worker.directory.users.put("eve", UserInput(is_ldap=True))
        await worker.directory.users.put("off", UserInput(is_ldap=True, is_disabled=True))
        login = await worker.control.login("eve", "password in LDAP", HOME)
        assert (login.subject, login.is_own_password) == ("user:eve", False)
        assert (await worker.control.login("ann", SECRET, HOME)).is_own_password
        for name, password in [("ann", "password in LDAP"), ("off", "password in LDAP"), ("eve", ""), ("eve", SECRET)]:
            with pytest.raises(LoginRefusedError):
                await worker.control.login(name, password, HOME)
        with pytest.raises(LoginRefusedError):  # a worker whose configuration has no LDAP any more
            await node.control.login("eve", "password in LDAP", HOME)
        for _ in range(7):  # both workers count together
            with pytest.raises(LoginRefusedError):
                await worker.control.login("eve", "wrong", HOME)
        with pytest.raises(TooManyLoginsError):
            await worker.control.login("eve", "password in LDAP", HOME)
    for _ in range(11):  # an outage is nobody's failure
        with pytest.raises(LoginUnavailableError):
            await worker.control.login("eve", "password in LDAP", "192.0.2.2")
    await worker.directory.users.put("eve", UserInput(password=SECRET))
    assert (await worker.control.login("eve", SECRET, "192.0.2.2")).is_own_password


class CountingLdap(LdapPasswords):
    """A directory that accepts no password."""

    binds = 0

    async def _ask(self, *_: object) -> int:
        self.binds += 1
        return 49


async def test_nobody_tells_by_a_wrong_password_who_is_in_ldap(
    start_node: StartNode, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong password costs one hash and one bind, for users of LDAP, local, disabled and unknown ones alike."""
    ldap = CountingLdap("127.0.0.1", 1, "{name}", None)
    worker = await start_node(ldap=ldap)
    await worker.directory.users.put("eve", UserInput(is_ldap=True))
    await worker.directory.users.put("off", UserInput(is_ldap=True, is_disabled=True))
    hashes, is_right = [], Passwords._is_right

    def count(passwords: Passwords, password: str, stored_hash: str) -> bool:
        hashes.append(password)
        return is_right(passwords, password, stored_hash)

    monkeypatch.setattr(Passwords, "_is_right", count)
    for name in ("eve", "ann", "off", "ghost"):
        for password in ("wrong", "wr\0ng"):
            hashes.clear()
            ldap.binds = 0
            with pytest.raises(LoginRefusedError):
                await worker.control.login(name, password, HOME)
            assert (hashes, ldap.binds) == ([password], 1), name


async def test_nobody_tells_by_an_outage_who_is_in_ldap(start_node: StartNode, node: Node) -> None:
    """An unknown name gets the same answer, without the address of LDAP; users known here still log in."""
    worker = await start_node(ldap=LdapPasswords("127.0.0.1", free_port(), "{name}", None))
    await worker.directory.users.put("eve", UserInput(is_ldap=True))
    await worker.directory.users.put("off", UserInput(is_ldap=True, is_disabled=True))
    messages = set()
    for name, password in (("eve", "right"), ("eve", ""), ("off", "right"), ("ghost", "right"), ("no:name", "x")):
        with pytest.raises(LoginUnavailableError) as caught:
            await worker.control.login(name, password, HOME)
        messages.add(str(caught.value))
    assert messages == {"LDAP, which may know the password, does not answer"}
    assert (await worker.control.login("ann", SECRET, HOME)).subject == "user:ann"
    for _ in range(10):
        with pytest.raises(LoginRefusedError):
            await worker.control.login("ann", "wrong", HOME)
    with pytest.raises(TooManyLoginsError):
        await worker.control.login("ann", "wrong", HOME)


async def test_a_changed_password_counts_at_once(node: Node) -> None:
    """The old password, which is remembered, and the old tokens are refused; the new password works."""
    await node.control.login("ann", SECRET, HOME)
    token = await node.token("user:ann")
    await node.control.authenticate(token, time.time())
    await node.directory.users.put("ann", UserInput(password="another password"))
    with pytest.raises(LoginRefusedError):
        await node.control.login("ann", SECRET, HOME)
    with pytest.raises(InvalidTokenError, match="revoked"):
        await node.control.authenticate(token, time.time())
    await node.control.login("ann", "another password", HOME)
    await node.control.authenticate(await node.token("user:ann"), time.time())


async def test_a_token_ends_with_its_subject(node: Node) -> None:
    """The token of a revoked, disabled or deleted subject is refused; a new subject of that name does not revive it."""
    tokens = [await node.token("user:ann")]
    await node.directory.revocations.revoke("user:ann")
    tokens.append(await node.token("user:ann"))
    await node.directory.users.delete("ann")
    await node.directory.users.put("ann", UserInput(password=SECRET))
    for token in tokens:
        with pytest.raises(InvalidTokenError):
            await node.control.authenticate(token, time.time())
    token = await node.token("user:ann")
    verified, policy = await node.control.authenticate(token, time.time())
    assert verified.subject == "user:ann"
    assert not policy.decide("user:ann", "team/a", Action.PULL).allowed  # the grants were deleted with the first ann


@pytest.mark.parametrize("revocation", ["of itself", "of the subject", "by a new password"])
async def test_attack_refresh_token_reused_after_its_revocation(node: Node, revocation: str) -> None:
    """A refresh token that was revoked in any way is refused, and so are the tokens that it gave."""
    secret, text = await node.directory.secrets.add("user:ann", SecretKind.REFRESH, SecretInput())
    login = await node.control.refresh(text)
    token = node.signer.issue(login.subject, 0, [], time.time(), secret_id=login.secret_id).token
    await node.control.authenticate(token, time.time())
    match revocation:
        case "of itself":
            await node.directory.secrets.delete("user:ann", secret.id)
        case "of the subject":
            await node.directory.revocations.revoke("user:ann")
        case _:
            await node.directory.users.put("ann", UserInput(password="another password"))
    for _ in range(2):
        with pytest.raises(LoginRefusedError):
            await node.control.refresh(text)
        with pytest.raises(InvalidTokenError):
            await node.control.authenticate(token, time.time())


async def test_anonymous_tokens(node: Node) -> None:
    """Anonymous tokens are issued like all others, and can be revoked."""
    token = await node.token("anonymous")
    verified, _ = await node.control.authenticate(token, time.time())
    assert verified.subject == "anonymous"
    await node.directory.revocations.revoke("anonymous")
    with pytest.raises(InvalidTokenError):
        await node.control.authenticate(token, time.time())


async def test_two_nodes_see_each_others_changes(redis: Server, start_node: StartNode) -> None:
    """Two nodes on one Redis: a change of grants is in force on the other within two seconds."""
    url = f"redis://127.0.0.1:{redis.port}/0"
    one, two = await start_node("one", url), await start_node("two", url)
    await one.directory.users.put("ann", UserInput(password=SECRET))
    assert not (await two.control.policy()).decide("user:ann", "team/a", Action.PULL).allowed
    grant = await one.directory.grants.add(GrantInput(subject="user:ann", repository="team/*", actions=["pull"]))
    for allowed in (True, False):
        async with asyncio.timeout(2):
            while (await two.control.policy()).decide("user:ann", "team/a", Action.PULL).allowed != allowed:  # noqa: ASYNC110 - it has to be asked
                await asyncio.sleep(0.02)
        if allowed:
            await one.directory.grants.delete(grant.id)


async def test_a_new_user_can_log_in_on_every_node_at_once(redis: Server, start_node: StartNode) -> None:
    """A user made on one node logs in on the second and uses the token on the third, without a delay."""
    url = f"redis://127.0.0.1:{redis.port}/0"
    one, two, three = [await start_node(name, url) for name in ("one", "two", "three")]
    for each in (two, three):
        await each.control.policy()
    await one.directory.users.put("ann", UserInput(password=SECRET))
    assert (await two.control.login("ann", SECRET, HOME)).subject == "user:ann"
    await three.control.authenticate(await two.token("user:ann"), time.time())
    await one.directory.users.put("ann", UserInput(password="another password"))
    assert (await two.control.login("ann", "another password", HOME)).subject == "user:ann"
    await three.control.authenticate(await two.token("user:ann"), time.time())


async def test_a_new_node_is_trusted_at_once(redis: Server, start_node: StartNode) -> None:
    """A token of a node that published its key a moment ago is accepted by all others; JWKS shows all keys."""
    url = f"redis://127.0.0.1:{redis.port}/0"
    one = await start_node("one", url)
    await one.control.policy()
    two = await start_node("two", url)
    await one.control.authenticate(await two.token("anonymous"), time.time())
    keys = (await one.control.public_keys())["keys"]
    assert {key["kid"] for key in keys} == {one.signer.key_id, two.signer.key_id}
    assert all("d" not in key for key in keys)


async def test_unknown_keys_cost_the_store_little(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tokens with unknown keys that come at once cost the store one question."""
    checks = 0
    check = node.watch.check

    async def counted() -> None:
        nonlocal checks
        checks += 1
        await check()

    await node.watch.aclose()
    monkeypatch.setattr(node.watch, "check", counted)
    await node.control.policy()  # or each comes after a wait for the previous one
    asking = (node.control.authenticate(UNKNOWN_KEY, time.time()) for _ in range(50))
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(answer, InvalidTokenError) for answer in answers)
    assert checks == 1


async def test_a_caller_that_leaves_takes_no_check_of_the_store_along(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that waits for the store and is cancelled does not make the others wait for a second question."""
    gate, checks = asyncio.Event(), 0

    async def held() -> None:
        nonlocal checks
        checks += 1
        await gate.wait()

    async def ask() -> None:
        with pytest.raises(InvalidTokenError):
            await node.control.authenticate(UNKNOWN_KEY, time.time())

    await node.watch.aclose()
    monkeypatch.setattr(node.watch, "check", held)
    await node.control.policy()  # or each comes after a wait for the previous one
    first, *others = [spawn(ask(), "asks") for _ in range(9)]
    await until(lambda: checks == 1)
    first.cancel()
    await asyncio.wait([first])
    gate.set()
    await asyncio.gather(*others)
    assert checks == 1


async def test_a_store_that_hangs_is_not_waited_for_for_ever(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that never answers breaks nothing else: a token with an unknown key is refused all the same."""
    await node.watch.aclose()
    monkeypatch.setattr(node.watch, "check", asyncio.Event().wait)
    monkeypatch.setattr(snapshot, "_CHECK_PATIENCE_SECONDS", 0.05)
    for _ in range(3):
        with pytest.raises(InvalidTokenError):
            await node.control.authenticate(UNKNOWN_KEY, time.time())


async def test_expired_keys_are_not_accepted(node: Node) -> None:
    """A published key counts until its expiry; an invalid key is left out and harms no other."""
    jwk = {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "broken"}
    now = time.time()
    await node.store.commit(
        [
            Change(Table.KEYS, "broken", {"jwk": jwk, "expires_at": now + 100}),
            Change(Table.KEYS, "old", {"jwk": dict(node.signer.public_jwk), "expires_at": now - 1}),
        ]
    )
    keys = (await node.control.public_keys())["keys"]
    assert [key["kid"] for key in keys] == [node.signer.key_id]


async def test_keys_are_published_again(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published key is valid for weeks, and is renewed in time for as long as the node runs."""
    record = await node.store.get(Table.KEYS, node.signer.key_id)
    assert record is not None
    assert record.value["expires_at"] > time.time() + 10 * signing_keys.KEY_RENEWAL_SECONDS
    monkeypatch.setattr(signing_keys, "KEY_RENEWAL_SECONDS", 0.01)
    async with node.control.publishing(node.signer):
        await until(lambda: node.watch.version(Table.KEYS) > 5)


async def test_an_outage_in_open_mode(redis: Server, start_node: StartNode) -> None:
    """While Redis is away the last snapshot serves policies, tokens and logins; afterwards changes are seen again."""
    node = await start_node("one", f"redis://127.0.0.1:{redis.port}/0", 3600)
    await node.directory.users.put("ann", UserInput(password=SECRET))
    await node.directory.grants.add(GrantInput(subject="user:ann", repository="team/**", actions=["pull"]))
    token = await node.token("user:ann")
    redis.stop(signal.SIGKILL)
    await until(lambda: node.watch.seconds_since_contact() > 1)
    _, policy = await node.control.authenticate(token, time.time())
    assert policy.decide("user:ann", "team/a", Action.PULL).allowed
    assert (await node.control.login("ann", SECRET, HOME)).subject == "user:ann"
    with pytest.raises(LoginRefusedError):
        await node.control.login("ann", "wrong", HOME)
    with pytest.raises(LoginRefusedError):
        await node.control.login("ghost", SECRET, HOME)
    redis.start()
    await until(lambda: node.watch.seconds_since_contact() < 1)
    await node.directory.users.put("bob", UserInput(password=SECRET))
    assert (await node.control.policy()).generation("user:bob") == 0


@pytest.mark.parametrize("max_age", [None, 1.2])
async def test_an_outage_that_is_too_long_closes(
    redis: Server, start_node: StartNode, monkeypatch: pytest.MonkeyPatch, max_age: float | None
) -> None:
    """Soon in closed mode, past the age limit in open mode, the snapshot serves no more; then it serves again."""
    monkeypatch.setattr(snapshot, "_CLOSED_AFTER_SECONDS", 1.5)
    node = await start_node("one", f"redis://127.0.0.1:{redis.port}/0", max_age)
    await node.directory.users.put("ann", UserInput(password=SECRET))
    token = await node.token("user:ann")
    redis.stop(signal.SIGKILL)
    await until(lambda: node.watch.seconds_since_contact() > 1.5)
    for refused in (
        node.control.policy(),
        node.control.authenticate(token, time.time()),
        node.control.login("ann", SECRET, HOME),
        node.control.public_keys(),
    ):
        with pytest.raises(StoreUnavailableError):
            await refused
    redis.start()
    await until(lambda: node.watch.seconds_since_contact() < 0.4)
    await node.control.authenticate(token, time.time())


@pytest.mark.parametrize("silent", [False, True])
async def test_a_process_that_was_held_up_asks_before_it_refuses(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch, *, silent: bool
) -> None:
    """A store that nobody asked for long is not unavailable; one that failed lately is not asked at every request."""
    node = await start_node(outage_max_age_seconds=None)
    await node.watch.aclose()
    age, check = 100.0, node.watch.check

    async def checked() -> None:
        nonlocal age
        await check()
        age = 0.0

    monkeypatch.setattr(node.watch, "check", checked)
    monkeypatch.setattr(node.watch, "seconds_since_contact", lambda: age)
    monkeypatch.setattr(node.watch, "is_silent", lambda: silent)
    with pytest.raises(StoreUnavailableError) if silent else contextlib.nullcontext():
        await node.control.policy()
    assert age == (100.0 if silent else 0.0)


async def test_without_any_snapshot_nothing_is_served(start_node: StartNode) -> None:
    """A node that starts while Redis is away refuses everything, immediately and every time."""
    node = await start_node("one", f"redis://127.0.0.1:{free_port()}/0")
    async with asyncio.timeout(10):
        for _ in range(50):
            with pytest.raises(StoreUnavailableError):
                await node.control.policy()
