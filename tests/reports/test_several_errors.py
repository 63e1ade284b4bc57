"""Of several errors in one answer of a registry, the client gets the one that names the cause.

Reports: pushes of Windows images to distribution 2.8, whose foreign layers fail as "unknown error" for docker.
"""

import json

import pytest

from registry_proxy.protocol.errors import ErrorCode
from registry_proxy.replica.failure import refusal
from tests.conftest import StartProxy
from tests.support.product import OCI_LAYER, Image, digest_of, make_image, random_bytes
from tests.support.servers import Server

FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"


def body_of(*errors: tuple[str, object]) -> bytes:
    """Return the body of an answer with the given codes and details."""
    return json.dumps(
        {"errors": [{"code": code, "message": "x", "detail": detail} for code, detail in errors]}
    ).encode()


@pytest.mark.parametrize(
    ("errors", "code", "detail"),
    [
        ([("UNKNOWN", None), ("UNKNOWN", {}), ("MANIFEST_BLOB_UNKNOWN", "d")], ErrorCode.MANIFEST_BLOB_UNKNOWN, "d"),
        ([("MANIFEST_INVALID", {}), ("MANIFEST_BLOB_UNKNOWN", "d")], ErrorCode.MANIFEST_BLOB_UNKNOWN, "d"),
        ([("MANIFEST_BLOB_UNKNOWN", "d"), ("MANIFEST_BLOB_UNKNOWN", "e")], ErrorCode.MANIFEST_BLOB_UNKNOWN, ["d", "e"]),
        ([("MANIFEST_INVALID", None), ("NAME_INVALID", None)], ErrorCode.MANIFEST_INVALID, {"replica": "a"}),
        ([("UNKNOWN", {"why": "x"}), ("SIZE_INVALID", None)], ErrorCode.SIZE_INVALID, {"replica": "a"}),
        ([("UNKNOWN", {"why": "x"})], ErrorCode.UNKNOWN, {"why": "x"}),
        ([("VENDOR", "x")], ErrorCode.MANIFEST_INVALID, {"replica": "a"}),
        ([], ErrorCode.MANIFEST_INVALID, {"replica": "a"}),
    ],
)
def test_the_most_telling_error_is_kept(errors: list[tuple[str, object]], code: ErrorCode, detail: object) -> None:
    """A specific code comes before UNKNOWN, then one with a detail; details are never empty."""
    error = refusal("a", 400, body_of(*errors), ErrorCode.MANIFEST_INVALID)
    assert (error.code, error.detail) == (code, detail)


def test_a_missing_layer_beside_a_foreign_one_is_named(registries: list[Server], start_proxy: StartProxy) -> None:
    """The 400 has the digest of the layer that nobody pushed, not that of the one that lies elsewhere."""
    user = start_proxy(registries).add_user("ann", pull_push=["team/**"])
    plain = make_image(random_bytes(100))
    user.push("team/app", "plain", plain)
    document = json.loads(plain.manifest)
    foreign, missing = digest_of(b"foreign"), digest_of(b"missing")
    document["layers"] = [
        {"mediaType": FOREIGN, "digest": foreign, "size": 7, "urls": ["https://example.com/layer"]},
        {"mediaType": OCI_LAYER, "digest": missing, "size": 7},
    ]
    answer = user.push_manifest("team/app", "foreign", Image(json.dumps(document).encode(), {}))
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert (error["code"], error["detail"]) == ("MANIFEST_BLOB_UNKNOWN", missing)
