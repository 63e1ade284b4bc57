"""What repositories hold and what their tags were."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry_proxy.cache.layout import prepare_cache
from registry_proxy.cache.membership import FileMemberships
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
def memberships(cache_path: Path) -> FileMemberships:
    """Return memberships in a fresh cache."""
    return FileMemberships(cache_path)


def test_membership_is_of_one_repository_upstream_and_kind(memberships: FileMemberships) -> None:
    """A digest known in one repository, as one kind, is known nowhere else and as nothing else."""
    descriptor = Descriptor(OCI_MANIFEST, ONE, 7)
    memberships.remember(APP, ContentKind.MANIFEST, descriptor)
    found = memberships.find(APP, ContentKind.MANIFEST, ONE)
    assert found is not None
    assert found.descriptor == descriptor
    assert 0 <= found.age_seconds < 60
    assert memberships.find(APP, ContentKind.BLOB, ONE) is None
    assert memberships.find(TEAM, ContentKind.MANIFEST, ONE) is None
    assert memberships.find(OTHER, ContentKind.MANIFEST, ONE) is None
    assert memberships.find(APP, ContentKind.MANIFEST, TWO) is None


def test_forgotten_membership_is_gone_for_every_worker(memberships: FileMemberships, cache_path: Path) -> None:
    """What one worker forgets another one does not find; forgetting twice is fine."""
    other = FileMemberships(cache_path)
    memberships.remember(APP, ContentKind.BLOB, Descriptor("application/octet-stream", ONE, 7))
    assert other.find(APP, ContentKind.BLOB, ONE) is not None
    memberships.forget(APP, ContentKind.BLOB, ONE)
    memberships.forget(APP, ContentKind.BLOB, ONE)
    assert other.find(APP, ContentKind.BLOB, ONE) is None


def test_what_is_remembered_follows_the_file(memberships: FileMemberships, cache_path: Path) -> None:
    """A membership that was read before is seen anew when another worker writes it, removes it, and writes it again."""
    other_worker = FileMemberships(cache_path)
    for size_bytes in (7, 8, 9):
        other_worker.remember(APP, ContentKind.MANIFEST, Descriptor(OCI_MANIFEST, ONE, size_bytes))
        for _ in range(2):
            found = memberships.find(APP, ContentKind.MANIFEST, ONE)
            assert found is not None
            assert found.descriptor.size_bytes == size_bytes
    other_worker.forget(APP, ContentKind.MANIFEST, ONE)
    assert memberships.find(APP, ContentKind.MANIFEST, ONE) is None
    other_worker.remember(APP, ContentKind.MANIFEST, Descriptor(OCI_MANIFEST, ONE, 7))
    found = memberships.find(APP, ContentKind.MANIFEST, ONE)
    assert found is not None
    assert found.descriptor.size_bytes == 7


def test_membership_survives_a_restart_and_ages(memberships: FileMemberships, cache_path: Path) -> None:
    """The age counts from the last confirmation, also after the directory was prepared again."""
    memberships.remember(APP, ContentKind.BLOB, Descriptor("application/octet-stream", ONE, 7))
    (path,) = (cache_path / "repositories" / str(APP) / "_blobs").iterdir()
    day_ago = time.time() - 86_400
    os.utime(path, (day_ago, day_ago))
    prepare_cache(cache_path)
    found = FileMemberships(cache_path).find(APP, ContentKind.BLOB, ONE)
    assert found is not None
    assert found.age_seconds == pytest.approx(86_400, abs=60)
    memberships.remember(APP, ContentKind.BLOB, found.descriptor)
    again = memberships.find(APP, ContentKind.BLOB, ONE)
    assert again is not None
    assert again.age_seconds < 60


def test_what_a_tag_was_is_told_with_type_size_and_record(memberships: FileMemberships) -> None:
    """A HEAD within the TTL needs nobody, in whichever worker; a record that was not known stays unknown."""
    memberships.move_tag(APP, LATEST, manifest(ONE), recorded=7)
    cached = memberships.find_tag(APP, LATEST)
    assert cached is not None
    assert (cached.descriptor, cached.recorded) == (manifest(ONE), 7)
    assert memberships.remember_tag(APP, LATEST, manifest(TWO), recorded=None, unless_changed_from=cached.version)
    cached = memberships.find_tag(APP, LATEST)
    assert cached is not None
    assert (cached.descriptor, cached.recorded) == (manifest(TWO), None)


def test_what_ends_while_it_is_learned_is_not_remembered(memberships: FileMemberships, cache_path: Path) -> None:
    """A delete in any worker between question and answer; what a push made true is remembered all the same."""
    asked_at = memberships.moment(APP)
    blob = Descriptor("application/octet-stream", ONE, 7)
    FileMemberships(cache_path).end(APP, ContentKind.BLOB, ONE)
    memberships.remember(APP, ContentKind.BLOB, blob, asked_at=asked_at)
    assert memberships.find(APP, ContentKind.BLOB, ONE) is None
    memberships.remember(APP, ContentKind.BLOB, blob)
    assert memberships.find(APP, ContentKind.BLOB, ONE) is not None
    memberships.remember(APP, ContentKind.BLOB, blob, asked_at=memberships.moment(APP))
    assert memberships.find(APP, ContentKind.BLOB, ONE) is not None


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
def test_damaged_records_are_as_if_absent(memberships: FileMemberships, cache_path: Path, text: bytes) -> None:
    """A record that cannot be understood is asked again, not an error."""
    memberships.remember(APP, ContentKind.BLOB, Descriptor("application/octet-stream", ONE, 7))
    memberships.move_tag(APP, LATEST, manifest(ONE), recorded=1)
    for directory in ("_blobs", "_tags"):
        (path,) = (cache_path / "repositories" / str(APP) / directory).iterdir()
        path.write_bytes(text.replace(b"%s", b'"digest":"%s"' % str(ONE).encode()))
    (cache_path / "repositories" / str(APP) / "_blobs" / "damaged").touch()
    assert memberships.find(APP, ContentKind.BLOB, ONE) is None
    assert memberships.find_tag(APP, LATEST) is None
    assert memberships.digests_of(lambda _: True) == {ONE}


def test_a_clock_that_is_put_back_keeps_nothing_fresh(memberships: FileMemberships, cache_path: Path) -> None:
    """What was learned in what is now the future is old, and is asked for again."""
    memberships.remember(APP, ContentKind.BLOB, Descriptor("application/octet-stream", ONE, 7))
    memberships.move_tag(APP, LATEST, manifest(ONE), recorded=1)
    for directory in ("_blobs", "_tags"):
        (path,) = (cache_path / "repositories" / str(APP) / directory).iterdir()
        os.utime(path, (time.time() + 3600, time.time() + 3600))
    found, cached = memberships.find(APP, ContentKind.BLOB, ONE), memberships.find_tag(APP, LATEST)
    assert found is not None
    assert cached is not None
    assert found.age_seconds == cached.age_seconds == float("inf")


def test_an_answer_asked_for_before_a_push_does_not_undo_it(memberships: FileMemberships) -> None:
    """remember_tag changes nothing when the entry was written since it was read; a push always wins."""
    assert memberships.remember_tag(APP, LATEST, manifest(ONE), recorded=1, unless_changed_from=None)
    before = memberships.find_tag(APP, LATEST)
    assert before is not None
    memberships.move_tag(APP, LATEST, manifest(TWO), recorded=1)
    assert not memberships.remember_tag(APP, LATEST, manifest(ONE), recorded=1, unless_changed_from=before.version)
    assert not memberships.remember_tag(APP, LATEST, manifest(ONE), recorded=1, unless_changed_from=None)
    after = memberships.find_tag(APP, LATEST)
    assert after is not None
    assert after.digest == TWO
    memberships.forget_tag(APP, LATEST)
    assert not memberships.remember_tag(APP, LATEST, manifest(ONE), recorded=1, unless_changed_from=after.version)
    assert memberships.find_tag(APP, LATEST) is None


def test_writing_the_same_digest_again_is_a_change(memberships: FileMemberships) -> None:
    """There and back again is noticed: the version is of the write, not of the digest."""
    memberships.move_tag(APP, LATEST, manifest(ONE), recorded=1)
    before = memberships.find_tag(APP, LATEST)
    assert before is not None
    memberships.move_tag(APP, LATEST, manifest(TWO), recorded=1)
    memberships.move_tag(APP, LATEST, manifest(ONE), recorded=1)
    assert not memberships.remember_tag(APP, LATEST, manifest(THREE), recorded=1, unless_changed_from=before.version)


def test_tags_of_a_deleted_digest_are_forgotten(memberships: FileMemberships) -> None:
    """All tags on the digest go, in this repository only; the others stay."""
    for tag, digest in {"a": ONE, "b": TWO, "c": ONE}.items():
        memberships.move_tag(APP, Tag(tag), manifest(digest), recorded=1)
    memberships.move_tag(TEAM, Tag("a"), manifest(ONE), recorded=1)
    assert memberships.forget_tags_of(APP, ONE) == ["a", "c"]
    assert memberships.find_tag(APP, Tag("a")) is None
    assert memberships.find_tag(APP, Tag("b")) is not None
    assert memberships.find_tag(TEAM, Tag("a")) is not None
    assert memberships.forget_tags_of(OTHER, ONE) == []


def test_a_full_disk_never_leaves_an_old_tag_after_a_push(
    memberships: FileMemberships, cache_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A push whose tag cannot be written removes the old entry, and nothing is raised."""
    memberships.move_tag(APP, LATEST, manifest(ONE), recorded=1)
    (cache_path / "temp").rmdir()
    memberships.move_tag(APP, LATEST, manifest(TWO), recorded=1)
    memberships.remember(APP, ContentKind.BLOB, Descriptor("application/octet-stream", ONE, 7))
    assert memberships.find_tag(APP, LATEST) is None
    assert memberships.find(APP, ContentKind.BLOB, ONE) is None
    assert "cannot remember" in caplog.text


