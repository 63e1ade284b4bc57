"""A refusal is about one repository and action: all other requests still reach the replica.

Reports: Harbor, ECR, GHCR and Artifactory answer 401 or 403 for a mistyped or private name, and proxies before them
then answered 502 to everybody for a while.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.replicas import ReplicaState
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Repository, Tag, digest_of
from registry_proxy.replica.failure import AccessRefusedError, ReplicaFailedError
from registry_proxy.tasks import spawn
from registry_proxy.upstream.failover import FailoverReader
from registry_proxy.upstream.replicas import UpstreamReplicas
from tests.conftest import StartProxy
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import PATIENT, ScriptedMarks, open_client, open_replicas
from tests.support.product import OCI_MANIFEST, make_image
from tests.support.waiting import until

ANN = ("ann", "secret-of-ann")
CREDENTIALS: dict[str, Any] = {"username": ANN[0], "password": ANN[1]}
FINE, FORBIDDEN = Repository("team/app"), Repository("forbidden/app")
BODY = b'{"schemaVersion": 2}'


def of_tokens(status: int) -> Fault:
    """Return a token endpoint's refusal of one scope."""
    return Fault(rf"^/token.*scope=repository(:|%3A){FORBIDDEN}", status=status)


def of_requests(status: int, challenge: str | None = None) -> Fault:
    """Return a registry's refusal of requests for one repository."""
    return Fault(f"^/v2/{FORBIDDEN}/", status=status, headers={"WWW-Authenticate": challenge} if challenge else {})


ELSEWHERE = 'Bearer realm="https://auth.example/token",scope="repository:forbidden/app:pull"'
CATALOG = Fault("scope=registry(:|%3A)catalog", status=401)

REFUSALS: dict[str, tuple[str, Fault]] = {
    "token 400": ("bearer", of_tokens(400)),
    "token 401": ("bearer", of_tokens(401)),
    "token 403": ("bearer", of_tokens(403)),
    "token 404": ("bearer", of_tokens(404)),
    "token 500": ("bearer", of_tokens(500)),
    "token without the access": ("bearer", of_requests(401, 'Bearer realm="{url}/token",error="insufficient_scope"')),
    "realm on another host": ("bearer", of_requests(401, ELSEWHERE)),
    "another scheme": ("bearer", of_requests(401, "Negotiate")),
    "Basic there, Bearer elsewhere": ("bearer", of_requests(401, 'Basic realm="x"')),
    "Basic 401": ("basic", of_requests(401, 'Basic realm="x"')),
    "Bearer there, Basic elsewhere": ("basic", of_requests(401, 'Bearer realm="{url}/none",service="x"')),
    "403": ("bearer", of_requests(403)),
    "anonymous 401": ("open", of_requests(401, 'Basic realm="x"')),
}


@dataclass
class Scene:
    """A replica that refuses one repository, and a reader over it."""

    registry: FakeRegistry
    replicas: UpstreamReplicas
    reader: FailoverReader

    @property
    def state(self) -> ReplicaState:
        return self.replicas.status()[0].state

    async def ask_for_the_forbidden(self) -> Exception:
        """Ask for the refused repository; return the error."""
        with pytest.raises((RegistryError, UpstreamUnavailableError)) as refused:
            await self.reader.resolve_tag(FORBIDDEN, Tag("1"))
        return refused.value


@asynccontextmanager
async def scene(kind: str) -> AsyncIterator[Scene]:
    """Start a registry with a repository that it refuses, as ``REFUSALS`` says, and one that it does not."""
    demands, fault = REFUSALS[kind]
    pairs: dict[str, Any] = {} if demands == "open" else {demands: ANN}
    async with FakeRegistry(**pairs) as registry:
        registry.add_manifest(FINE, BODY, "1")
        challenge = fault.headers.get("WWW-Authenticate", "").replace("{url}", registry.url)
        headers = {"WWW-Authenticate": challenge} if challenge else {}
        registry.inject(Fault(fault.target, status=fault.status, headers=headers))
        async with open_replicas([registry.url], **(CREDENTIALS if pairs else {})) as replicas:
            yield Scene(registry, replicas, FailoverReader(replicas, ScriptedMarks(), 0))


@contextmanager
def hammering(ask: Callable[[], Any]) -> Iterator[list[int]]:
    """Ask repeatedly for the length of a with block, four at a time; give the number so far."""
    asked = [0]

    async def go_on() -> None:
        while True:
            await ask()
            asked[0] += 1
            await asyncio.sleep(0)  # some errors need no request, and so no pause

    tasks = [spawn(go_on(), "hammer") for _ in range(4)]
    try:
        yield asked
    finally:
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("kind", REFUSALS)
async def test_the_others_are_served_beside_it(kind: str) -> None:
    """During constant requests for one repository each request for another is answered, and no state changes."""
    async with scene(kind) as one:
        with hammering(one.ask_for_the_forbidden) as asked:
            for _ in range(50):
                assert (await one.reader.resolve_tag(FINE, Tag("1"))).digest == digest_of(BODY)
                assert one.replicas.is_writable("a")
            await until(lambda: asked[0] > 20)
        assert one.state is ReplicaState.UP
        location = await one.replicas.client("a").start_upload(FINE)
        await one.replicas.client("a").cancel_upload(location)


