"""An image as rules judge it: read from its manifest and its configuration, which come from clients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from registry_proxy.protocol.descriptor import Manifest, ManifestLinks
from registry_proxy.protocol.documents import parse_object
from registry_proxy.protocol.reference import Digest
from registry_proxy.rules.floors import Floor, parse_diff_ids

CONFIG_TYPES = frozenset({"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"})
_LAYER_TYPES = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_REFERENCE_TYPE, _ATTESTATION = "vnd.docker.reference.type", "attestation-manifest"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """The configuration of an image.

    Args:
        labels: of the configuration.
        platform: such as linux/amd64; "" where it is not stated.
        user: that its containers run as; "" for root.
        created_at: seconds since the epoch; None where it is not stated.
        diff_ids: digests of the unpacked layers; nothing where they are not stated.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    platform: str = ""
    user: str = ""
    created_at: float | None = None
    diff_ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedImage:
    """An image, or an artifact of another kind, of one manifest.

    Args:
        digest: of the manifest.
        size_bytes: of the manifest and all blobs that it names.
        layer_count: how many layers it has.
        media_types: of the manifest, its configuration and its layers.
        annotations: of the index that names it, and over them its own.
        is_image: whether a container can be made of it.
        config: None where it was not read.
        fault: why it cannot be judged; "" where it can.
        floors: the known images on which it stands, the lowest first; None where they were not looked up.
    """

    digest: Digest
    size_bytes: int = 0
    layer_count: int = 0
    media_types: Sequence[str] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    is_image: bool = False
    config: ImageConfig | None = None
    fault: str = ""
    floors: Sequence[Floor] | None = None

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels of the configuration, and annotations over them."""
        return {**({} if self.config is None else self.config.labels), **self.annotations}


def describe(manifest: Manifest, links: ManifestLinks, annotations: Mapping[str, str]) -> JudgedImage:
    """Return an image without its configuration; ``annotations`` are those of the index."""
    config, layers = links.blobs[:1], (*links.blobs[1:], *links.foreign)
    of_images = [layer for layer in layers if layer.media_type.startswith(_LAYER_TYPES)]
    descriptor = manifest.descriptor
    return JudgedImage(
        digest=descriptor.digest,
        size_bytes=descriptor.size_bytes + links.content_bytes,
        layer_count=len(layers),
        media_types=list(dict.fromkeys([descriptor.media_type, *(blob.media_type for blob in (*config, *layers))])),
        annotations={**annotations, **annotations_of(manifest.body)},
        # Signatures and attestations have the configuration of an image, too, and no layer of one.
        is_image=bool(config) and config[0].media_type in CONFIG_TYPES and bool(of_images or not layers),
    )


def annotations_of(manifest: bytes) -> Mapping[str, str]:
    """Return the annotations of a manifest or index."""
    return _texts(parse_object(manifest).get("annotations"))


def attestations_of(index: bytes) -> frozenset[str]:
    """Return the digests of the children that an index calls attestations of other children."""
    children = parse_object(index).get("manifests")
    named = [child for child in children if isinstance(child, dict)] if isinstance(children, list) else []
    return frozenset(
        str(child.get("digest"))
        for child in named
        if _texts(child.get("annotations")).get(_REFERENCE_TYPE) == _ATTESTATION
    )


def parse_config(body: bytes) -> ImageConfig | None:
    """Return the configuration of an image; None for anything but a JSON object."""
    config = parse_object(body)
    if not config:
        return None
    runtime = config.get("config")
    runtime = runtime if isinstance(runtime, dict) else {}
    stated = [config.get(name) for name in ("os", "architecture", "variant")]
    user, root = runtime.get("User"), config.get("rootfs")
    return ImageConfig(
        labels=_texts(runtime.get("Labels")),
        platform="/".join(part for part in stated if isinstance(part, str) and part),
        user=user if isinstance(user, str) else "",
        created_at=_parse_time(config.get("created")),
        diff_ids=parse_diff_ids(root.get("diff_ids") if isinstance(root, dict) else None),
    )


def _parse_time(value: object) -> float | None:
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError):
        return None


def _texts(value: object) -> Mapping[str, str]:
    return {name: text for name, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}