_DIGESTS = st.sampled_from([ONE, TWO, THREE])
_STEPS = st.lists(st.tuples(st.sampled_from(["read", "remember", "move", "forget"]), _DIGESTS), max_size=30)


@settings(max_examples=60, deadline=None)
@given(steps=_STEPS)
def test_compare_and_set_against_a_model(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Digest]]
) -> None:
    """Whatever the order: remember_tag writes exactly when nothing was written since its version was read."""
    path = tmp_path_factory.mktemp("cache")
    prepare_cache(path)
    memberships = FileMemberships(path)
    writes, seen_writes, version, expected = 0, 0, None, None
    for step, digest in steps:
        if step == "read":
            cached = memberships.find_tag(APP, LATEST)
            assert (None if cached is None else cached.digest) == expected
            version, seen_writes = (None if cached is None else cached.version), writes
        elif step == "remember":
            written = memberships.remember_tag(APP, LATEST, manifest(digest), recorded=1, unless_changed_from=version)
            unchanged_absence = version is None and expected is None
            assert written == (seen_writes == writes or unchanged_absence)
            expected, writes = (digest, writes + 1) if written else (expected, writes)
        elif step == "move":
            memberships.move_tag(APP, LATEST, manifest(digest), recorded=1)
            expected, writes = digest, writes + 1
        else:
            memberships.forget_tag(APP, LATEST)
            writes += expected is not None
            expected = None


