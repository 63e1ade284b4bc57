"""Holdings: the contents of repositories, and the last known digests of their tags."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry_proxy.cache.holdings import FileHoldings
from registry_proxy.cache.layout import prepare_cache
from registry_proxy.ports.names import ContentKind, RoutedRepository
from registry_proxy.protocol.descriptor import OCI_MANIFEST, Descriptor
from registry_proxy.protocol.reference import Digest, Repository, Tag, digest_of

APP = RoutedRepository("main", Repository("team/app"))
TEAM = RoutedRepository("main", Repository("team"))
OTHER = RoutedRepository("hub", Repository("team/app"))
ONE, TWO, THREE = digest_of(b"1"), digest_of(b"2"), digest_of(b"3")
LATEST = Tag("latest")


def manifest(digest: Digest) -> Descriptor:
    """Return the descriptor of a manifest."""
    return Descriptor(OCI_MANIFEST, digest, 7)


@pytest.fixture
def holdings(cache_path: Path) -> FileHoldings:
    """Return holdings in a fresh cache."""
    return FileHoldings(cache_path)


def test_a_holding_is_of_one_repository_upstream_and_kind(holdings: FileHoldings) -> None:
    """A digest known in one repository, as one kind, is unknown in all others and as any other kind."""
    descriptor = Descriptor(OCI_MANIFEST, ONE, 7)
    holdings.remember(APP, ContentKind.MANIFEST, descriptor)
    found = holdings.find(APP, ContentKind.MANIFEST, ONE)
    assert found is not None
    assert found.descriptor == descriptor
    assert 0 <= found.age_seconds < 60
    assert holdings.find(APP, ContentKind.BLOB, ONE) is None
    assert holdings.find(TEAM, ContentKind.MANIFEST, ONE) is None
    assert holdings.find(OTHER, ContentKind.MANIFEST, ONE) is None
    assert holdings.find(APP, ContentKind.MANIFEST, TWO) is None


def test_a_forgotten_holding_is_gone_for_every_worker(holdings: FileHoldings, cache_path: Path) -> None:
    """A digest that one worker forgets is absent for the others; a second removal is no error."""
    other = FileHoldings(cache_path)
    holdings.remember(APP, ContentKind.BLOB, Descriptor("application/octet-stream", ONE, 7))
    assert other.find(APP, ContentKind.BLOB, ONE) is not None
    holdings.forget(APP, ContentKind.BLOB, ONE)
    holdings.forget(APP, ContentKind.BLOB, ONE)
    assert other.find(APP, ContentKind.BLOB, ONE) is None


def test_a_remembered_holding_follows_the_file(holdings: FileHoldings, cache_path: Path) -> None:
    """A remembered holding follows its file when another worker writes it, removes it, and writes it again."""
    other_worker = FileHoldings(cache_path)
    for size_bytes in (7, 8, 9):
        other_worker.remember(APP, ContentKind.MANIFEST, Descriptor(OCI_MANIFEST, ONE, size_bytes))
        for _ in range(2):
            found = holdings.find(APP, ContentKind.MANIFEST, ONE)
            assert found is not None
            assert found.descriptor.size_bytes == size_bytes
    other_worker.forget(APP, ContentKind.MANIFEST, ONE)
    assert holdings.find(APP, ContentKind.MANIFEST, ONE) is None
    other_worker.remember(APP, ContentKind.MANIFEST, Descriptor(OCI_MANIFEST, ONE, 7))
    found = holdings.find(APP, ContentKind.MANIFEST, ONE)
    assert found is not None
    assert found.descriptor.size_bytes == 7


def test_a_holding_survives_a_restart_and_ages(holdings: FileHoldings, cache_path: Path) -> None:
    """The age counts from the last confirmation, also after a restart of the cache."""
    holdings.remember(APP, ContentKind.BLOB, Descriptor("application/octet-stream", ONE, 7))
    (path,) = (cache_path / "repositories" / str(APP) / "_blobs").iterdir()
    day_ago = time.time() - 86_400
    os.utime(path, (day_ago, day_ago))
    prepare_cache(cache_path)
    found = FileHoldings(cache_path).find(APP, ContentKind.BLOB, ONE)
    assert found is not None
    assert found.age_seconds == pytest.approx(86_400, abs=60)
    holdings.remember(APP, ContentKind.BLOB, found.descriptor)
    again = holdings.find(APP, ContentKind.BLOB, ONE)
    assert again is not None
    assert again.age_seconds < 60


def test_the_last_state_of_a_tag_comes_with_type_size_and_record(holdings: FileHoldings) -> None:
    """A HEAD within the TTL needs no request, in any worker; an unknown record stays unknown."""
    holdings.move_tag(APP, LATEST, manifest(ONE), recorded=7)
    cached = holdings.find_tag(APP, LATEST)
    assert cached is not None
    assert (cached.descriptor, cached.recorded) == (manifest(ONE), 7)
    assert holdings.remember_tag(APP, LATEST, manifest(TWO), recorded=None, unless_changed_from=cached.version)
    cached = holdings.find_tag(APP, LATEST)
    assert cached is not None
    assert (cached.descriptor, cached.recorded) == (manifest(TWO), None)


def test_a_holding_that_ends_while_it_is_learned_is_not_remembered(holdings: FileHoldings, cache_path: Path) -> None:
    """An answer asked for before a delete in any worker is not remembered; a fact from a push is."""
    asked_at = holdings.moment(APP)
    blob = Descriptor("application/octet-stream", ONE, 7)
    FileHoldings(cache_path).end(APP, ContentKind.BLOB, ONE)
    holdings.remember(APP, ContentKind.BLOB, blob, asked_at=asked_at)
    assert holdings.find(APP, ContentKind.BLOB, ONE) is None
    holdings.remember(APP, ContentKind.BLOB, blob)
    assert holdings.find(APP, ContentKind.BLOB, ONE) is not None
    holdings.remember(APP, ContentKind.BLOB, blob, asked_at=holdings.moment(APP))
    assert holdings.find(APP, ContentKind.BLOB, ONE) is not None


DAMAGED = [
    *(b"", b"[", b"[]", b"{}", b"\xff", b"[" * 4096),
    *(
        b'{"media_type":1,"size":2,%s}',
        b'{"media_type":"a/b","size":Infinity,%s}',
        b'{"media_type":"a/b","size":1e999,%s}',
    ),
    *(
        b'{"media_type":"a/b","size":-1,%s}',
        b'{"media_type":"a/b","size":true,%s}',
        b'{"media_type":"a/b","size":NaN,%s}',
    ),
    *(
        b'{"media_type":"a\\r\\nb","size":1,%s}',
        b'{"media_type":"\xc3\xa4","size":1,%s}',
        b'{"media_type":"a","size":"1",%s}',
    ),
]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_records_are_as_if_absent(holdings: FileHoldings, cache_path: Path, text: bytes) -> None:
    """A damaged record causes a new question, not an error."""
    holdings.remember(APP, ContentKind.BLOB, Descriptor("application/octet-stream", ONE, 7))
    holdings.move_tag(APP, LATEST, manifest(ONE), recorded=1)
    for directory in ("_blobs", "_tags"):
        (path,) = (cache_path / "repositories" / str(APP) / directory).iterdir()
        path.write_bytes(text.replace(b"%s", b'"digest":"%s"' % str(ONE).encode()))
    (cache_path / "repositories" / str(APP) / "_blobs" / "damaged").touch()
    assert holdings.find(APP, ContentKind.BLOB, ONE) is None
    assert holdings.find_tag(APP, LATEST) is None
    assert holdings.digests_of(lambda _: True) == {ONE}


def test_a_clock_that_is_put_back_keeps_nothing_fresh(holdings: FileHoldings, cache_path: Path) -> None:
    """Facts dated in the future are old, and are asked for again."""
    holdings.remember(APP, ContentKind.BLOB, Descriptor("application/octet-stream", ONE, 7))
    holdings.move_tag(APP, LATEST, manifest(ONE), recorded=1)
    for directory in ("_blobs", "_tags"):
        (path,) = (cache_path / "repositories" / str(APP) / directory).iterdir()
        os.utime(path, (time.time() + 3600, time.time() + 3600))
    found, cached = holdings.find(APP, ContentKind.BLOB, ONE), holdings.find_tag(APP, LATEST)
    assert found is not None
    assert cached is not None
    assert found.age_seconds == cached.age_seconds == float("inf")


def test_an_answer_asked_for_before_a_push_does_not_undo_it(holdings: FileHoldings) -> None:
    """remember_tag changes nothing when the entry was written since it was read; a push always wins."""
    assert holdings.remember_tag(APP, LATEST, manifest(ONE), recorded=1, unless_changed_from=None)
    before = holdings.find_tag(APP, LATEST)
    assert before is not None
    holdings.move_tag(APP, LATEST, manifest(TWO), recorded=1)
    assert not holdings.remember_tag(APP, LATEST, manifest(ONE), recorded=1, unless_changed_from=before.version)
    assert not holdings.remember_tag(APP, LATEST, manifest(ONE), recorded=1, unless_changed_from=None)
    after = holdings.find_tag(APP, LATEST)
    assert after is not None
    assert after.digest == TWO
    holdings.forget_tag(APP, LATEST)
    assert not holdings.remember_tag(APP, LATEST, manifest(ONE), recorded=1, unless_changed_from=after.version)
    assert holdings.find_tag(APP, LATEST) is None


def test_writing_the_same_digest_again_is_a_change(holdings: FileHoldings) -> None:
    """A change and its reversal are noticed: the version belongs to the write, not to the digest."""
    holdings.move_tag(APP, LATEST, manifest(ONE), recorded=1)
    before = holdings.find_tag(APP, LATEST)
    assert before is not None
    holdings.move_tag(APP, LATEST, manifest(TWO), recorded=1)
    holdings.move_tag(APP, LATEST, manifest(ONE), recorded=1)
    assert not holdings.remember_tag(APP, LATEST, manifest(THREE), recorded=1, unless_changed_from=before.version)


def test_tags_of_a_deleted_digest_are_forgotten(holdings: FileHoldings) -> None:
    """All tags on the digest are removed, in this repository only; the others stay."""
    for tag, digest in {"a": ONE, "b": TWO, "c": ONE}.items():
        holdings.move_tag(APP, Tag(tag), manifest(digest), recorded=1)
    holdings.move_tag(TEAM, Tag("a"), manifest(ONE), recorded=1)
    assert holdings.forget_tags_of(APP, ONE) == ["a", "c"]
    assert holdings.find_tag(APP, Tag("a")) is None
    assert holdings.find_tag(APP, Tag("b")) is not None
    assert holdings.find_tag(TEAM, Tag("a")) is not None
    assert holdings.forget_tags_of(OTHER, ONE) == []


def test_a_full_disk_never_leaves_an_old_tag_after_a_push(
    holdings: FileHoldings, cache_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A push whose tag cannot be written removes the old entry, and raises nothing."""
    holdings.move_tag(APP, LATEST, manifest(ONE), recorded=1)
    (cache_path / "temp").rmdir()
    holdings.move_tag(APP, LATEST, manifest(TWO), recorded=1)
    holdings.remember(APP, ContentKind.BLOB, Descriptor("application/octet-stream", ONE, 7))
    assert holdings.find_tag(APP, LATEST) is None
    assert holdings.find(APP, ContentKind.BLOB, ONE) is None
    assert "cannot remember" in caplog.text


