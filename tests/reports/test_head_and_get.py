"""The content that GET gives does not depend on a registry's answer to HEAD.

Reports: a second image on a cached base layer fails over Harbor's proxy projects (HEAD 404), ECR Public (HEAD 401) and
registries that redirect to signed URLs, which are signed for GET alone (403).
"""

import asyncio
import contextlib
from pathlib import Path

import httpx
import pytest

from registry_proxy.protocol.descriptor import BLOB_MEDIA_TYPE, OCI_MANIFEST, Descriptor
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Repository, Tag, digest_of
from registry_proxy.replica.failure import AccessRefusedError, ReplicaFailedError
from tests.conftest import StartProxy
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import HASTY, REPOSITORY, open_client, read_all
from tests.support.product import User, make_image, random_bytes
from tests.support.servers import Server

TAG = Tag("1")
LENGTHLESS = ("Content-Length",)

FAULTS = {
    "404": Fault(method="HEAD", status=404),
    "404 as text": Fault(method="HEAD", status=404, headers={"Content-Type": "text/plain"}),
    "401": Fault(method="HEAD", status=401),
    "401 for Basic": Fault(method="HEAD", status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}),
    "403": Fault(method="HEAD", status=403),
    "400": Fault(method="HEAD", status=400),
    "405": Fault(method="HEAD", status=405),
    "500": Fault(method="HEAD", status=500),
    "503": Fault(method="HEAD", status=503),
    "204": Fault(method="HEAD", status=204),
    "a redirect to nowhere": Fault(method="HEAD", status=302),
    "a redirect to itself": Fault(method="HEAD", status=307, headers={"Location": "/v2/"}),
    "no length": Fault(method="HEAD", omit=LENGTHLESS),
    "length 0": Fault(method="HEAD", body=b""),
    "no length of GET either": Fault(omit=LENGTHLESS),
    "a page": Fault(method="HEAD", html=True),
    "another digest": Fault("blobs", "HEAD", headers={"Docker-Content-Digest": str(digest_of(b"another"))}),
    "compressed": Fault(method="HEAD", gzip=True),
}


class Readers:
    """The product before a registry, which may redirect to a storage; a user who may read everything."""

    def __init__(self, user: User, registry: FakeRegistry, storage: FakeRegistry) -> None:
        self.user, self.registry, self.storage = user, registry, storage

    async def ask(self, method: str, repository: str, path: str) -> httpx.Response:
        """Send a request to the product."""
        return await asyncio.to_thread(getattr(self.user, method.lower()), repository, path)

    async def check(self, name: str, fault: Fault, of_storage: Fault | None = None) -> None:
        """Pull two images on one base while the registry has a fault; no absent object is found."""
        base, own = random_bytes(1000), random_bytes(10)
        image = make_image(base, own)
        places = [self.registry, self.storage]
        one, two, three = (f"{name}/{number}" for number in ("one", "two", "three"))
        for registry in places:
            registry.add_blob(one, base)
            registry.add_manifest(two, image.manifest, "1")
            registry.add_blob(two, base)
            registry.add_blob(three, own)
        digest = digest_of(base)
        self.registry.faults = [fault]
        self.storage.faults = [of_storage] if of_storage else []
        assert (await self.ask("GET", one, f"blobs/{digest}")).content == base
        for method in ("HEAD", "GET", "HEAD"):
            blob = await self.ask(method, two, f"blobs/{digest}")
            assert (blob.status_code, blob.headers["Content-Length"]) == (200, "1000"), (name, method, blob.text)
            for reference in ("1", image.digest):
                manifest = await self.ask(method, two, f"manifests/{reference}")
                assert (manifest.status_code, manifest.headers["Docker-Content-Digest"]) == (200, image.digest), name
                assert manifest.headers["Content-Type"] == OCI_MANIFEST
        for method in ("HEAD", "GET"):
            assert (await self.ask(method, three, f"blobs/{digest}")).status_code == 404, (name, method)
            assert (await self.ask(method, three, "manifests/1")).status_code == 404, (name, method)


async def start(start_proxy: StartProxy, tmp_path: Path, registry: FakeRegistry) -> User:
    """Start the product before a registry."""
    proxy = await asyncio.to_thread(start_proxy, [Server([], registry.port, tmp_path / "none")])
    return await asyncio.to_thread(lambda: proxy.add_user("ann", pull=["**"]))


async def test_the_answers_to_get_do_not_depend_on_head(start_proxy: StartProxy, tmp_path: Path) -> None:
    """However HEAD is refused, images on a cached base are pulled, absent objects are 404, and no replica goes down."""
    async with FakeRegistry() as registry, FakeRegistry() as storage:
        readers = Readers(await start(start_proxy, tmp_path, registry), registry, storage)
        for name, fault in FAULTS.items():
            await readers.check(name.lower().replace(" ", "-"), fault)
        for status in (401, 403, 404, 405, 501):
            redirect = Fault("(one|two)/blobs", redirect_to=storage.url)
            await readers.check(f"storage-{status}", redirect, Fault(method="HEAD", status=status))
        assert ": down" not in readers.user.proxy.log_text()


ON_THE_WIRE = {
    "the end": b"",
    "a body": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nblob",
    "a body of a 404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
    "a length below nothing": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "no http": b"hello\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\n\r\n",
}


