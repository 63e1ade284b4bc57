"""A registry outside cannot make the proxy call an address inside, however it writes the address."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from registry_proxy.protocol.reference import digest_of
from registry_proxy.protocol.zones import Zone, zone_of
from registry_proxy.replica import connections
from registry_proxy.replica.failure import BadUpstreamError, ReplicaFailedError
from tests.support.fakes.malice import Asked, Malice, Said, answer, challenge
from tests.support.fakes.upstream import REPOSITORY, open_client, read_all

BODY = b"of the storage"
OUTSIDE, INSIDE = "127.0.0.1", "127.0.0.2"


@dataclass
class Scene:
    """A registry that counts as outside, and a service inside that answers every request."""

    registry: Malice
    inside: Malice
    says: dict[str, bytes] = field(default_factory=dict)

    def redirect(self, location: str) -> None:
        """Have the registry redirect to the service inside; PORT is its port."""
        self.says["/blobs/"] = answer(307, {"Location": location.replace("PORT", str(self.inside.port))})


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Start both; the name ``inside.test`` resolves to the address of the service."""
    monkeypatch.setattr(connections, "zone_of", lambda host: Zone.GLOBAL if host == OUTSIDE else zone_of(host))
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        return real(INSIDE if host == "inside.test" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    says: dict[str, bytes] = {}

    def answers(asked: Asked) -> Said:
        return next((said for part, said in says.items() if part in asked.target), answer(200, {}, b"{}"))

    with Malice(answers) as registry, Malice(lambda _: answer(200, {}, BODY), host=INSIDE) as inside:
        yield Scene(registry, inside, says)


NOTATIONS = [
    *("127.0.0.2:PORT", "0x7f000002:PORT", "0177.0.0.2:PORT", "2130706434:PORT", "127.2:PORT", "0x7f.0.0x2:PORT"),
    *("[::ffff:127.0.0.2]:PORT", "[::ffff:7f00:2]:PORT", "inside.test:PORT", "INSIDE.test.:PORT"),
]


@pytest.mark.parametrize("notation", NOTATIONS)
async def test_a_redirect_inside_is_not_followed(scene: Scene, notation: str) -> None:
    """The redirect is a 502 immediately, without details of the inside, and no request goes there."""
    scene.redirect(f"http://{notation}/admin")
    async with open_client(scene.registry.url) as client:
        with pytest.raises((BadUpstreamError, ReplicaFailedError)) as refused:
            async with client.open_blob(REPOSITORY, digest_of(BODY)):
                pass
    assert scene.inside.requests == []
    if notation.startswith(
        ("127.0.0.2", "0x7f000002", "[", "inside.test:")
    ):  # aiohttp or the resolver refuses the others
        assert isinstance(refused.value, BadUpstreamError)
        assert refused.value.reason == "it redirects to an address inside the network"


async def test_a_storage_that_is_listed_may_be_inside(scene: Scene) -> None:
    """A registry may redirect to a host inside that the operator has listed."""
    scene.redirect("http://inside.test:PORT/storage")
    listed = open_client(scene.registry.url, redirect_hosts=("inside.test",))
    async with listed as client, client.open_blob(REPOSITORY, digest_of(BODY)) as stream:
        assert await read_all(stream) == BODY


async def test_a_registry_inside_may_redirect_there(scene: Scene) -> None:
    """A registry at the address of the service itself needs no list."""
    scene.redirect("http://127.0.0.2:PORT/storage")
    with Malice(scene.registry.answers, host="127.0.0.3") as neighbour:
        async with open_client(neighbour.url) as client, client.open_blob(REPOSITORY, digest_of(BODY)) as stream:
            assert await read_all(stream) == BODY


async def test_a_token_is_not_fetched_inside(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A realm on the registry's own name, at another port, is checked by the address that the name has."""
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        inside = host == "registry.test" and port == scene.inside.port
        return real(INSIDE if inside else OUTSIDE if host == "registry.test" else host, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    scene.says["/blobs/"] = challenge(f"http://registry.test:{scene.inside.port}/token")
    async with open_client(f"http://registry.test:{scene.registry.port}") as client:
        with pytest.raises((BadUpstreamError, ReplicaFailedError)):
            await client.stat_blob(REPOSITORY, digest_of(BODY))
    assert scene.inside.requests == []
