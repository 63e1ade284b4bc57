"""Floors: the known images that another one begins with, by the digests of unpacked layers."""

import hashlib

import pytest

from registry_proxy.rules.floors import Floor, chain_ids, floors_below, matches_base, parse_diff_ids

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


def test_chains_are_those_of_the_specification() -> None:
    """The first is the layer itself, each further one the hash of the chain before and its layer."""
    second = hashlib.sha256(f"{A} {B}".encode()).hexdigest()
    assert list(chain_ids([A, B])) == [A, f"sha256:{second}"]
    assert chain_ids([A, B, C])[:2] == chain_ids([A, B])
    assert chain_ids([]) == []


def test_floors_are_known_beginnings_of_other_repositories() -> None:
    """Each known beginning is a floor, the lowest first; earlier images of the same repository are none."""
    system, middle, whole = chain_ids([A, B, C])
    known = {system: ["base/system:1"], middle: ["shop/app:0", "base/java:1"], whole: ["shop/app:1"]}
    assert floors_below([system, middle, whole], known, "shop/app") == [
        Floor(1, ["base/system:1"]),
        Floor(2, ["base/java:1"]),
    ]
    assert floors_below(chain_ids([B, A]), known, "shop/app") == []


@pytest.mark.parametrize("value", [None, "x", [1], ["sha256:short"], [A] * 501, [A, None], {}])
def test_foreign_layers_are_no_layers(value: object) -> None:
    """Anything but a bounded list of digests says nothing."""
    assert parse_diff_ids(value) == ()


def test_bases_match_by_repository_and_tag() -> None:
    """A pattern without a tag is for all tags."""
    patterns = ["base/**:v*", "java"]
    assert matches_base(patterns, "base/a/b:v1")
    assert matches_base(patterns, "java:anything")
    assert not matches_base(patterns, "base/a:1")
    assert not matches_base(patterns, "base:v1")
