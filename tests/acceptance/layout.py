"""OCI image layouts: the directories from which every client reads an image and to which it writes one."""

import json
from pathlib import Path

from tests.support.product import Image, digest_of

TAG = "image"
"""The name of the one image in a layout."""


INDEX = "application/vnd.oci.image.index.v1+json"


def make_index(*images: Image) -> Image:
    """Return an index of images, one per platform; its blobs are the manifests and everything that they name."""
    platforms = [{"os": "linux", "architecture": name} for name in ("amd64", "arm64", "s390x")]
    children = [
        {"mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest), "platform": platform}
        for image, platform in zip(images, platforms, strict=False)
    ]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": children}
    contents = [content for image in images for content in (image.manifest, *image.blobs.values())]
    return Image(json.dumps(index).encode(), {digest_of(content): content for content in contents}, INDEX)


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
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}
    (root / "index.json").write_text(json.dumps(index))
    return root


def holds_image(root: Path, image: Image) -> bool:
    """Tell whether a layout names an image and holds all its bytes."""
    named = [manifest["digest"] for manifest in json.loads((root / "index.json").read_text())["manifests"]]
    contents = (image.manifest, *image.blobs.values())
    files = [(root / "blobs" / "sha256" / digest_of(content).removeprefix("sha256:"), content) for content in contents]
    return image.digest in named and all(file.exists() and file.read_bytes() == content for file, content in files)
