"""Repositories, tags and digests (spec, "Pulling manifests"; image-spec, "Digests")."""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType, TypeGuard

from registry_proxy.protocol.errors import ErrorCode, RegistryError

if TYPE_CHECKING:
    from hashlib import _Hash

# <name>: [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_COSIGN_SUFFIXES = (".sig", ".att", ".sbom")
_FALLBACK_TAG = re.compile(rf"sha256-[0-9a-f]{{64}}(?:{'|'.join(map(re.escape, _COSIGN_SUFFIXES))})?")
_REFERRERS_TAG = re.compile(r"sha(?:256|512)-[0-9a-f]{64}")
_HASHES = {"sha256": hashlib.sha256, "sha512": hashlib.sha512}
_HEX_LENGTHS = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")

REPOSITORY_MAX_LENGTH = 255

RESERVED_PREFIX = "registry-proxy-internal/"
"""Repositories of our own begin with it, at upstreams that we write to; clients can neither see nor name them."""

RESERVED_TAG_PREFIX = "rp-keep-"
"""Tags of our own in the repositories of clients begin with it, likewise."""

KEEPER_PREFIX = f"{RESERVED_TAG_PREFIX}h-"
"""The tags that keep a manifest for the history of other tags begin with it."""

Repository = NewType("Repository", str)
"""A ``<name>`` that matches the spec's grammar and is at most 255 characters long."""

Tag = NewType("Tag", str)
"""A tag that matches the spec's grammar."""


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A content digest; ``algorithm`` is sha256 or sha512, ``hex`` is lower case and of that algorithm's length."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    def hasher(self) -> "_Hash":
        """Return a new hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm, usedforsecurity=False)

    def matches(self, content: bytes) -> bool:
        """Tell whether this is the digest of ``content``."""
        return hashlib.new(self.algorithm, content, usedforsecurity=False).hexdigest() == self.hex


def digest_of(content: bytes, algorithm: str = "sha256") -> Digest:
    """Return a digest of ``content``. Raises KeyError for an algorithm that no digest here has."""
    if algorithm == "sha256":
        return Digest(algorithm, hashlib.sha256(content).hexdigest())
    return Digest(algorithm, _HASHES[algorithm](content, usedforsecurity=False).hexdigest())


def other_digests_of(content: bytes, known: Digest) -> list[Digest]:
    """Return the digests that ``content`` has by other algorithms than that of the known one."""
    return [digest_of(content, algorithm) for algorithm in _HASHES if algorithm != known.algorithm]


def is_repository(text: str) -> TypeGuard[Repository]:
    """Tell whether ``text`` is a repository name."""
    return len(text) <= REPOSITORY_MAX_LENGTH and _REPOSITORY.fullmatch(text) is not None


def parse_repository(text: str) -> Repository:
    """Return ``text`` as a repository, or raise NAME_INVALID."""
    if not is_repository(text):
        raise RegistryError(
            ErrorCode.NAME_INVALID,
            "the repository name is not valid: lower-case letters, digits, single separators, at most 255 characters",
            detail={"name": text[:300]},
        )
    return text


def is_tag(text: str) -> TypeGuard[Tag]:
    """Tell whether ``text`` is a tag."""
    return _TAG.fullmatch(text) is not None


def fallback_tags(digest: Digest) -> list[Tag]:
    """Return the tags that may list referrers of a digest: the specification's first, then those that cosign makes."""
    name = f"{digest.algorithm}-{digest.hex[:64]}"  # truncated as the specification says
    return [Tag(name), *(Tag(f"{name}{suffix}") for suffix in _COSIGN_SUFFIXES)]


def is_fallback_tag(tag: Tag) -> bool:
    """Tell whether a tag lists referrers of a digest (spec, "Referrers Tag Schema"), or is what cosign makes of one."""
    return _FALLBACK_TAG.fullmatch(tag) is not None


def is_referrers_tag(tag: Tag) -> bool:
    """Tell whether a tag is one that the specification has for the referrers of a digest (its "Tag Schema")."""
    return _REFERRERS_TAG.fullmatch(tag) is not None


def subject_of(tag: Tag) -> Digest | None:
    """Return the manifest whose referrers a tag lists; None for another tag, and for sha512, which is cut short."""
    if not tag.startswith("sha256-") or not is_referrers_tag(tag):
        return None
    algorithm, _, encoded = tag.partition("-")
    return Digest(algorithm, encoded)


def kept_tag(digest: Digest) -> Tag:
    """Return the reserved tag under which a manifest is kept that a registry does not know by this digest."""
    encoded = base64.urlsafe_b64encode(bytes.fromhex(digest.hex)).decode().rstrip("=")
    return Tag(f"{RESERVED_TAG_PREFIX}{digest.algorithm}-{encoded}")


def keeper_tag(digest: Digest) -> Tag:
    """Return the reserved tag that keeps a manifest for the history of other tags."""
    return Tag(f"{KEEPER_PREFIX}{kept_tag(digest).removeprefix(RESERVED_TAG_PREFIX)}")


def kept_digest(tag: Tag) -> Digest | None:
    """Return the manifest that a reserved tag keeps; None for any other tag."""
    algorithm, _, encoded = tag.removeprefix(RESERVED_TAG_PREFIX).partition("-")
    try:
        content = base64.urlsafe_b64decode(f"{encoded}{'=' * (-len(encoded) % 4)}")
        digest = parse_digest(f"{algorithm}:{content.hex()}")
    except (binascii.Error, RegistryError):
        return None
    return digest if kept_tag(digest) == tag else None


def parse_digest(text: str) -> Digest:
    """Return ``text`` (``algorithm:hex``) as a digest, or raise DIGEST_INVALID."""
    algorithm, _, encoded = text.partition(":")
    if len(encoded) != _HEX_LENGTHS.get(algorithm) or _HEX.fullmatch(encoded) is None:
        raise RegistryError(
            ErrorCode.DIGEST_INVALID,
            "the digest is not valid: expected sha256: and 64, or sha512: and 128, lower-case hexadecimal digits",
            detail={"digest": text[:300]},
        )
    return Digest(algorithm, encoded)


def parse_tag_or_digest(text: str) -> Tag | Digest:
    """Return what stands in the ``<tag-or-digest>`` slot, or raise DIGEST_INVALID or TAG_INVALID."""
    return parse_digest(text) if ":" in text else parse_tag(text)


def parse_tag(text: str) -> Tag:
    """Return ``text`` as a tag, or raise TAG_INVALID."""
    if not is_tag(text):
        raise RegistryError(
            ErrorCode.TAG_INVALID,
            "the tag is not valid: letters, digits, '_', '.' and '-', at most 128, not starting with '.' or '-'",
            detail={"tag": text[:300]},
        )
    return text
