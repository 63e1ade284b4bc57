"""The floors of an image: known images on which it stands, by the digests of their unpacked layers.

An image that is built FROM another one begins with the layers of that one, and its configuration names the unpacked
ones (``rootfs.diff_ids``): compression and registry do not matter. Nothing else of its Dockerfile is in it for sure.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from registry_proxy.protocol.patterns import compile_repository_pattern, compile_text_pattern

SCRATCH = "scratch"
"""Stands in a list of bases for an image without any known one."""

DIFF_IDS_MAX = 500
_DIFF_ID = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Floor:
    """A known image that another one begins with: its layers, and its names, each ``repository:tag``."""

    layer_count: int
    names: Sequence[str]


def chain_ids(diff_ids: Sequence[str]) -> Sequence[str]:
    """Return the name of each beginning of a list of layers (image-spec, "Layer ChainID"), the shortest first."""
    return list(accumulate(diff_ids, lambda chain, layer: _sha256(f"{chain} {layer}")))


def parse_diff_ids(value: object) -> Sequence[str]:
    """Return the layers that a configuration names; nothing where it does not say them."""
    if not isinstance(value, list) or len(value) > DIFF_IDS_MAX:
        return ()
    layers = [each for each in value if isinstance(each, str) and _DIFF_ID.fullmatch(each) is not None]
    return layers if len(layers) == len(value) else ()


def floors_below(chains: Sequence[str], known: Mapping[str, Sequence[str]], repository: str) -> Sequence[Floor]:
    """Return the known images that an image begins with, the lowest first.

    Args:
        chains: of the image; see ``chain_ids``.
        known: the names of images by their last chain.
        repository: of the image: what it held earlier is no floor of it.
    """
    found = []
    for count, chain in enumerate(chains, 1):
        names = [name for name in known.get(chain, ()) if name.rpartition(":")[0] != repository]
        if names:
            found.append(Floor(count, names))
    return found


def matches_base(patterns: Sequence[str], name: str) -> bool:
    """Tell whether ``repository:tag`` matches a pattern of bases; a pattern without a tag is for all tags."""
    repository, _, tag = name.rpartition(":")
    for pattern in patterns:
        of_repository, _, of_tag = pattern.partition(":")
        if (
            compile_repository_pattern(of_repository).fullmatch(repository) is not None
            and compile_text_pattern(of_tag or "*").fullmatch(tag) is not None
        ):
            return True
    return False


def _sha256(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
