"""Repositories, tags and digests: accepted and refused texts, and no other error."""

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import (
    Digest,
    Tag,
    digest_of,
    fallback_tags,
    is_fallback_tag,
    is_repository,
    is_tag,
    parse_digest,
    parse_repository,
    parse_tag_or_digest,
    subject_of,
)

# The expressions of the spec, word for word, "Pulling manifests".
SPEC_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
SPEC_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")

NEAR_NAMES = st.text(alphabet="ab0._-/A%: \n\0é", max_size=12)


@given(st.one_of(st.text(), NEAR_NAMES))
def test_a_name_is_what_the_spec_says(text: str) -> None:
    """A name is accepted exactly when the spec's expression accepts it and it is no longer than 255."""
    assert is_repository(text) == (len(text) <= 255 and SPEC_NAME.fullmatch(text) is not None)


@given(st.one_of(st.text(), NEAR_NAMES))
def test_a_refused_name_is_name_invalid(text: str) -> None:
    """Any text is returned unchanged or refused with NAME_INVALID."""
    try:
        assert parse_repository(text) == text
    except RegistryError as error:
        assert error.code is ErrorCode.NAME_INVALID  # noqa: PT017 - both outcomes are right, each for its texts
        assert not is_repository(text)


@pytest.mark.parametrize(
    "name",
    ["a", "library/nginx", "a.b/c_d/e__f/g-h/i---j", "0/1", "a" * 255, "tags/list", "v2", "blobs/uploads"],
)
def test_valid_names(name: str) -> None:
    """Names of real registries are accepted."""
    assert parse_repository(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a/./b", "A", "a/B", "a___b", "a..b", "a-", "-a", "_a", "a_",
        "a.", "a%2fb", "a%252fb", "a b", "a\n", "a\0", "a:b", "a@b", "ä", "１", "a" * 256, "host:5000/a",  # noqa: RUF001 - a digit of another script
    ],
)  # fmt: skip
def test_invalid_names(name: str) -> None:
    """Dots, empty components, escapes, upper case, NUL, newline, other scripts and more than 255 are refused."""
    with pytest.raises(RegistryError) as caught:
        parse_repository(name)
    assert caught.value.code is ErrorCode.NAME_INVALID
    assert caught.value.status == 400


@given(st.one_of(st.text(), st.text(alphabet="aZ0._-:/ \n", max_size=140)))
def test_a_tag_is_what_the_spec_says(text: str) -> None:
    """A tag is accepted exactly when the spec's expression accepts it."""
    assert is_tag(text) == (SPEC_TAG.fullmatch(text) is not None)


@given(st.text())
def test_a_slot_holds_a_tag_or_a_digest_or_is_refused(text: str) -> None:
    """Any text in the slot of a manifest is a tag, a digest, or refused as one of the two."""
    try:
        value = parse_tag_or_digest(text)
    except RegistryError as error:
        expected = ErrorCode.DIGEST_INVALID if ":" in text else ErrorCode.TAG_INVALID
        assert error.code is expected  # noqa: PT017 - both outcomes are right, each for its texts
    else:
        assert str(value) == text


@given(st.binary(), st.sampled_from(["sha256", "sha512"]))
def test_digests_round_trip_and_match_their_content(content: bytes, algorithm: str) -> None:
    """A digest of either algorithm survives its text form, and matches only the content of which it was made."""
    text = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    digest = parse_digest(text)
    assert str(digest) == text
    assert parse_tag_or_digest(text) == digest
    assert digest.matches(content)
    assert not digest.matches(content + b"x")
    hasher = digest.hasher()
    hasher.update(content)
    assert hasher.hexdigest() == digest.hex
    assert algorithm != "sha256" or digest_of(content) == digest


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "sha256", "sha256:", "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "A" * 64,
        "sha256:" + "g" * 64, "sha512:" + "a" * 64, "sha256:" + "a" * 63 + "\n", "sha256:" + "a" * 64 + "\n",
        "SHA256:" + "a" * 64, "md5:" + "a" * 32, "sha384:" + "a" * 96, "blake3:" + "a" * 64,
        "sha256:sha256:" + "a" * 57, " sha256:" + "a" * 64, "sha256:../" + "a" * 61, "sha256:" + "１" * 64,  # noqa: RUF001 - a digit of another script
    ],
)  # fmt: skip
def test_invalid_digests(text: str) -> None:
    """Wrong length, case, alphabet or an unknown algorithm is DIGEST_INVALID, never an unverified digest."""
    with pytest.raises(RegistryError) as caught:
        parse_digest(text)
    assert caught.value.code is ErrorCode.DIGEST_INVALID


@given(st.text())
def test_any_text_as_digest(text: str) -> None:
    """Nothing but RegistryError is raised."""
    try:
        assert isinstance(parse_digest(text), Digest)
    except RegistryError as error:
        assert error.code is ErrorCode.DIGEST_INVALID  # noqa: PT017 - both outcomes are right, each for its texts


@pytest.mark.parametrize("evil", ["a" * 100_000, "a-" * 50_000, "a" + "-" * 100_000, "a/" * 50_000, "a_" * 100_000])
def test_long_texts_are_refused_without_backtracking(evil: str) -> None:
    """Texts made for endless backtracking are refused (a slow one would run into the test's time-out)."""
    assert not is_repository(evil)
    assert not is_tag(evil)
    assert SPEC_NAME.fullmatch(evil[:255].rstrip("/_-") + "!") is None


def test_a_fallback_tag_names_its_subject() -> None:
    """The tag of a sha256 subject leads back to it; those of cosign, of sha512 and of people lead nowhere."""
    subject = parse_digest(f"sha256:{'a' * 64}")
    first, *cosigns = fallback_tags(subject)
    assert subject_of(first) == subject
    others = [*cosigns, fallback_tags(parse_digest(f"sha512:{'b' * 128}"))[0], Tag("v1"), Tag("sha256-a")]
    assert [subject_of(tag) for tag in others] == [None] * len(others)


def test_fallback_tags() -> None:
    """A digest has the specification's tag, truncated to the length of a tag, and those of cosign after it."""
    tags = fallback_tags(parse_digest(f"sha256:{'a' * 64}"))
    assert tags == [f"sha256-{'a' * 64}{suffix}" for suffix in ("", ".sig", ".att", ".sbom")]
    assert all(map(is_fallback_tag, tags))
    long = fallback_tags(parse_digest(f"sha512:{'b' * 128}"))
    assert long[0] == f"sha512-{'b' * 64}"
    assert all(map(is_tag, long))