@pytest.mark.parametrize("kind", REFUSALS)
async def test_its_reason_is_not_shown_elsewhere(kind: str) -> None:
    """Neither an error of another repository nor the admin API's state of the replica names a refused repository."""
    async with scene(kind) as one:
        await one.ask_for_the_forbidden()
        one.registry.inject(Fault(f"^/v2/{FINE}", status=500))
        with pytest.raises(UpstreamUnavailableError) as failed:
            await one.reader.resolve_tag(FINE, Tag("1"))
        text = f"{failed.value} {[(status.state, status.reason) for status in one.replicas.status()]}"
        assert "forbidden" not in text
        assert re.search("refuse|token endpoint|credential", text) is None


async def test_a_list_of_repositories_that_is_refused_changes_no_state() -> None:
    """An account that may not list the catalog reads everything else."""
    async with scene("token 401") as one:
        one.registry.inject(CATALOG)
        for _ in range(3):
            with pytest.raises(RegistryError):
                await one.reader.list_repositories()
            assert (await one.reader.resolve_tag(FINE, Tag("1"))).digest == digest_of(BODY)
        assert one.state is ReplicaState.UP


@pytest.mark.parametrize("kind", ["token 401", "token 403", "token without the access"])
async def test_the_token_endpoint_is_spared(kind: str) -> None:
    """Many refused requests, at once and one by one, cost it two or three requests, and others none."""
    async with scene(kind) as one:
        await one.reader.resolve_tag(FINE, Tag("1"))
        before = one.registry.count("GET", "/token")
        await asyncio.gather(*(one.ask_for_the_forbidden() for _ in range(20)))
        for _ in range(20):
            await one.ask_for_the_forbidden()
            await one.reader.resolve_tag(FINE, Tag("1"))
        assert one.registry.count("GET", f"/token.*{FORBIDDEN}") <= 3
        assert one.registry.count("GET", "/token") <= before + 4  # one of them may be a probe's


async def test_probes_are_no_storm() -> None:
    """However often a repository is refused, a replica is probed about once a second at most."""
    async with scene("403") as one:
        before = one.registry.count("GET", "^/v2/$")
        for _ in range(100):
            await one.ask_for_the_forbidden()
        await one.registry.wait_for("GET", "^/v2/$", count=before + 1)
        assert one.registry.count("GET", "^/v2/$") <= before + 3


async def test_a_refusal_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Access granted upstream is noticed when the refusal is old enough, without a restart."""
    monkeypatch.setattr("registry_proxy.replica.login.REFUSED_SECONDS", 0.2)
    async with scene("token 403") as one:
        await one.ask_for_the_forbidden()
        one.registry.faults.clear()
        one.registry.add_manifest(FORBIDDEN, BODY, "1")

        served = []

        async def ask() -> None:
            with suppress(RegistryError):
                served.append(await one.reader.resolve_tag(FORBIDDEN, Tag("1")))

        with hammering(ask):
            await until(lambda: bool(served))


async def test_a_password_that_is_refused_everywhere_is_a_state_of_the_replica() -> None:
    """The probe after a refusal finds refused credentials; the state says so until they are accepted."""
    async with FakeRegistry(basic=ANN) as registry, open_replicas([registry.url], **CREDENTIALS) as replicas:
        registry.add_manifest(FINE, BODY, "1")
        changed = registry.inject(Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="fake"'}))
        reader = FailoverReader(replicas, ScriptedMarks(), 0)
        with pytest.raises(AccessRefusedError):
            await reader.resolve_tag(FINE, Tag("1"))
        await until(lambda: replicas.status()[0].state is ReplicaState.CREDENTIALS_REFUSED)
        registry.faults.remove(changed)
        await until(lambda: replicas.status()[0].state is ReplicaState.UP)


async def test_uploads_go_on_while_another_repository_is_refused_in_another_way() -> None:
    """A body is never sent with the credentials of another repository's challenge from the meantime."""
    async with scene("Basic there, Bearer elsewhere") as one:
        client = one.replicas.client("a")
        with hammering(one.ask_for_the_forbidden) as asked:
            for number in range(20):
                content = str(number).encode()

                async def body(content: bytes = content, since: int = asked[0]) -> AsyncIterator[bytes]:
                    await until(lambda: asked[0] > since)
                    yield content

                location = await client.start_upload(FINE)
                location = await client.append_upload(location, body(), len(content))
                await client.commit_upload(location, digest_of(content))


