"""Platforms of the images in an index (image-spec, "Image Index")."""

import json
import re
from dataclasses import dataclass

from registry_proxy.protocol.reference import Digest

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


def platform_of(index: bytes, digest: Digest) -> Platform | None:
    """Return what an index says that one of its images runs on; None when it does not say.

    Args:
        index: the body of a valid index.
        digest: of the image.
    """
    for child in json.loads(index)["manifests"]:
        stated = child.get("platform")
        if child.get("digest") == str(digest) and isinstance(stated, dict):
            values = [stated.get(key) or "" for key in ("os", "architecture", "variant")]
            if all(isinstance(value, str) for value in values):
                return Platform(*values)
    return None