_DIGESTS = st.sampled_from([ONE, TWO, THREE])
_STEPS = st.lists(st.tuples(st.sampled_from(["read", "remember", "move", "forget"]), _DIGESTS), max_size=30)


@settings(max_examples=60, deadline=None)
@given(steps=_STEPS)
def test_compare_and_set_against_a_model(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Digest]]
) -> None:
    """In any order remember_tag writes exactly when nothing was written since its version was read."""
    path = tmp_path_factory.mktemp("cache")
    prepare_cache(path)
    holdings = FileHoldings(path)
    writes, seen_writes, version, expected = 0, 0, None, None
    for step, digest in steps:
        if step == "read":
            cached = holdings.find_tag(APP, LATEST)
            assert (None if cached is None else cached.digest) == expected
            version, seen_writes = (None if cached is None else cached.version), writes
        elif step == "remember":
            written = holdings.remember_tag(APP, LATEST, manifest(digest), recorded=1, unless_changed_from=version)
            unchanged_absence = version is None and expected is None
            assert written == (seen_writes == writes or unchanged_absence)
            expected, writes = (digest, writes + 1) if written else (expected, writes)
        elif step == "move":
            holdings.move_tag(APP, LATEST, manifest(digest), recorded=1)
            expected, writes = digest, writes + 1
        else:
            holdings.forget_tag(APP, LATEST)
            writes += expected is not None
            expected = None


