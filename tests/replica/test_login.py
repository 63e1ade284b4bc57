"""Login to a replica: the hosts that get the password, the number of tokens, and the errors of refusals."""

import asyncio
from typing import Any

import pytest
from yarl import URL

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.protocol.challenge import parse_challenges
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Repository, digest_of
from registry_proxy.replica.connections import ReplicaAddress, ReplicaConnections
from registry_proxy.replica.failure import AccessRefusedError, ReplicaFailedError
from registry_proxy.replica.login import ReplicaLogin
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import PATIENT, REPOSITORY, open_client

ANN = ("ann", "secret-of-ann")
CREDENTIALS: dict[str, Any] = {"username": ANN[0], "password": ANN[1]}


async def test_basic_is_sent_once_it_was_demanded() -> None:
    """After the first 401 later requests carry the credentials immediately."""
    async with FakeRegistry(basic=ANN) as registry, open_client(registry.url, **CREDENTIALS) as client:
        digest = registry.add_blob(REPOSITORY, b"x")
        await client.stat_blob(REPOSITORY, digest)
        await client.stat_blob(REPOSITORY, digest)
        await client.probe()
    assert registry.count("HEAD") == 3


async def test_a_token_is_fetched_once_for_a_scope() -> None:
    """Many requests at once for one repository cost one token; another repository, and a push, cost one each."""
    other = Repository("team/other")
    async with FakeRegistry(bearer=ANN) as registry, open_client(registry.url, **CREDENTIALS) as client:
        digest = registry.add_blob(REPOSITORY, b"x")
        registry.add_blob(other, b"x")
        await asyncio.gather(*(client.stat_blob(REPOSITORY, digest) for _ in range(20)))
        assert registry.count("GET", "/token") == 1
        asked = registry.count("HEAD")
        await client.stat_blob(other, digest)
        assert (registry.count("GET", "/token"), registry.count("HEAD")) == (2, asked + 1)
        location = await client.start_upload(REPOSITORY)
        await client.cancel_upload(location)
        assert registry.count("GET", "/token") == 3
    scopes = [URL(r.target).query["scope"] for r in registry.requests if r.target.startswith("/token")]
    assert scopes[0] == f"repository:{REPOSITORY}:pull"
    assert scopes[2] == f"repository:{REPOSITORY}:pull,push"


async def test_a_token_that_expired_early_is_replaced() -> None:
    """A 401 for a token that should still be good fetches another, once."""
    async with FakeRegistry(bearer=ANN) as registry, open_client(registry.url, **CREDENTIALS) as client:
        digest = registry.add_blob(REPOSITORY, b"x")
        await client.stat_blob(REPOSITORY, digest)
        registry.tokens.clear()
        await client.stat_blob(REPOSITORY, digest)
    assert registry.count("GET", "/token") == 2


async def test_a_token_past_its_life_is_not_sent() -> None:
    """A token without a useful lifetime serves only the request for which it was fetched."""
    answer = b'{"access_token": "short", "expires_in": 0.001}'
    async with FakeRegistry(bearer=ANN) as registry, open_client(registry.url, **CREDENTIALS) as client:
        digest = registry.add_blob(REPOSITORY, b"x")
        registry.tokens.add("short")
        registry.inject(Fault("/token", status=200, body=answer))
        await client.stat_blob(REPOSITORY, digest)
        await client.stat_blob(REPOSITORY, digest)
    assert registry.count("GET", "/token") == 2


async def test_anonymous_tokens_need_no_credentials() -> None:
    """A registry that gives tokens to everyone is read without a user name."""
    async with FakeRegistry(bearer=ANN) as registry, open_client(registry.url) as client:
        digest = registry.add_blob(REPOSITORY, b"x")
        registry.tokens.add("anonymous")
        registry.inject(Fault("/token", status=200, body=b'{"token": "anonymous"}'))
        await client.stat_blob(REPOSITORY, digest)
    assert all("basic" not in r.headers.get("authorization", "").lower() for r in registry.requests)


@pytest.mark.parametrize("kind", ["basic", "bearer"])
async def test_refused_credentials_are_a_502_and_not_in_the_error(kind: str) -> None:
    """A wrong password is a 502 with the reason in detail, never a 401 for our client, never the password."""
    wrong: dict[str, Any] = {"username": "ann", "password": "hunter2-wrong"}
    registry = FakeRegistry(basic=ANN) if kind == "basic" else FakeRegistry(bearer=ANN)
    async with registry, open_client(registry.url, **wrong) as client:
        for ask in (client.stat_blob(REPOSITORY, digest_of(b"x")), client.probe()):
            with pytest.raises(AccessRefusedError) as refused:
                await ask
            assert (refused.value.status, refused.value.code) == (502, ErrorCode.UNAVAILABLE)
            assert "hunter2" not in f"{refused.value}{refused.value.detail}{refused.value!r}"
    assert "hunter2" not in repr(ReplicaAddress("main", "a", "http://x", **wrong))


