"""Images under sha512, made by regctl, before registries that know manifests by sha256 alone and others."""

from pathlib import Path

import pytest

from tests.acceptance.conftest import LogIn
from tests.acceptance.layout import make_index, write_layout
from tests.acceptance.test_registries import new_image

pytestmark = pytest.mark.acceptance("regctl")


def needs(kind: str) -> pytest.MarkDecorator:
    """Mark tests that need a registry; "main" stands for two of Debian's."""
    return pytest.mark.acceptance(*([] if kind == "main" else [kind]))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=needs(kind)) for kind in ("main", "distribution", "olareg")])
def test_regctl_makes_an_image_of_two_platforms_one_in_sha512(kind: str, log_in: LogIn, tmp_path: Path) -> None:
    """The index, its images and their blobs are named by sha512, and copied from repository to repository as such."""
    client = log_in("regctl")
    old, new, copy = (client.name(f"{kind}/{name}:1") for name in ("short", "long", "copied"))

    def digest(name: str, *options: str) -> str:
        return client.run("image", "digest", *options, name).split()[-1]

    client.push(write_layout(tmp_path / "in", make_index(new_image(), new_image())), f"{kind}/short:1")
    client.run("image", "mod", old, "--digest-algo", "sha512", "--create", new)
    client.run("image", "copy", new, copy)
    for name in (new, copy):
        assert digest(name).startswith("sha512:")
        assert digest(name, "--platform", "linux/arm64").startswith("sha512:")
        assert "sha256:" not in client.run("manifest", "get", "--format", "raw-body", name)
        assert client.run("tag", "ls", name.rpartition(":")[0]).split()[-1:] == ["1"]
    client.run("tag", "delete", new)
    assert client.attempt("manifest", "head", new).returncode != 0
    assert digest(copy).startswith("sha512:")
    client.run("image", "copy", copy, f"ocidir://{tmp_path / 'out'}:1")
