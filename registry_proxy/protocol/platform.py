"""Platforms of the images in an index (image-spec, "Image Index")."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

_PLATFORM = re.compile(r"([a-z0-9_.-]{1,64})/([a-z0-9_.-]{1,64})(?:/([a-z0-9_.-]{1,64}))?")


@dataclass(frozen=True, slots=True)
class Platform:
    """The machine that an image runs on; ``variant`` "" is any when asked for, none when stated."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def matches(self, stated: "Platform | None") -> bool:
        """Tell whether an image for ``stated`` is one of those asked for by this."""
        if stated is None:
            return False
        same = (self.os, self.architecture) == (stated.os, stated.architecture)
        return same and self.variant in {"", stated.variant}


def parse_platform(text: str) -> Platform | None:
    """Return the platform of ``linux/amd64`` or ``linux/arm/v7``; None when it is none."""
    match = _PLATFORM.fullmatch(text)
    return None if match is None else Platform(match[1], match[2], match[3] or "")


def platforms_of(index: bytes) -> Mapping[str, Platform]:
    """Return the platforms that an index states, by the digests of its images; one that it does not state is missing.

    Args:
        index: the body of a valid index.
    """
    found: dict[str, Platform] = {}
    for child in json.loads(index)["manifests"]:
        stated = child.get("platform")
        if isinstance(stated, dict):
            values = [stated.get(key) or "" for key in ("os", "architecture", "variant")]
            if all(isinstance(value, str) for value in values):
                found.setdefault(child["digest"], Platform(*values))
    return found
