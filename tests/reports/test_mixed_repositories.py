"""No content of a repository leaks into another through a registry that answers for a digest in any repository.

Reports: zot with its default ``dedupe`` (CVE-2024-39897 is about its mounts), pull-through caches that store by digest.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self
from urllib.parse import urlencode

import httpx
import pytest

from tests.conftest import StartProxy
from tests.support.fakes.registry import FakeRegistry
from tests.support.product import OCI_MANIFEST, Image, Proxy, User, digest_of, make_image
from tests.support.servers import Server, wait_until

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
ABSENT = digest_of(b"nobody has this")
SECRET = make_image(b"the secret layer", label="secret")
LAYER, CONFIG = digest_of(b"the secret layer"), json.loads(SECRET.manifest)["config"]["digest"]
ZOT, EVERYTHING = ("blobs",), ("blobs", "manifests")
EVE = "eve/own"


def naming(layer: str, *, config: bytes = b"{}", **more: object) -> bytes:
    """Return a manifest that names a layer."""
    descriptor = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": 16, **more}
    own = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(config), "size": len(config)}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": own, "layers": [descriptor]}).encode()


def index_of(digest: str, media_type: str = OCI_MANIFEST) -> bytes:
    """Return an index with one child."""
    child = {"mediaType": media_type, "digest": digest, "size": 16}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]}).encode()


class Eve:
    """A user who may do everything in ``eve/**`` and knows the digests of a secret image."""

    def __init__(self, user: User) -> None:
        self.http = user.client(EVE, "pull,push,delete")
        scopes = [f"repository:{name}:pull,push,delete" for name in (EVE, "eve/other", "eve/none")]
        self.all_hers = {"Authorization": f"Bearer {user.token(*scopes)}"}
        user.push_blob(EVE, b"{}")
        user.push_blob("eve/other", b"{}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def put(self, body: bytes, media_type: str = OCI_MANIFEST) -> httpx.Response:
        """Push a manifest."""
        return self.http.put(f"/manifests/{digest_of(body)}", content=body, headers={"Content-Type": media_type})

    def finish(self, location: str, digest: str, content: bytes = b"") -> httpx.Response:
        """End an upload."""
        url = httpx.URL(str(self.http.base_url.join(location))).copy_merge_params({"digest": digest})
        return self.http.put(url, content=content)

    def read(self, digest: str) -> None:
        """Ask for a blob in every way."""
        path = f"/blobs/{digest}"
        for _ in range(2):
            answers = [self.http.head(path), self.http.get(path), self.http.get(path, headers={"Range": "bytes=0-3"})]
            assert [answer.status_code for answer in answers] == [404] * 3
            assert all("X-Cache" not in answer.headers for answer in answers)

    def read_manifest(self, digest: str) -> None:
        """Ask for a manifest by its digest, as a manifest and as a blob."""
        self.read(digest)
        for method in ("HEAD", "GET"):
            assert self.http.request(method, f"/manifests/{digest}").status_code == 404

    def mount(self, digest: str) -> None:
        """Mount from a repository that she may read and that does not hold it."""
        for source in ("eve/other", EVE, "eve/none"):
            query = {"mount": digest, "from": source}
            assert self.http.post("/blobs/uploads/", params=query, headers=self.all_hers).status_code == 202
        assert self.http.post("/blobs/uploads/", params={"mount": digest}, headers=self.all_hers).status_code == 202
        self.read(digest)

    def name(self, digest: str) -> None:
        """Push manifests that name it: as a layer, as a config, as a child."""
        document = json.loads(naming(digest_of(b"{}")))
        document["config"]["digest"] = digest
        bodies = [(naming(digest), OCI_MANIFEST), (json.dumps(document).encode(), OCI_MANIFEST)]
        bodies += [
            (index_of(digest, kind), OCI_INDEX) for kind in (OCI_MANIFEST, OCI_INDEX, "application/octet-stream")
        ]
        for body, media_type in bodies:
            refused = self.put(body, media_type)
            assert (refused.status_code, refused.json()["errors"][0]["code"]) == (400, "MANIFEST_BLOB_UNKNOWN")
            assert digest in str(refused.json()["errors"][0]["detail"])
        self.read_manifest(digest)

    def name_without_holding(self, digest: str) -> None:
        """Push manifests that may name absent contents: a foreign layer, a subject."""
        foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar"
        self.put(naming(digest, mediaType=foreign, urls=["https://example.com/layer"]))
        document = json.loads(naming(digest_of(b"{}")))
        document["subject"] = {"mediaType": OCI_MANIFEST, "digest": digest, "size": 16}
        assert self.put(json.dumps(document).encode()).status_code == 201
        self.read_manifest(digest)

    def delete(self, digest: str) -> None:
        """Delete it from a repository that does not hold it: the answer does not reveal whether it exists elsewhere."""
        assert self.http.delete(f"/blobs/{digest}").status_code == 404
        assert self.http.delete(f"/manifests/{digest}").status_code == 404

    def ask_with_conditions(self, digest: str) -> None:
        """Ask so that a cache or a registry might answer without the bytes: conditions, ranges, other names."""
        path, tag = f"/blobs/{digest}", f'"{digest}"'
        ways = [
            {"If-None-Match": tag},
            {"If-None-Match": "*"},
            {"If-Range": tag, "Range": "bytes=1-"},
            {"Range": "bytes=-1"},
        ]
        for headers in ways:
            assert [self.http.request(method, path, headers=headers).status_code for method in ("HEAD", "GET")] == [
                404
            ] * 2
        for query in ("?ns=docker.io", "?from=secret/app", f"?mount={digest}", f"?digest={digest}"):
            assert self.http.get(path + query).status_code in {400, 401, 404}
        for other in (
            path.replace(":", "%3A"),
            path.upper().replace("/BLOBS/SHA", "/blobs/sha"),
            f"{path}/",
            f"/blobs//{digest}",
        ):
            assert self.http.get(other).status_code in {400, 404}
        referrers = self.http.get(f"/referrers/{digest}")  # a list of this repository's contents, for any digest
        assert referrers.status_code == 200
        for entry in referrers.json()["manifests"]:
            assert self.http.get(f"/manifests/{entry['digest']}").status_code == 200

    def mount_in_other_words(self, digest: str) -> None:
        """Mount from the repository that holds it, from none, twice, by a body: an ordinary upload each time."""
        queries = [
            [("mount", digest), ("from", "secret/app")],
            [("mount", digest)],
            [("from", "secret/app"), ("mount", digest)],
        ]
        for query in queries:
            assert self.http.post("/blobs/uploads/", params=urlencode(query)).status_code == 202
        twice = [("mount", digest), ("from", EVE), ("from", "secret/app")]
        assert self.http.post("/blobs/uploads/", params=urlencode(twice)).status_code in {202, 400}
        form = self.http.post("/blobs/uploads/", data={"mount": digest, "from": "secret/app"})
        assert form.status_code in {202, 400}
        self.read(digest)

    def name_in_old_words(self, digest: str) -> None:
        """Push manifests of rare kinds: the contents named in them prove nothing."""
        schema1 = {"schemaVersion": 1, "name": EVE, "tag": "x", "fsLayers": [{"blobSum": digest}], "history": []}
        artifact = {
            "mediaType": "application/vnd.oci.artifact.manifest.v1+json",
            "blobs": [{"digest": digest, "size": 16}],
        }
        data = json.loads(naming(digest_of(b"{}")))
        data["annotations"], data["config"]["data"] = {"org.example": digest}, "e30="
        data["x-layers"] = [{"mediaType": "a/b", "digest": digest, "size": 16}]
        for document, media_type in (
            (schema1, "application/vnd.docker.distribution.manifest.v1+prettyjws"),
            (schema1, "application/vnd.docker.distribution.manifest.v1+json"),
            (artifact, "application/vnd.oci.artifact.manifest.v1+json"),
            (data, OCI_MANIFEST),
            ({**data, "manifests": [{"mediaType": OCI_MANIFEST, "digest": digest, "size": 16}]}, OCI_MANIFEST),
            ({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "layers": [{"digest": digest}]}, OCI_INDEX),
        ):
            self.put(json.dumps(document).encode(), media_type)
        self.read_manifest(digest)

    def hold_and_let_go(self, digest: str) -> None:
        """Take part in tags and deletes around it: a tag that is deleted, a name that a tag could have."""
        body = naming(digest_of(b"{}"))
        self.http.put("/manifests/mine", content=body, headers={"Content-Type": OCI_MANIFEST})
        name = digest.replace(":", "-")
        self.http.put(f"/manifests/{name}", content=body, headers={"Content-Type": OCI_MANIFEST})
        assert self.http.delete(f"/manifests/{name}").status_code in {202, 405}
        self.read_manifest(digest)

    def finish_what_was_ended(self, digest: str) -> None:
        """Claim that an upload has succeeded, with other bytes or none."""
        for content in (b"", b"x" * 16):
            location = self.http.post("/blobs/uploads/").headers["Location"]
            begun = self.http.patch(str(self.http.base_url.join(location)), content=content).headers["Location"]
            self.http.delete(str(self.http.base_url.join(begun)))
            assert self.finish(begun, digest).status_code in {400, 404}
            assert (
                self.finish(self.http.post("/blobs/uploads/").headers["Location"], digest, content).status_code == 400
            )
            assert self.http.post("/blobs/uploads/", params={"digest": digest}, content=content).status_code == 400
        self.read(digest)


ATTACKS: list[Callable[[Eve, str], None]] = [
    Eve.read,
    Eve.read_manifest,
    Eve.mount,
    Eve.name,
    Eve.name_without_holding,
    Eve.delete,
    Eve.ask_with_conditions,
    Eve.mount_in_other_words,
    Eve.name_in_old_words,
    Eve.hold_and_let_go,
    Eve.finish_what_was_ended,
]


def attack(eve: User, attacks: Sequence[Callable[[Eve, str], None]] = ATTACKS) -> None:
    """Attack everything secret, and contents that nobody has: both end alike."""
    with Eve(eve) as attacker:
        for each in attacks:
            for digest in (LAYER, CONFIG, SECRET.digest, ABSENT):
                each(attacker, digest)


class Setting:
    """The product before registries, with ann, the owner of secret/** and team/**, and eve."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.ann = proxy.add_user("ann", pull_push_delete=["secret/**", "team/**"])
        self.eve = proxy.add_user("eve", pull_push_delete=["eve/**"])


@asynccontextmanager
async def setting(
    start_proxy: StartProxy, tmp_path: Path, *registries: FakeRegistry, workers: int = 1
) -> AsyncIterator[Setting]:
    """Start the product before registries."""
    servers = [Server([], registry.port, tmp_path / "none") for registry in registries]
    proxy = await asyncio.to_thread(start_proxy, servers, {"workers": workers})
    yield await asyncio.to_thread(Setting, proxy)
    await asyncio.to_thread(proxy.stop)


def put_directly(registry: FakeRegistry, repository: str, image: Image, *tags: str) -> None:
    """Put an image into a registry past the proxy."""
    for blob in image.blobs.values():
        registry.add_blob(repository, blob)
    registry.add_manifest(repository, image.manifest, *tags)


@pytest.mark.parametrize("mixes", [ZOT, EVERYTHING], ids=["blobs", "blobs and manifests"])
async def test_content_of_another_repository_is_not_there(
    start_proxy: StartProxy, tmp_path: Path, mixes: tuple[str, ...]
) -> None:
    """With the digests of a secret image a user gets neither its bytes nor its existence, in many ways."""
    async with FakeRegistry(mixes=mixes) as one, FakeRegistry(mixes=mixes) as other:
        for registry in (one, other):
            put_directly(registry, "secret/old", SECRET, "1")
        async with setting(start_proxy, tmp_path, one, other, workers=2) as here:
            await asyncio.to_thread(attack, here.eve, [Eve.read])  # the very first question is no exception
            await asyncio.to_thread(here.ann.push, "secret/app", "1", SECRET)
            assert (await asyncio.to_thread(here.ann.pull, "secret/app", "1")).blobs == SECRET.blobs
            await asyncio.to_thread(attack, here.eve)
            await asyncio.to_thread(here.proxy.stop)
            await asyncio.to_thread(here.proxy.start)
            await asyncio.to_thread(attack, here.eve, [Eve.read_manifest])


@pytest.mark.parametrize("mixes", [ZOT, EVERYTHING], ids=["blobs", "blobs and manifests"])
async def test_content_of_a_repository_is_served(
    start_proxy: StartProxy, tmp_path: Path, mixes: tuple[str, ...]
) -> None:
    """Pushes, shared layers, mounts, children, caches of BuildKit and older contents work as elsewhere."""
    async with FakeRegistry(mixes=mixes) as one, FakeRegistry(mixes=mixes) as other:
        old, layer = make_image(b"from before", label="old"), digest_of(b"from before")
        cache = index_of(layer, "application/vnd.oci.image.layer.v1.tar")
        for registry in (one, other):
            put_directly(registry, "team/old", old, "1")
        async with setting(start_proxy, tmp_path, one, other) as here:
            ann, eve = here.ann, here.eve

            def work() -> None:
                with ann.client("team/old") as http:  # a client that has the manifest already
                    assert http.get(f"/blobs/{layer}").content == b"from before"
                    assert http.get(f"/manifests/{old.digest}").content == old.manifest
                assert ann.pull("team/old", "1").blobs == old.blobs
                ann.push("secret/app", "1", SECRET)
                eve.push(EVE, "1", SECRET)  # she has the bytes
                assert eve.pull(EVE, "1").blobs == SECRET.blobs
                scopes = [f"repository:secret/{name}:pull,push" for name in ("app", "two")]
                with ann.client("secret/two", "pull,push") as http:
                    http.headers["Authorization"] = f"Bearer {ann.token(*scopes)}"
                    for digest in SECRET.blobs:
                        query = {"mount": digest, "from": "secret/app"}
                        assert http.post("/blobs/uploads/", params=query).status_code == 201
                assert ann.push_manifest("secret/two", "1", SECRET).status_code == 201
                with ann.client("team/old", "pull,push") as http:
                    headers = {"Content-Type": OCI_INDEX}
                    assert http.put("/manifests/cache", content=cache, headers=headers).status_code == 201
                    multi = index_of(old.digest)
                    assert http.put("/manifests/multi", content=multi, headers=headers).status_code == 201
                    assert http.get("/manifests/cache").content == cache
                ann.pull("secret/two", "1")

            await asyncio.to_thread(work)


async def test_pushes_over_two_of_them_do_not_depend_on_what_one_has(start_proxy: StartProxy, tmp_path: Path) -> None:
    """A layer that one registry has in another repository, and the other one nowhere, is pushed to both."""
    async with FakeRegistry(mixes=ZOT) as one, FakeRegistry(mixes=ZOT) as other:
        put_directly(one, "team/old", SECRET, "1")
        async with setting(start_proxy, tmp_path, one, other) as here:

            def push() -> None:
                with here.ann.client("team/new", "pull,push") as http:
                    for digest in SECRET.blobs:
                        assert http.head(f"/blobs/{digest}").status_code == 404
                here.ann.push("team/new", "1", SECRET)

            await asyncio.to_thread(push)
        for registry in (one, other):
            assert set(SECRET.blobs) <= {str(digest) for digest in registry.of("team/new").blobs}
            assert "1" in registry.of("team/new").tags


async def test_it_is_found_out_and_shown(start_proxy: StartProxy, tmp_path: Path) -> None:
    """A registry that mixes repositories is reported once in the log, by the admin API, the command and a metric."""
    async with (
        FakeRegistry(mixes=ZOT) as mixed,
        FakeRegistry() as apart,
        setting(start_proxy, tmp_path, mixed, apart) as here,
    ):

        def look() -> None:
            for registry in (mixed, apart):
                put_directly(registry, "secret/app", SECRET, "1")
            with here.ann.client("secret/app") as http:
                for _ in range(3):
                    assert http.get(f"/blobs/{LAYER}").status_code == 200
            with here.proxy.admin() as admin:
                replicas = admin.get("/upstreams/main").json()["replicas"]
            assert [replica["keeps_apart"] for replica in replicas] == [False, True]
            for registry, value in ((mixed, 1), (apart, 0)):
                name = f"127.0.0.1:{registry.port}"
                gauge = "registry_proxy_replica_mixes_repositories"
                assert here.proxy.metric(gauge, replica=name, upstream="main") == value
            assert here.proxy.log_text().count("repositories that do not hold it") == 1
            table = here.proxy.command("replica", "list").stdout
            assert table.count("mixes repositories") == 1
            with here.ann.client("secret/app") as http:
                catalog = http.get(f"{here.proxy.url}/v2/_catalog").json()
            assert catalog == {"repositories": ["secret/app"]}

        await asyncio.to_thread(look)


async def test_an_ordinary_registry_is_asked_nothing_more(start_proxy: StartProxy, tmp_path: Path) -> None:
    """No request is added for the contents of clients, and each of theirs is asked for once."""
    async with FakeRegistry() as registry:
        digests = [registry.add_blob("team/app", bytes([number])) for number in range(20)]
        async with setting(start_proxy, tmp_path, registry) as here:

            def pull() -> None:
                with here.ann.client("team/app") as http:
                    for digest in digests:
                        assert http.get(f"/blobs/{digest}").status_code == 200

            await asyncio.to_thread(pull)
            assert registry.count("GET", "/blobs/") == 20
            assert registry.count("HEAD", "/v2/team/") == 0


async def test_a_push_goes_on_at_another_node(start_proxy: StartProxy, tmp_path: Path, redis: Server) -> None:
    """Blobs that were pushed through one node are present for the manifest that comes through another one."""
    async with FakeRegistry(mixes=ZOT) as registry:
        put_directly(registry, "secret/old", make_image(b"old"), "1")
        servers = [Server([], registry.port, tmp_path / "none")]
        store = {"store": f"redis://127.0.0.1:{redis.port}/0"}

        def push() -> None:
            nodes = [start_proxy(servers, store, name=name) for name in ("one", "two")]
            here = Setting(nodes[0])
            ann, eve = ([replace(user, proxy=node, tokens={}) for node in nodes] for user in (here.ann, here.eve))
            for each in eve:  # the second node may learn of the grants up to two seconds later
                old = f"blobs/{digest_of(b'old')}"
                wait_until(lambda: replace(each, tokens={}).get(EVE, old).status_code == 404, "eve's right is known")  # noqa: B023 - called at once
            for blob in SECRET.blobs.values():
                assert ann[0].push_blob("secret/app", blob).status_code == 201
            with ann[1].client("secret/app", "pull,push") as http:
                for digest in SECRET.blobs:
                    assert http.head(f"/blobs/{digest}").status_code == 200
            assert ann[1].push_manifest("secret/app", "1", SECRET).status_code == 201
            assert ann[0].pull("secret/app", "1").blobs == SECRET.blobs
            for each in eve:
                assert each.get(EVE, f"blobs/{LAYER}").status_code == 404

        await asyncio.to_thread(push)