async def test_the_password_goes_to_no_other_host() -> None:
    """A realm on another host is refused; a listed one is used."""
    async with FakeRegistry(bearer=ANN) as registry, FakeRegistry(bearer=ANN) as thief:
        registry.realm = f"http://localhost:{thief.port}/token"
        async with open_client(registry.url, **CREDENTIALS) as client:
            with pytest.raises(AccessRefusedError):
                await client.stat_blob(REPOSITORY, digest_of(b"x"))
        assert thief.requests == []
        async with open_client(registry.url, realm_hosts=("localhost",), **CREDENTIALS) as client:
            thief.tokens = registry.tokens
            with pytest.raises(RegistryError) as absent:
                await client.stat_blob(REPOSITORY, digest_of(b"x"))
    assert absent.value.code is ErrorCode.BLOB_UNKNOWN


@pytest.mark.parametrize(
    ("realm", "is_allowed"),
    [
        ("https://registry.example/token", True),
        ("https://registry.example:8443/token", True),
        ("https://auth.docker.io/token", False),
        ("http://registry.example/token", False),
        ("https://registry.example.evil.example/token", False),
        ("https://registry.example@evil.example/token", False),
        ("https://evil.example@registry.example/token", False),
        ("http://169.254.169.254/latest/meta-data/", False),
        ("file:///etc/passwd", False),
        ("/token", False),
        ("", False),
        ("http://[", False),
    ],
)
async def test_realms_from_which_a_token_may_be_fetched(realm: str, is_allowed: bool) -> None:  # noqa: FBT001 - table
    """The realm must be on the replica's own host, never less safe, and carry no user."""
    connections = ReplicaConnections()
    login = ReplicaLogin(ReplicaAddress("main", "a", "https://registry.example"), connections, PATIENT, tls=True)
    try:
        assert str(login._check_url(realm, "the realm")) == realm
    except AccessRefusedError:
        assert not is_allowed
    else:
        assert is_allowed
    finally:
        await connections.aclose()


@pytest.mark.parametrize(
    ("url", "options", "is_sent"),
    [
        ("http://127.0.0.1:5000", {}, True),
        ("http://[::1]:5000", {}, True),
        ("http://localhost:5000", {}, True),
        ("https://registry.example", {}, True),
        ("http://registry.example", {}, False),
        ("http://127.0.0.1.example", {}, False),
        ("http://registry.example", {"allow_plain_credentials": True}, True),
    ],
)
async def test_passwords_over_plain_http(url: str, options: dict[str, bool], is_sent: bool) -> None:  # noqa: FBT001 - table
    """A password goes over plain HTTP only to this machine, unless the configuration allows it."""
    connections = ReplicaConnections()
    login = ReplicaLogin(ReplicaAddress("main", "a", url, *ANN, **options), connections, PATIENT, tls=True)  # type: ignore[arg-type]  # flags
    try:
        assert (await login.answer(parse_challenges(["Basic realm=x"]), (), rejected=None)).startswith("Basic ")
    except AccessRefusedError:
        assert not is_sent
    else:
        assert is_sent
    finally:
        await connections.aclose()


@pytest.mark.parametrize("challenge", [None, "", "Negotiate", 'Digest realm="x"'])
async def test_a_challenge_that_cannot_be_met_is_a_refusal(challenge: str | None) -> None:
    """A 401 without a challenge, or with an unknown scheme, is a refusal and no defect."""
    headers = {"WWW-Authenticate": challenge} if challenge else {}
    async with FakeRegistry() as registry, open_client(registry.url, **CREDENTIALS) as client:
        registry.inject(Fault(status=401, headers=headers))
        with pytest.raises(AccessRefusedError):
            await client.stat_blob(REPOSITORY, digest_of(b"x"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"token": 5}',
        b'{"token": "a\\r\\nX: y"}',
        b"[" * 9999,
        pytest.param(b'{"token": "%s"}' % (b"a" * 20_000), id="too long to be remembered"),
    ],
)
async def test_a_token_endpoint_that_gives_no_token_is_a_failure(body: bytes) -> None:
    """An answer without a token makes the replica unavailable; no part of it is passed on."""
    async with FakeRegistry(bearer=ANN) as registry, open_client(registry.url, **CREDENTIALS) as client:
        registry.inject(Fault("/token", status=200, body=body))
        with pytest.raises(ReplicaFailedError):
            await client.stat_blob(REPOSITORY, digest_of(b"x"))
        registry.inject(Fault("/token", status=503))
        with pytest.raises(UpstreamUnavailableError):
            await client.stat_blob(REPOSITORY, digest_of(b"x"))
