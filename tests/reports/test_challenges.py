"""A 401 is answered by the strongest supported challenge, in any order, and a password stays on its host.

Reports: Nexus and Artifactory (`Basic` beside `Bearer`), registries behind Kerberos (`Negotiate` beside `Basic`), token
endpoints that add a slash by a redirect, Quay, GitLab and GHCR (a placeholder scope in the challenge of `/v2/`).
"""

from typing import Any

import pytest
from multidict import CIMultiDict

from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.protocol.reference import Tag, digest_of
from registry_proxy.replica.failure import AccessRefusedError
from registry_proxy.upstream.failover import FailoverReader
from tests.support.fakes.registry import FakeRegistry, Fault, Recorded
from tests.support.fakes.upstream import REPOSITORY, ScriptedMarks, open_client, open_replicas

ANN = ("ann", "secret-of-ann")
CREDENTIALS: dict[str, Any] = {"username": ANN[0], "password": ANN[1]}
BODY = b'{"schemaVersion": 2}'
BASIC, BEARER = 'Basic realm="a, b"', 'Bearer realm="{url}/token",service="fake"'
STRANGE = 'Bearer realm="https://auth.example/token"'


def challenging(registry: FakeRegistry, challenges: list[str], *, but_for: str) -> None:
    """Answer requests without an accepted scheme with the given challenges, one header each."""
    headers = CIMultiDict([("WWW-Authenticate", one.replace("{url}", registry.url)) for one in challenges])

    class Unless(Fault):
        """Applies to requests that do not carry the demanded credentials."""

        def applies_to(self, request: Recorded) -> bool:
            return not request.headers.get("authorization", "").startswith(but_for) and super().applies_to(request)

    registry.inject(Unless("^/v2/", status=401, headers=headers))


@pytest.mark.parametrize(
    ("challenges", "taken"),
    [
        (["Negotiate", BASIC], "Basic"),
        ([f"Negotiate, {BASIC}"], "Basic"),
        (["Negotiate YII=", BASIC], "Basic"),
        ([BASIC, BEARER], "Bearer"),
        ([BEARER, BASIC], "Bearer"),
        ([f"{BASIC}, {BEARER}"], "Bearer"),
        ([f"{BEARER}, {BASIC}, Negotiate"], "Bearer"),
        ([STRANGE, BASIC], "Basic"),
        ([f"{STRANGE}, {BEARER}"], "Bearer"),
    ],
)
async def test_the_strongest_that_can_be_met_is(challenges: list[str], taken: str) -> None:
    """A token where one is available, else Basic, is used by requests and probes, whatever else is offered."""
    demands: dict[str, Any] = {taken.lower(): ANN}
    async with FakeRegistry(**demands) as registry:
        challenging(registry, challenges, but_for=taken)
        registry.add_manifest(REPOSITORY, BODY, "1")
        async with open_client(registry.url, **CREDENTIALS) as client:
            await client.probe()
            assert (await client.resolve_tag(REPOSITORY, Tag("1"))).digest == digest_of(BODY)


async def test_basic_stands_in_for_a_token_that_is_refused() -> None:
    """Where the token endpoint refuses us, and Basic is offered as well, Basic is sent."""
    async with FakeRegistry(basic=ANN) as registry, open_client(registry.url, **CREDENTIALS) as client:
        challenging(registry, [f"{BEARER}, {BASIC}"], but_for="Basic")
        registry.inject(Fault("^/token", status=403))
        registry.add_manifest(REPOSITORY, BODY, "1")
        for _ in range(3):
            assert (await client.resolve_tag(REPOSITORY, Tag("1"))).digest == digest_of(BODY)
        assert registry.count("GET", "^/token") == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/token2", "{url}/token2?service=fake", "token2"])