@pytest.mark.parametrize("answer", ON_THE_WIRE.values(), ids=list(ON_THE_WIRE))
async def test_a_head_without_an_answer_is_followed_by_a_get(answer: bytes) -> None:
    """A HEAD that is cut, or answered against HTTP's rules, spoils neither its GET nor the next requests."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                method = (await reader.readuntil(b"\r\n\r\n")).partition(b" ")[0]
                writer.write(answer if method == b"HEAD" else b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nblob")
                if method == b"HEAD" and not answer:
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, open_client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        for repository in (REPOSITORY, REPOSITORY, Repository("team/other")):
            assert (await client.stat_blob(repository, digest_of(b"blob"))).size_bytes == 4
            async with client.open_blob(repository, digest_of(b"blob")) as stream:
                assert await read_all(stream) == b"blob"


# ---------------------------------------------------------------- costs


async def test_a_head_that_answers_is_all_that_is_sent() -> None:
    """A blob and a tag cost one HEAD and nothing else in the ordinary case."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        digest = registry.add_blob(REPOSITORY, b"blob")
        registry.add_manifest(REPOSITORY, b"{}", "1")
        assert await client.stat_blob(REPOSITORY, digest) == Descriptor(BLOB_MEDIA_TYPE, digest, 4)
        await client.resolve_tag(REPOSITORY, TAG)
        assert [request.method for request in registry.requests] == ["HEAD", "HEAD"]


async def test_a_get_that_asks_stops_after_its_headers() -> None:
    """A body that never comes is not waited for."""
    async with FakeRegistry() as registry, open_client(registry.url, timeouts=HASTY) as client:
        digest = registry.add_blob(REPOSITORY, random_bytes(1 << 20))
        registry.faults = [Fault(method="HEAD", status=404), Fault(method="GET", stall_after=1)]
        assert (await client.stat_blob(REPOSITORY, digest)).size_bytes == 1 << 20


async def test_a_length_that_nobody_tells_is_counted() -> None:
    """Where neither HEAD nor GET has a length the bytes are counted; a body that is cut gives none."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        digest = registry.add_blob(REPOSITORY, random_bytes(1 << 20))
        registry.inject(Fault(omit=LENGTHLESS))
        assert (await client.stat_blob(REPOSITORY, digest)).size_bytes == 1 << 20
        registry.inject(Fault(omit=LENGTHLESS, cut_after=1000))
        with pytest.raises(ReplicaFailedError) as cut:
            await client.stat_blob(REPOSITORY, digest)
        assert cut.value.outcome == "cut"


async def test_an_absent_object_costs_a_get_until_the_repository_took_a_push() -> None:
    """Before a repository's first push each absent blob and tag costs HEAD and GET; later only a HEAD."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:

        async def ask() -> list[str]:
            before = len(registry.requests)
            for number in range(3):
                with pytest.raises(RegistryError) as absent:
                    await client.stat_blob(REPOSITORY, digest_of(str(number).encode()))
                assert absent.value.status == 404
            with pytest.raises(RegistryError):
                await client.resolve_tag(REPOSITORY, TAG)
            return [request.method for request in registry.requests[before:]]

        assert await ask() == ["HEAD", "GET"] * 4
        await client.start_upload(REPOSITORY)
        assert await ask() == ["HEAD"] * 4


async def test_a_registry_that_denied_what_it_has_is_not_believed() -> None:
    """After one 404 to the HEAD of an existing object no such 404 is trusted any more, also after pushes."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        await client.start_upload(REPOSITORY)
        digest = registry.add_blob("team/other", b"blob")
        registry.inject(Fault("team/other", "HEAD", status=404))
        await client.stat_blob(Repository("team/other"), digest)
        later = registry.add_blob(REPOSITORY, b"later")
        registry.inject(Fault(REPOSITORY, "HEAD", status=404))
        assert (await client.stat_blob(REPOSITORY, later)).size_bytes == 5


async def test_a_refused_head_is_not_sent_each_time() -> None:
    """In a repository where HEAD is refused and GET succeeds, GET is used from then on."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        digests = [registry.add_blob(REPOSITORY, str(number).encode()) for number in range(3)]
        registry.add_manifest(REPOSITORY, b"{}", "1")
        registry.inject(Fault("blobs", "HEAD", status=403))
        for digest in digests:
            await client.stat_blob(REPOSITORY, digest)
        await client.resolve_tag(REPOSITORY, TAG)
        assert [request.method for request in registry.requests] == ["HEAD", "GET", "GET", "GET", "HEAD"]


@pytest.mark.parametrize("status", [403, 404, 500])
async def test_a_get_that_is_refused_as_well_is_the_answer(status: int) -> None:
    """The GET's refusal counts, and HEAD is sent again the next time."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.inject(Fault(status=status))
        for _ in range(2):
            with pytest.raises((RegistryError, ReplicaFailedError)) as refused:
                await client.stat_blob(REPOSITORY, digest_of(b"x"))
            kind = {403: AccessRefusedError, 404: RegistryError, 500: ReplicaFailedError}[status]
            assert isinstance(refused.value, kind)
        assert [request.method for request in registry.requests] == ["HEAD", "GET"] * 2


async def test_no_answer_to_a_head_is_final() -> None:
    """No GET follows a time-out; one follows a 429, for its message, which a HEAD does not have, and no second one."""
    async with FakeRegistry() as registry, open_client(registry.url, timeouts=HASTY) as client:
        for fault in (Fault(status=429), Fault(stall=True)):
            registry.faults = [fault]
            with pytest.raises(Exception, match=r"429|no answer in time"):
                await client.stat_blob(REPOSITORY, digest_of(b"x"))
        assert [request.method for request in registry.requests] == ["HEAD", "GET", "HEAD"]
