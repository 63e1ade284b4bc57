"""Lists of referrers: the manifests whose ``subject`` is another one (spec, "Listing Referrers").

Registries without this API have the same list as an index under a tag that is made of the subject's digest (spec,
"Referrers Tag Schema"): the fallback tag.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from registry_proxy.protocol.descriptor import OCI_INDEX, Descriptor, Manifest
from registry_proxy.protocol.documents import parse_object
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Digest, digest_of, parse_digest

PAGE_MAX_ENTRIES = 1000
PAGE_MAX_BYTES = 1024 * 1024
"""Clients read at most 4 MiB of a manifest, and many read no more of this list."""


@dataclass(frozen=True, slots=True)
class Referrer:
    """One entry of a list of referrers; ``fields`` is its descriptor as JSON, with fields that are unknown here."""

    digest: Digest
    fields: Mapping[str, Any]

    @property
    def artifact_type(self) -> str | None:
        """The type that clients filter by; None where the entry does not say."""
        value = self.fields.get("artifactType")
        return value if isinstance(value, str) and value else None

    @property
    def size_bytes(self) -> int:
        """The size of the entry itself, as it is sent."""
        return len(_dump(self.fields))


def parse_referrers(body: bytes, *, skips_malformed: bool = False) -> list[Referrer]:
    """Return the entries of an index of referrers.

    Args:
        body: the index.
        skips_malformed: leave out an entry that is no descriptor, as in an index that anybody may have pushed.

    Raises:
        ValueError: it is no index, or an entry of it is no descriptor.
    """
    try:
        document = json.loads(body)
    except RecursionError as error:
        raise ValueError("the index is nested too deeply") from error
    if not isinstance(document, dict) or "manifests" not in document:
        raise ValueError("it has no manifests")
    entries = document["manifests"] if document["manifests"] is not None else []  # Go writes an empty list as null
    if not isinstance(entries, list):
        raise ValueError("its manifests are no list")  # noqa: TRY004 - as above
    found = [_parse_entry(entry) for entry in entries]
    if None in found and not skips_malformed:
        raise ValueError("an entry is no descriptor")
    return [entry for entry in found if entry is not None]


def _parse_entry(entry: object) -> Referrer | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("digest"), str):
        return None
    if not isinstance(entry.get("mediaType"), str) or type(entry.get("size")) is not int:
        return None
    try:
        return Referrer(parse_digest(entry["digest"]), entry)
    except RegistryError:
        return None


def describe_referrer(manifest: Manifest) -> Referrer:
    """Return the entry of a manifest, with the artifactType and annotations that the specification derives.

    An image without artifactType has the media type of its config; an index has none then.
    """
    document = parse_object(manifest.body)
    descriptor = manifest.descriptor
    fields: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size_bytes,
    }
    config = document.get("config")
    artifact_type = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    if isinstance(artifact_type, str) and artifact_type:
        fields["artifactType"] = artifact_type
    annotations = document.get("annotations")
    if isinstance(annotations, dict) and annotations:
        fields["annotations"] = annotations
    return Referrer(descriptor.digest, fields)


def merge_referrers(*lists: Iterable[Referrer]) -> list[Referrer]:
    """Return the entries of all lists, each manifest once, in the order of their digests.

    Of several entries of one manifest the first that says its artifactType stands.
    """
    merged: dict[Digest, Referrer] = {}
    for entries in lists:
        for entry in entries:
            known = merged.get(entry.digest)
            if known is None or (known.artifact_type is None and entry.artifact_type is not None):
                merged[entry.digest] = entry
    return sorted(merged.values(), key=lambda entry: str(entry.digest))


def index_of(entries: Iterable[Referrer]) -> Manifest:
    """Return the index with these entries: what the API answers, and what lies under the fallback tag.

    It is named by sha512 where one of its entries is: registries that know sha256 alone take no other index of that.
    """
    listed = list(entries)
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.fields for entry in listed]}
    body = _dump(document)
    algorithm = max((entry.digest.algorithm for entry in listed), default="sha256")
    return Manifest(Descriptor(OCI_INDEX, digest_of(body, algorithm), len(body)), body)


def page_of(
    entries: Sequence[Referrer], last: str | None, page_size: int = PAGE_MAX_ENTRIES
) -> tuple[Sequence[Referrer], bool]:
    """Return a part of a sorted list, and whether something follows it.

    Args:
        entries: as ``merge_referrers`` returns them.
        last: the digest after which the part begins; it need not be listed.
        page_size: entries at most; a part has one at least, and ends before it is larger than 1 MiB.
    """
    following = [entry for entry in entries if last is None or str(entry.digest) > last]
    size_bytes = count = 0
    for entry in following[: max(1, min(page_size, PAGE_MAX_ENTRIES))]:
        size_bytes += entry.size_bytes
        if count and size_bytes > PAGE_MAX_BYTES:
            break
        count += 1
    return following[:count], count < len(following)


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
