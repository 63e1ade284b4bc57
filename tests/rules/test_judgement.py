"""The pure judgement: each condition with an image that violates it, and one that does not."""

from dataclasses import replace
from typing import Any

import pytest

from registry_proxy.ports.rules import Condition
from registry_proxy.protocol.reference import digest_of
from registry_proxy.rules.floors import Floor
from registry_proxy.rules.image import ImageConfig, JudgedImage
from registry_proxy.rules.judgement import is_root, violations_of
from registry_proxy.rules.rule import Rule

NOW = 1_000_000.0
SOURCE = "org.opencontainers.image.source"
GOOD = JudgedImage(
    digest=digest_of(b"image"),
    size_bytes=100,
    layer_count=2,
    media_types=["application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.layer.v1.tar+gzip"],
    is_image=True,
    config=ImageConfig(
        labels={SOURCE: "https://git.example/team/app"}, platform="linux/amd64", user="10001", created_at=NOW - 50
    ),
)


def rule(**fields: Any) -> Rule:
    """Return a rule for everything."""
    return Rule(name="r", repository="**", **fields)


def configured(**fields: Any) -> JudgedImage:
    """Return an image that differs from the good one in its configuration."""
    assert GOOD.config is not None
    return replace(GOOD, config=replace(GOOD.config, **fields))


CASES = [
    (Condition.LABELS, {"labels": {SOURCE: "https://git.example/*"}}, configured(labels={})),
    (Condition.LABELS, {"labels": {SOURCE: "https://git.example/*"}}, configured(labels={SOURCE: "https://evil/"})),
    (Condition.MAX_SIZE, {"max_size_bytes": 100}, replace(GOOD, size_bytes=101)),
    (Condition.MAX_LAYERS, {"max_layers": 2}, replace(GOOD, layer_count=3)),
    (Condition.MEDIA_TYPES, {"media_types": ["application/vnd.oci.image.*"]}, replace(GOOD, media_types=["a/helm"])),
    (Condition.PLATFORMS, {"platforms": ["linux/*"]}, configured(platform="windows/amd64")),
    (Condition.PLATFORMS, {"platforms": ["linux/*"]}, configured(platform="")),
    (Condition.NOT_ROOT, {"not_root": True}, configured(user="")),
    (Condition.MAX_AGE, {"max_age_seconds": 60}, configured(created_at=NOW - 61)),
    (Condition.MAX_AGE, {"max_age_seconds": 60}, configured(created_at=None)),
]


@pytest.mark.parametrize(("condition", "fields", "bad"), CASES)
def test_a_condition_refuses_and_allows(condition: Condition, fields: dict[str, Any], bad: JudgedImage) -> None:
    """The bad image violates the condition alone, with a reason and a remedy; the good image violates nothing."""
    (found,) = violations_of(rule(**fields, advice="See the wiki."), [GOOD, bad], NOW)
    assert found.condition is condition
    assert found.reason
    assert found.remedy
    assert str(found).startswith(f"rule r, {condition.value}: ")
    assert str(found).endswith(". See the wiki.")
    assert list(violations_of(rule(**fields), [GOOD], NOW)) == []


def test_all_violations_are_found_at_once() -> None:
    """Every missing label is named, and a fault that several images have only once."""
    judged = rule(labels={"a": "*", "b": "*"}, not_root=True, max_layers=1)
    bad = configured(labels={}, user="root")
    reasons = [found.reason for found in violations_of(judged, [bad, bad], NOW)]
    assert reasons == [
        "the image has 2 layers, more than 1",
        "the label a is missing",
        "the label b is missing",
        "the image runs as root",
    ]


def test_an_annotation_counts_as_a_label() -> None:
    """The annotation of a manifest stands in for the label of its configuration, and above it."""
    judged = rule(labels={SOURCE: "https://git.example/*"})
    image = replace(configured(labels={}), annotations={SOURCE: "https://git.example/a"})
    assert list(violations_of(judged, [image], NOW)) == []
    image = replace(GOOD, annotations={SOURCE: "https://elsewhere.example/a"})
    assert len(list(violations_of(judged, [image], NOW))) == 1


def test_artifacts_are_judged_by_their_manifest_alone() -> None:
    """A signature or chart has no labels, user, platform or age; size, layers and media types count."""
    artifact = replace(GOOD, is_image=False, config=None)
    strict = rule(labels={"a": "*"}, not_root=True, platforms=["linux/*"], max_age_seconds=1)
    assert list(violations_of(strict, [artifact], NOW)) == []
    assert len(list(violations_of(rule(max_size_bytes=1), [artifact], NOW))) == 1


def test_an_image_that_cannot_be_judged_is_a_violation() -> None:
    """An unreadable image is never let through by a rule that had to read it."""
    (found,) = violations_of(rule(not_root=True), [replace(GOOD, fault="the configuration cannot be read")], NOW)
    assert found.condition is Condition.READABLE


def test_text_of_an_image_is_made_printable() -> None:
    """A label with control characters reaches no terminal as such, and is cut."""
    (found,) = violations_of(rule(labels={"a": "b"}), [configured(labels={"a": "\x1b[2J" + "x" * 1000})], NOW)
    assert "\x1b" not in found.reason
    assert len(found.reason) < 400


@pytest.mark.parametrize("user", ["", "root", "0", "00", "+0", "0:0", "root:staff", " 0", ":0"])
def test_root_is_found_by_each_of_its_names(user: str) -> None:
    """A runtime reads all of these as user 0."""
    assert is_root(user)


@pytest.mark.parametrize("user", ["app", "1", "10001:0", "rooty"])
def test_other_users_are_not_root(user: str) -> None:
    """The group does not matter."""
    assert not is_root(user)


LAYERS = [f"sha256:{letter * 64}" for letter in "ab"]
SYSTEM, COPY = Floor(1, ["base/system:1"]), Floor(2, ["other/same:1"])


@pytest.mark.parametrize(
    ("fields", "floors", "reason"),
    [
        ({"bases": ["base/**"]}, [SYSTEM], ""),
        ({"bases": ["base/**"]}, [], "on no known base"),
        ({"bases": ["base/**", "scratch"]}, [], ""),
        ({"bases": ["base/**"]}, [SYSTEM, COPY], "on another image up to layer 2"),
        ({"max_floors": 2}, [SYSTEM], ""),
        ({"max_floors": 1}, [], ""),
        ({"max_floors": 1}, [SYSTEM], "is floor 2: others end at layer 1; 1 are allowed"),
        ({"max_floors": 2}, [SYSTEM, COPY], ""),  # an image with the same layers is no floor below
    ],
)
def test_floors_are_judged(fields: dict[str, Any], floors: list[Floor], reason: str) -> None:
    """The nearest known image must be an allowed base, and no more than N known images may lie below."""
    image = replace(configured(diff_ids=LAYERS), floors=floors)
    found = list(violations_of(rule(**fields), [image], NOW))
    assert [reason in each.reason for each in found] == [True] * bool(reason)
    assert [each for each in found if "system:" in str(each) or "same:" in str(each)] == []
    assert all(bool(each.hidden) == bool(floors) for each in found)


def test_layers_must_be_stated_where_floors_count() -> None:
    """A configuration with fewer layers than the manifest could hide its base."""
    image = replace(configured(diff_ids=LAYERS[:1]), floors=[])
    (found,) = violations_of(rule(max_floors=3), [image], NOW)
    assert found.condition is Condition.READABLE