@pytest.mark.parametrize(
    "fault", [Fault(status=500), Fault(cut_after=1), Fault(html=True), Fault(status=400), Fault(stall=True)]
)
async def test_a_broken_object_takes_nothing_else_away(fault: Fault) -> None:
    """A replica that fails with one object, cuts it or stalls on it serves all others, and stays writable."""
    broken = digest_of(b"broken")
    timeouts = PATIENT if not fault.stall else type(PATIENT)(connect=5, first_byte=0.3, stall=0.3, probe=10, commit=10)
    async with FakeRegistry() as registry, open_replicas([registry.url], timeouts=timeouts) as replicas:
        registry.add_manifest(FINE, BODY, "1")
        registry.add_manifest(FINE, b"broken")
        fault.target = str(broken)
        registry.inject(fault)
        reader = FailoverReader(replicas, ScriptedMarks(), 0)

        async def ask() -> None:
            with pytest.raises((RegistryError, UpstreamUnavailableError)):
                await reader.fetch_manifest(FINE, broken)

        with hammering(ask) as asked:
            for _ in range(50):
                assert (await reader.resolve_tag(FINE, Tag("1"))).digest == digest_of(BODY)
                assert replicas.is_writable("a")
            await until(lambda: asked[0] >= 4)


async def test_a_token_of_another_kind_is_no_failure_of_a_client() -> None:
    """Both kinds work for one client of a replica that sends Basic and Bearer challenges by turns."""
    async with FakeRegistry(bearer=ANN) as registry, open_client(registry.url, **CREDENTIALS) as client:
        registry.add_manifest(FINE, BODY, "1")
        registry.inject(of_requests(401, 'Basic realm="x"'))
        for _ in range(3):
            with pytest.raises((AccessRefusedError, ReplicaFailedError)):
                await client.resolve_tag(FORBIDDEN, Tag("1"))
            assert (await client.resolve_tag(FINE, Tag("1"))).digest == digest_of(BODY)
        assert registry.count("HEAD", f"^/v2/{FINE}/") == 4, "after the first, none is sent without its token"


# ---------------------------------------------------------------- the whole product


@pytest.mark.parametrize("others", [60, pytest.param(200, marks=pytest.mark.soak)])
async def test_hammering_clients_harm_nobody(start_proxy: StartProxy, tmp_path: Path, others: int) -> None:
    """Beside clients that hammer a forbidden repository, an absent one and broken objects, no other client fails."""
    async with FakeRegistry(bearer=ANN) as registry:
        broken, cut = registry.add_manifest("team/app", b"broken"), registry.add_blob("team/app", bytes(100_000))
        registry.inject(of_tokens(403))
        registry.inject(Fault(str(broken), status=500))
        registry.inject(Fault(str(cut), cut_after=0))
        password = tmp_path / "password"
        password.write_text(ANN[1])
        replica = {"url": registry.url, "username": ANN[0], "password_file": str(password)}
        proxy = await asyncio.to_thread(start_proxy, [], {"upstreams": {"main": {"replicas": [replica]}}})
        user = await asyncio.to_thread(lambda: proxy.add_user("ann", pull_push=["**"]))
        scopes = [f"repository:{name}:pull,push" for name in ("team/app", FORBIDDEN, "absent/app")]
        headers = {"Authorization": f"Bearer {await asyncio.to_thread(user.token, *scopes)}"}
        targets = [f"{FORBIDDEN}/manifests/1", "absent/app/manifests/1", f"absent/app/blobs/{cut}"]
        targets += [f"team/app/manifests/{broken}", f"team/app/blobs/{cut}"]
        asked = dict.fromkeys(targets, 0)
        async with aiohttp.ClientSession(proxy.url, headers=headers) as session:

            async def hammer(target: str) -> None:
                while True:
                    with suppress(aiohttp.ClientError):
                        async with session.get(f"/v2/{target}") as answer:
                            assert answer.status >= 400
                            await answer.read()
                    asked[target] += 1

            async def operate(number: int) -> int:
                """Push a manifest, or pull one that is not cached; return the status."""
                if number % 2:
                    url, body = f"/v2/team/app/manifests/v{number}", make_image(label=str(number)).manifest
                    async with session.put(url, data=body, headers={"Content-Type": OCI_MANIFEST}) as answer:
                        return answer.status
                registry.add_manifest("team/app", make_image(label=str(number)).manifest, f"v{number}")
                async with session.get(f"/v2/team/app/manifests/v{number}") as answer:
                    return answer.status

            hammers = [spawn(hammer(target), "hammer") for target in targets]
            statuses = [status for first in range(0, others, 4) for status in await _at_once(operate, first)]
            await until(lambda: all(asked.values()), timeout_seconds=60)
            for task in hammers:
                task.cancel()
            await asyncio.gather(*hammers, return_exceptions=True)
        await asyncio.to_thread(proxy.kill_everything)  # it would repeat the last request
        assert statuses == [200, 201] * (others // 2)


async def _at_once(operate: Callable[[int], Awaitable[int]], first: int) -> list[int]:
    return await asyncio.gather(*(operate(first + number) for number in range(4)))
