"""Platforms of images in an index."""

import json

import pytest

from registry_proxy.protocol.platform import Platform, parse_platform, platforms_of
from registry_proxy.protocol.reference import digest_of

AMD64, ARM = Platform("linux", "amd64"), Platform("linux", "arm", "v7")


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", AMD64),
        ("linux/arm/v7", ARM),
        ("linux", None),
        ("linux/", None),
        ("linux/amd64/", None),
        ("Linux/amd64", None),
        ("linux/arm/v7/x", None),
        ("", None),
    ],
)
def test_parse(text: str, platform: Platform | None) -> None:
    """A platform is os/architecture, and a variant where there is one; its text form is the original."""
    assert parse_platform(text) == platform
    if platform is not None:
        assert str(platform) == text


def test_an_asked_platform_without_variant_is_any_variant() -> None:
    """linux/arm asks for all variants, linux/arm/v7 for one; an unstated platform never matches."""
    assert Platform("linux", "arm").matches(ARM)
    assert ARM.matches(ARM)
    assert not ARM.matches(Platform("linux", "arm"))
    assert not ARM.matches(Platform("linux", "arm", "v6"))
    assert not AMD64.matches(Platform("windows", "amd64"))
    assert not AMD64.matches(None)


@pytest.mark.parametrize(
    ("stated", "platform"),
    [
        ({"os": "linux", "architecture": "amd64"}, AMD64),
        ({"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "1"}, ARM),
        ({"os": "linux", "architecture": 7}, None),
        (None, None),
        ("linux/amd64", None),
    ],
)
def test_platforms_of(stated: object, platform: Platform | None) -> None:
    """The platform of a child is the one in the index; None for an unreadable one."""
    digest, other = digest_of(b"1"), digest_of(b"2")
    children = [{"digest": str(other), "platform": {"os": "plan9", "architecture": "386"}}]
    children.append({"digest": str(digest), "platform": stated})  # type: ignore[dict-item]  # whatever a client pushed
    found = platforms_of(json.dumps({"manifests": children}).encode())
    assert (found.get(str(digest)), found[str(other)]) == (platform, Platform("plan9", "386"))
