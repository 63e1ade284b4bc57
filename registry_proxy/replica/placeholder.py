"""Placeholders: a tag is moved to one, to delete it alone where a registry deletes a manifest with all its tags."""

import json

from registry_proxy.protocol.descriptor import OCI_INDEX, Descriptor, Manifest
from registry_proxy.protocol.reference import Repository, Tag, digest_of


def placeholder_of(repository: Repository, tag: Tag) -> Manifest:
    """Return the placeholder of a tag: an index of nothing, the same at every call and on every node.

    No other tag can be on it, so deleting it deletes this tag alone. A tag that is still on it, because the deleting
    node died, is recognised as absent by every reader.
    """
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [],
        "annotations": {"registry-proxy.deleted-tag": f"{repository}:{tag}"},
    }
    body = json.dumps(document).encode()
    return Manifest(Descriptor(OCI_INDEX, digest_of(body), len(body)), body)