def test_who_deletes_has_others_forget_nothing(memberships: FileMemberships, cache_path: Path) -> None:
    """A deletion elsewhere says nothing: one user could else have every repository asked for anew all the time."""
    asked_at = memberships.moment(APP)
    FileMemberships(cache_path).end(TEAM, ContentKind.BLOB, ONE)
    memberships.remember(APP, ContentKind.BLOB, Descriptor("application/octet-stream", ONE, 7), asked_at=asked_at)
    assert memberships.find(APP, ContentKind.BLOB, ONE) is not None


def test_what_replicas_said_can_be_forgotten(memberships: FileMemberships, cache_path: Path) -> None:
    """Answers about one kind in one upstream go, in every worker; what was pushed through us stays."""
    worker, asked_at = FileMemberships(cache_path), 0
    for routed in (APP, TEAM, OTHER):
        for kind in ContentKind:
            memberships.remember(routed, kind, manifest(ONE))
            memberships.remember(routed, kind, manifest(TWO), asked_at=asked_at)
            assert worker.find(routed, kind, TWO) is not None
    memberships.forget_answers("main", ContentKind.BLOB)
    for routed in (APP, TEAM, OTHER):
        for kind in ContentKind:
            assert worker.find(routed, kind, ONE) is not None
            is_forgotten = routed != OTHER and kind is ContentKind.BLOB
            assert (worker.find(routed, kind, TWO) is None) is is_forgotten
    assert sorted(memberships.contents_of("main", ContentKind.BLOB)) == [("team", ONE), ("team/app", ONE)]


def test_the_manifests_of_a_repository_are_known(memberships: FileMemberships, cache_path: Path) -> None:
    """Those confirmed last come first; a tag on one of them is found by its digest."""
    for age, digest in ((20, ONE), (0, TWO), (10, THREE)):
        memberships.remember(APP, ContentKind.MANIFEST, manifest(digest))
        file = next(cache_path.rglob(f"_manifests/{digest.algorithm}-{digest.hex}"))
        os.utime(file, (time.time() - age, time.time() - age))
    memberships.remember(TEAM, ContentKind.MANIFEST, manifest(ONE))
    assert memberships.manifests_of(APP) == [TWO, THREE, ONE]
    memberships.move_tag(APP, LATEST, manifest(TWO), recorded=1)
    assert memberships.has_tag_on(APP, TWO)
    assert not memberships.has_tag_on(APP, ONE)
    assert not memberships.has_tag_on(TEAM, TWO)
