"""Images as their parts: a config, layers, and the manifest over them."""

import json
from dataclasses import dataclass

from registry_proxy.protocol.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor
from registry_proxy.protocol.reference import Digest, digest_of


@dataclass(frozen=True)
class Parts:
    """A manifest and its blobs; ``algorithm`` is that of the digests by which others name it."""

    manifest: bytes
    blobs: tuple[bytes, ...]
    media_type: str = OCI_MANIFEST
    algorithm: str = "sha256"

    @property
    def digest(self) -> Digest:
        """The digest of the manifest."""
        return digest_of(self.manifest, self.algorithm)

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of the manifest."""
        return Descriptor(self.media_type, self.digest, len(self.manifest))


def _descriptor(content: bytes, media_type: str, algorithm: str = "sha256") -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest_of(content, algorithm)), "size": len(content)}


def image(*layers: bytes, label: str = "", algorithm: str = "sha256") -> Parts:
    """Return an image with the given layers, all digests by one algorithm."""
    config = json.dumps({"label": label, "os": "linux"}).encode()
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(config, "application/vnd.oci.image.config.v1+json", algorithm),
        "layers": [_descriptor(layer, "application/vnd.oci.image.layer.v1.tar", algorithm) for layer in layers],
    }
    return Parts(json.dumps(document).encode(), (config, *layers), algorithm=algorithm)


def index(*images: Parts, algorithm: str = "sha256") -> Parts:
    """Return an index over images."""
    children = [_descriptor(part.manifest, part.media_type, part.algorithm) for part in images]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}
    return Parts(json.dumps(document).encode(), (), OCI_INDEX, algorithm)


def build_cache(*layers: bytes) -> Parts:
    """Return a cache as BuildKit exports it: an index whose children are layers and a config, all of them blobs."""
    config = json.dumps({"layers": [str(digest_of(layer)) for layer in layers]}).encode()
    children = [_descriptor(layer, "application/vnd.oci.image.layer.v1.tar+gzip") for layer in layers]
    children.append(_descriptor(config, "application/vnd.buildkit.cacheconfig.v0"))
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}
    return Parts(json.dumps(document).encode(), (*layers, config), OCI_INDEX)
