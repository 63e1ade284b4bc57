"""Filling the cache ahead of requests, over ports in memory."""

import asyncio
import json

import pytest

from registry_proxy.operations.pull import Pull
from registry_proxy.operations.tags import TagRules
from registry_proxy.operations.warm import Prefetch, Warmer, WarmProgress
from registry_proxy.ports.metrics import CacheRequest
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.protocol.descriptor import OCI_INDEX, Descriptor, Manifest
from registry_proxy.protocol.platform import Platform
from registry_proxy.protocol.reference import Digest, Repository, Tag, digest_of
from tests.support.fakes.images import Parts, image
from tests.support.fakes.memory import MemoryCache, MemoryHoldings, MemoryReader, RecordingObserver, holdings_of
from tests.support.waiting import until

APP = RoutedRepository("main", Repository("team/app"))
ANN, BOB = "user:ann", "user:bob"
EVERYTHING: frozenset[Platform] = frozenset()


class Bench:
    """A pull over one upstream in memory, with an image of three layers in it."""

    def __init__(self) -> None:
        self.reader, self.cache, self.holdings = MemoryReader(), MemoryCache(), MemoryHoldings()
        self.observer = RecordingObserver()
        self.pull = Pull(
            readers={"main": self.reader},
            impatient_readers={"main": self.reader},
            cache=self.cache,
            holdings=self.holdings,
            proofs=holdings_of(self.reader, self.holdings, self.cache),
            observer=self.observer,
            tag_rules={"main": TagRules(10)},
        )
        self.prefetch = Prefetch(self.pull)
        self.referrers: dict[Digest, list[Digest]] = {}
        self.image = self.add(image(b"1" * 100, b"2" * 200, b"3" * 300))
        self.blobs = [digest_of(blob) for blob in self.image.blobs]

    def add(self, parts: Parts) -> Parts:
        """Put an image into the upstream."""
        for blob in parts.blobs:
            self.reader.add_blob(APP.repository, blob)
        descriptor = parts.descriptor
        self.reader.manifests[APP.repository, parts.digest] = Manifest(descriptor, parts.manifest)
        return parts

    async def find_referrers(self, routed: RoutedRepository, subject: Digest) -> list[Digest]:
        """Return the referrers of a manifest, as the test says."""
        assert routed == APP
        return self.referrers.get(subject, [])

    async def get_manifest(self, subject: str = ANN) -> None:
        """GET the manifest as a subject."""
        await self.pull.get_manifest(APP, self.image.digest)
        self.prefetch.manifest_sent(subject, APP, self.image.digest)

    def cached(self) -> set[Digest]:
        """Return the blobs of the image that are in the cache."""
        return {digest for digest in self.blobs if digest in self.cache.files}


@pytest.fixture
async def bench() -> Bench:
    """Give a bench."""
    return Bench()


async def test_the_first_blob_brings_all_others(bench: Bench) -> None:
    """A blob of the subject that got the manifest brings the others: each is fetched once, none counts as a request."""
    await bench.get_manifest()
    assert bench.cached() == set()
    bench.prefetch.blob_asked(ANN, APP, bench.blobs[1])
    await until(lambda: len(bench.cached()) == 3)
    await until(lambda: all(bench.holdings.find(APP, ContentKind.BLOB, digest) for digest in bench.cached()))
    assert bench.cached() == {*bench.blobs} - {bench.blobs[1]}
    bench.prefetch.blob_asked(ANN, APP, bench.blobs[0])
    await asyncio.sleep(0)
    assert bench.reader.count("open_blob") == 3
    assert bench.observer.found(CacheRequest, ContentKind.BLOB) == []


async def test_a_caller_that_did_not_get_the_manifest_brings_nothing(bench: Bench) -> None:
    """Another subject, another repository, a blob of another image and a poller of manifests bring nothing."""
    await bench.get_manifest()
    await bench.get_manifest()
    bench.prefetch.blob_asked(BOB, APP, bench.blobs[1])
    bench.prefetch.blob_asked(ANN, RoutedRepository("main", Repository("other")), bench.blobs[1])
    bench.prefetch.blob_asked(ANN, APP, digest_of(b"of another image"))
    await asyncio.sleep(0)
    assert bench.reader.count("open_blob") == 0


async def test_three_at_a_time(bench: Bench) -> None:
    """With any number of layers at most three are fetched at once, and a failure of one delays no other."""
    bench.image = bench.add(image(*(bytes([number]) * 50 for number in range(10))))
    bench.blobs = [digest_of(blob) for blob in bench.image.blobs]
    del bench.reader.blobs[APP.repository, bench.blobs[4]]
    await bench.get_manifest()
    bench.reader.gate = asyncio.Event()
    bench.prefetch.blob_asked(ANN, APP, bench.blobs[0])
    await until(lambda: bench.reader.count("open_blob") == 3)
    bench.reader.gate.set()
    await until(lambda: len(bench.cached()) == 9)