async def test_a_redirect_on_its_own_host_is_followed(status: int, location: str) -> None:
    """The redirect is followed with the credentials, to an absolute or a relative location."""
    async with FakeRegistry(bearer=ANN) as registry, open_client(registry.url, **CREDENTIALS) as client:
        registry.add_manifest(REPOSITORY, BODY, "1")
        registry.tokens.add("given")
        registry.inject(
            Fault(r"^/token\?", status=status, headers={"Location": location.replace("{url}", registry.url)})
        )
        registry.inject(Fault("^/token2", status=200, body=b'{"token": "given"}'))
        assert (await client.resolve_tag(REPOSITORY, Tag("1"))).digest == digest_of(BODY)
    [asked] = [one for one in registry.requests if one.target.startswith("/token2")]
    assert asked.headers["authorization"].startswith("Basic ")


async def test_no_redirect_takes_the_password_elsewhere() -> None:
    """A redirect to another host, to no URL, or in circles is a refusal, and nothing is sent there."""
    async with FakeRegistry(bearer=ANN) as registry, FakeRegistry() as thief:
        for location in (f"http://localhost:{thief.port}/", "ftp://127.0.0.1/", "http://[", "", "/token?again"):
            async with open_client(registry.url, **CREDENTIALS) as client:
                registry.faults = [Fault("^/token", status=307, headers={"Location": location})]
                with pytest.raises(AccessRefusedError):
                    await client.resolve_tag(REPOSITORY, Tag("1"))
        assert thief.requests == []


PLACEHOLDER = BEARER + ',scope="repository:user/image:pull"'


@pytest.mark.parametrize("credentials", [CREDENTIALS, {}], ids=["with an account", "anonymous"])
@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize("without_scope", [200, 400, 403])
async def test_a_placeholder_scope_says_nothing_of_the_replica(
    status: int, without_scope: int, credentials: dict[str, Any]
) -> None:
    """Without a token for the placeholder scope of `/v2/` the replica is up, and is read from."""
    async with FakeRegistry(bearer=ANN) as registry:
        registry.add_manifest(REPOSITORY, BODY, "1")
        registry.tokens.add("given")
        challenging(registry, [PLACEHOLDER], but_for="Bearer")
        registry.inject(Fault("^/token", status=200, body=b'{"token": "given"}'))
        if without_scope != 200:
            registry.inject(Fault("^/token[^:]*$", status=without_scope))
        registry.inject(Fault("^/token.*user(/|%2F)image", status=status))
        own = f'{BEARER.replace("{url}", registry.url)},scope="repository:{REPOSITORY}:pull"'
        registry.inject(Fault(f"^/v2/{REPOSITORY}", status=401, headers={"WWW-Authenticate": own}, times=1))
        async with open_replicas([registry.url], **credentials) as replicas:
            assert replicas.status()[0].state is ReplicaState.UP
            found = await FailoverReader(replicas, ScriptedMarks(), 0).resolve_tag(REPOSITORY, Tag("1"))
            assert found.digest == digest_of(BODY)


async def test_a_token_that_is_good_for_no_placeholder_leaves_it_up() -> None:
    """It is up where `/v2/` wants the placeholder's access, and the token endpoint gives tokens without it."""
    async with FakeRegistry(bearer=ANN) as registry:
        challenging(registry, [PLACEHOLDER + ',error="insufficient_scope"'], but_for="never")
        async with open_replicas([registry.url], **CREDENTIALS) as replicas:
            assert replicas.status()[0].state is ReplicaState.UP


@pytest.mark.parametrize("challenge", [BEARER, PLACEHOLDER])
async def test_a_wrong_password_is_still_a_state(challenge: str) -> None:
    """A 401 of the token endpoint to the account itself, without a scope, is a state of the replica."""
    async with FakeRegistry(bearer=ANN) as registry:
        challenging(registry, [challenge], but_for="Bearer")
        async with open_replicas([registry.url], username="ann", password="wrong") as replicas:
            assert replicas.status()[0].state is ReplicaState.CREDENTIALS_REFUSED