def test_a_deletion_elsewhere_makes_others_forget_nothing(holdings: FileHoldings, cache_path: Path) -> None:
    """A deletion elsewhere changes nothing: else one user could force new questions for every repository."""
    asked_at = holdings.moment(APP)
    FileHoldings(cache_path).end(TEAM, ContentKind.BLOB, ONE)
    holdings.remember(APP, ContentKind.BLOB, Descriptor("application/octet-stream", ONE, 7), asked_at=asked_at)
    assert holdings.find(APP, ContentKind.BLOB, ONE) is not None


def test_answers_of_replicas_can_be_forgotten(holdings: FileHoldings, cache_path: Path) -> None:
    """Answers about one kind in one upstream are removed in every worker; facts from pushes stay."""
    worker, asked_at = FileHoldings(cache_path), 0
    for routed in (APP, TEAM, OTHER):
        for kind in ContentKind:
            holdings.remember(routed, kind, manifest(ONE))
            holdings.remember(routed, kind, manifest(TWO), asked_at=asked_at)
            assert worker.find(routed, kind, TWO) is not None
    holdings.forget_answers("main", ContentKind.BLOB)
    for routed in (APP, TEAM, OTHER):
        for kind in ContentKind:
            assert worker.find(routed, kind, ONE) is not None
            is_forgotten = routed != OTHER and kind is ContentKind.BLOB
            assert (worker.find(routed, kind, TWO) is None) is is_forgotten
    assert sorted(holdings.contents_of("main", ContentKind.BLOB)) == [("team", ONE), ("team/app", ONE)]


def test_the_manifests_of_a_repository_are_known(holdings: FileHoldings, cache_path: Path) -> None:
    """Those confirmed last come first; a tag on one of them is found by its digest."""
    for age, digest in ((20, ONE), (0, TWO), (10, THREE)):
        holdings.remember(APP, ContentKind.MANIFEST, manifest(digest))
        file = next(cache_path.rglob(f"_manifests/{digest.algorithm}-{digest.hex}"))
        os.utime(file, (time.time() - age, time.time() - age))
    holdings.remember(TEAM, ContentKind.MANIFEST, manifest(ONE))
    assert holdings.manifests_of(APP) == [TWO, THREE, ONE]
    holdings.move_tag(APP, LATEST, manifest(TWO), recorded=1)
    assert holdings.has_tag_on(APP, TWO)
    assert not holdings.has_tag_on(APP, ONE)
    assert not holdings.has_tag_on(TEAM, TWO)
