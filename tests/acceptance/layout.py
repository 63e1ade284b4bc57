"""OCI image layouts: the directory that every client reads an image from and writes one to."""

import json
from pathlib import Path

from tests.product import Image, digest_of

TAG = "image"
"""The name of the one image in a layout."""


def write_layout(root: Path, image: Image) -> Path:
    """Write an image as an OCI layout of one tag; return the directory."""
    descriptor = {
        "mediaType": image.media_type,
        "digest": image.digest,
        "size": len(image.manifest),
        "annotations": {"org.opencontainers.image.ref.name": TAG},
    }
    folder = root / "blobs" / "sha256"
    folder.mkdir(parents=True)
    for content in (image.manifest, *image.blobs.values()):
        (folder / digest_of(content).removeprefix("sha256:")).write_bytes(content)
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor]}
    (root / "index.json").write_text(json.dumps(index))
    return root


def holds_image(root: Path, image: Image) -> bool:
    """Tell whether a layout names an image and holds all its bytes."""
    named = [manifest["digest"] for manifest in json.loads((root / "index.json").read_text())["manifests"]]
    contents = (image.manifest, *image.blobs.values())
    files = [(root / "blobs" / "sha256" / digest_of(content).removeprefix("sha256:"), content) for content in contents]
    return image.digest in named and all(file.exists() and file.read_bytes() == content for file, content in files)