async def test_content_that_the_repository_does_not_hold_is_not_made_readable(bench: Bench) -> None:
    """A cached blob of another repository, named in a manifest, gets no holding in this one."""
    secret = digest_of(b"secret")
    await bench.cache.store(secret, b"secret")
    parts = image(b"secret", b"own")
    bench.image = bench.add(Parts(parts.manifest, (parts.blobs[0], b"own")))
    await bench.get_manifest()
    bench.prefetch.blob_asked(ANN, APP, digest_of(parts.blobs[0]))
    await until(lambda: digest_of(b"own") in bench.cache.files)
    assert bench.holdings.find(APP, ContentKind.BLOB, secret) is None


def _index(bench: Bench) -> tuple[Digest, Parts, Parts]:
    amd64, arm = bench.image, bench.add(image(b"arm layer", label="arm"))
    children = [
        {
            "mediaType": part.media_type,
            "digest": str(part.digest),
            "size": len(part.manifest),
            "platform": {"os": "linux", "architecture": name},
        }
        for part, name in ((amd64, "amd64"), (arm, "arm"))
    ]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}).encode()
    digest = digest_of(body)
    bench.reader.manifests[APP.repository, digest] = Manifest(Descriptor(OCI_INDEX, digest, len(body)), body)
    bench.reader.tags[APP.repository, "latest"] = digest
    return digest, amd64, arm


async def test_a_whole_index_is_warmed(bench: Bench) -> None:
    """Every image of the index is fetched, each blob once; the progress has the numbers."""
    digest, amd64, arm = _index(bench)
    progress = WarmProgress("team/app:latest")
    await Warmer(bench.pull, bench.find_referrers).warm(APP, Tag("latest"), EVERYTHING, progress)
    blobs = {digest_of(blob): len(blob) for blob in (*amd64.blobs, *arm.blobs)}
    assert {*blobs, amd64.digest, arm.digest, digest} <= set(bench.cache.files)
    assert (progress.digest, progress.is_done, progress.error) == (digest, True, "")
    assert (progress.blobs_done, progress.blobs_total) == (len(blobs), len(blobs))
    assert (progress.bytes_done, progress.bytes_total) == (sum(blobs.values()), sum(blobs.values()))


async def test_referrers_are_warmed_along(bench: Bench) -> None:
    """An image's SBOM and the signature of the SBOM are fetched; those of a platform left out are not."""
    _, amd64, arm = _index(bench)
    sbom, signature, other = (bench.add(image(name)) for name in (b"sbom", b"signature", b"other"))
    bench.referrers = {arm.digest: [sbom.digest], sbom.digest: [signature.digest], amd64.digest: [other.digest]}
    progress = WarmProgress("")
    await Warmer(bench.pull, bench.find_referrers).warm(
        APP, Tag("latest"), frozenset({Platform("linux", "arm")}), progress
    )
    assert progress.error == ""
    wanted = {part for parts in (sbom, signature) for part in (parts.digest, *map(digest_of, parts.blobs))}
    assert wanted <= set(bench.cache.files)
    assert other.digest not in bench.cache.files


async def test_one_platform_of_an_index_is_warmed(bench: Bench) -> None:
    """Only the image of the platform is fetched; a platform that the index does not have is an error with its name."""
    _, amd64, arm = _index(bench)
    progress = WarmProgress("")
    await Warmer(bench.pull, bench.find_referrers).warm(
        APP, Tag("latest"), frozenset({Platform("linux", "arm")}), progress
    )
    assert arm.digest in bench.cache.files
    assert amd64.digest not in bench.cache.files
    progress = WarmProgress("")
    await Warmer(bench.pull, bench.find_referrers).warm(
        APP, Tag("latest"), frozenset({Platform("linux", "mips")}), progress
    )
    assert (progress.is_done, "linux/mips" in progress.error) == (True, True)


async def test_a_failure_to_warm_is_reported(bench: Bench) -> None:
    """With an unknown tag, an upstream that is away or a full cache the progress ends with the reason."""
    warmer = Warmer(bench.pull, bench.find_referrers)
    unknown, away, full = WarmProgress(""), WarmProgress(""), WarmProgress("")
    await warmer.warm(APP, Tag("none"), EVERYTHING, unknown)
    bench.cache.is_full = True
    await warmer.warm(APP, bench.image.digest, EVERYTHING, full)
    bench.reader.is_down = True
    await warmer.warm(APP, Tag("none"), EVERYTHING, away)
    assert all(progress.is_done and progress.error for progress in (unknown, away, full))
    assert full.digest is not None
