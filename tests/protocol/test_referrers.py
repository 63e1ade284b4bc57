"""Lists of referrers: entries as the specification derives them, merged, and cut into pages."""

import json
from typing import Any

import pytest

from registry_proxy.protocol.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest
from registry_proxy.protocol.reference import Digest, Tag, digest_of, fallback_tags, is_referrers_tag
from registry_proxy.protocol.referrers import (
    PAGE_MAX_BYTES,
    PAGE_MAX_ENTRIES,
    Referrer,
    describe_referrer,
    index_of,
    merge_referrers,
    page_of,
    parse_referrers,
)

CONFIG = {"mediaType": "application/vnd.example.config", "digest": str(digest_of(b"{}")), "size": 2}


def manifest_of(document: dict[str, Any], media_type: str = OCI_MANIFEST) -> Manifest:
    """Return a manifest with the given fields."""
    body = json.dumps(document).encode()
    return Manifest(Descriptor(media_type, digest_of(body), len(body)), body)


def entry(number: int, **fields: Any) -> Referrer:
    """Return an entry of the manifest with a number."""
    digest = digest_of(b"%d" % number)
    return Referrer(digest, {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": 1, **fields})


@pytest.mark.parametrize(
    ("document", "media_type", "artifact_type"),
    [
        ({"artifactType": "a/b", "config": CONFIG}, OCI_MANIFEST, "a/b"),
        ({"config": CONFIG}, OCI_MANIFEST, CONFIG["mediaType"]),
        ({"artifactType": "", "config": CONFIG}, OCI_MANIFEST, CONFIG["mediaType"]),
        ({"artifactType": "a/b", "manifests": []}, OCI_INDEX, "a/b"),
        ({"manifests": []}, OCI_INDEX, None),
        ({"artifactType": 7, "config": []}, OCI_MANIFEST, None),
    ],
)
def test_the_type_of_an_artifact_is_derived(document: dict[str, Any], media_type: str, artifact_type: str) -> None:
    """The type is its own artifactType, else its config's media type; an index without one has none."""
    manifest = manifest_of(document, media_type)
    described = describe_referrer(manifest)
    assert described.artifact_type == artifact_type
    assert ("artifactType" in described.fields) is (artifact_type is not None)
    expected = {"mediaType": media_type, "digest": str(manifest.descriptor.digest), "size": len(manifest.body)}
    assert {key: described.fields[key] for key in expected} == expected


def test_annotations_are_those_of_the_manifest() -> None:
    """The annotations of the entry are those of the manifest; without any there is no such field."""
    annotations = {"org.example.about": "\u00e4 \u4e16"}
    assert describe_referrer(manifest_of({"annotations": annotations})).fields["annotations"] == annotations
    without: list[dict[str, Any]] = [{}, {"annotations": {}}, {"annotations": None}]
    for document in without:
        assert "annotations" not in describe_referrer(manifest_of(document)).fields


def test_an_index_comes_back_with_fields_that_are_unknown_here() -> None:
    """Entries are kept unchanged, in an index that names its media type."""
    entries = [entry(1, platform={"os": "linux"}, other=[1]), entry(2, artifactType="a/b")]
    index = index_of(entries)
    assert parse_referrers(index.body) == entries
    document = json.loads(index.body)
    assert (document["schemaVersion"], document["mediaType"]) == (2, OCI_INDEX)
    assert index.descriptor == Descriptor(OCI_INDEX, digest_of(index.body), len(index.body))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"manifests": {}}', b"[" * 100_000])
def test_a_body_that_is_no_index_is_refused(body: bytes) -> None:
    """An image, a list or no JSON at all is no list of referrers, and not an empty one either."""
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        parse_referrers(body, skips_malformed=True)


def test_an_empty_list_may_be_null() -> None:
    """Programs in Go send null for a list that was never filled, as olareg does."""
    assert parse_referrers(b'{"schemaVersion": 2, "manifests": null}') == []


@pytest.mark.parametrize(
    "malformed",
    [7, {}, {"digest": "x"}, {**entry(1).fields, "size": "1"}, {**entry(1).fields, "mediaType": None}],
)
def test_a_malformed_entry_hides_no_other(malformed: object) -> None:
    """It is left out where anybody may have pushed the index, and an error in a registry's own list."""
    body = json.dumps({"manifests": [malformed, entry(2).fields]}).encode()
    assert parse_referrers(body, skips_malformed=True) == [entry(2)]
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        parse_referrers(body)


def test_merged_lists_have_each_manifest_once() -> None:
    """Merged lists are sorted by digest; of two entries of one manifest the first one with a type stays."""
    typed, other = entry(1, artifactType="a/b"), entry(1, artifactType="c/d")
    assert merge_referrers([entry(1), entry(2)], [typed], [other]) == sorted(
        [typed, entry(2)], key=lambda one: str(one.digest)
    )
    assert merge_referrers() == []


def test_pages_follow_each_other_without_a_gap() -> None:
    """With any size of a page, all pages together are the list; ``last`` may have left the list meanwhile."""
    entries = merge_referrers(entry(number) for number in range(25))
    for size in (1, 7, 25, 10_000):
        seen: list[Referrer] = []
        last, more = None, True
        while more:
            page, more = page_of(entries, last, size)
            assert 0 < len(page) <= size
            seen += page
            last = str(page[-1].digest)
        assert seen == entries
    assert page_of(entries, str(entries[3].digest)[:-1] + "g", 2)[0] == entries[4:6]
    assert page_of([], None) == ([], False)
    assert page_of(entries, None, 0) == (entries[:1], True)  # a page without an entry would lead nowhere


def test_a_page_is_bounded() -> None:
    """A page ends before 1,000 entries or 1 MiB are exceeded, but has at least one entry."""
    assert len(page_of(merge_referrers(entry(n) for n in range(1100)), None, 2000)[0]) == PAGE_MAX_ENTRIES
    large = merge_referrers(entry(n, annotations={"a": "x" * (PAGE_MAX_BYTES // 3)}) for n in range(4))
    assert page_of(large, None) == (large[:2], True)
    huge = [entry(1, annotations={"a": "x" * PAGE_MAX_BYTES}), entry(2)]
    assert page_of(huge, None) == (huge[:1], True)


def test_tags_that_stand_for_referrers_are_recognised() -> None:
    """The tags that the specification derives from a digest, with sha512 truncated, count; those of cosign do not."""
    assert is_referrers_tag(fallback_tags(digest_of(b"x"))[0])
    assert is_referrers_tag(fallback_tags(Digest("sha512", "a" * 128))[0])
    for tag in ("latest", f"sha256-{'a' * 64}.sig", f"sha256-{'a' * 63}", f"sha256-{'A' * 64}"):
        assert not is_referrers_tag(Tag(tag))
