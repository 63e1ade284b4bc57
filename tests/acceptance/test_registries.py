"""Third-party registries as the only replica of an upstream: clients use them through the product as they do directly.

Reports: registries that answer errors as plain text (olareg, the registry of crane, ko), that keep equal blobs of all
repositories once (zot), that delete a tag or only manifests (issue B9, B10, B11).
"""

from pathlib import Path

import pytest

from tests.acceptance.conftest import LogIn
from tests.acceptance.layout import holds_image, make_index, write_layout
from tests.acceptance.registries import DESCRIBE
from tests.support.product import Image, make_image, random_bytes, tar_of

pytestmark = pytest.mark.acceptance("crane")


def needs(kind: str) -> pytest.MarkDecorator:
    """Mark tests that need a registry; "main" stands for two of Debian's."""
    return pytest.mark.acceptance(*([] if kind == "main" else [kind.rstrip("s")]))


KINDS = [pytest.param(kind, marks=needs(kind)) for kind in ("main", *DESCRIBE)]
CLIENTS = [pytest.param(name, marks=pytest.mark.acceptance(name)) for name in ("crane", "oras", "regctl", "skopeo")]


def new_image() -> Image:
    """Return an image of two layers that no registry holds yet."""
    return make_image(tar_of(random_bytes(50_000)), tar_of(random_bytes(50_000)))


@pytest.mark.acceptance("regctl")
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_comes_back(kind: str, log_in: LogIn, tmp_path: Path) -> None:
    """An index of two images is pushed, and pulled with all that it names."""
    client, index = log_in("regctl"), make_index(new_image(), new_image())
    client.push(write_layout(tmp_path / "in", index), f"{kind}/index:1")
    client.pull(f"{kind}/index:1", tmp_path / "out")
    assert holds_image(tmp_path / "out", index)


@pytest.mark.acceptance("oras")
@pytest.mark.parametrize("kind", KINDS)
def test_an_artifact_comes_back(kind: str, log_in: LogIn) -> None:
    """A file is pushed as an artifact, without an image's config, and pulled by tag."""
    client, content = log_in("oras"), random_bytes(20_000)
    (client.home / "words.txt").write_bytes(content)
    name = client.name(f"{kind}/artifact:1")
    client.run("push", "--plain-http", "--artifact-type", "application/vnd.example", name, "words.txt:text/plain")
    client.run("pull", "--plain-http", "-o", "pulled", name)
    assert (client.home / "pulled" / "words.txt").read_bytes() == content


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_tag_goes_alone(kind: str, log_in: LogIn, tmp_path: Path) -> None:
    """`crane delete REPO:TAG` removes one of two tags of an image; the other tag and the digest are still pulled."""
    client, image, repository = log_in("crane"), new_image(), f"{kind}/deletes"
    layout = write_layout(tmp_path / "in", image)
    for tag in ("gone", "stays"):
        client.push(layout, f"{repository}:{tag}")
    assert client.run("ls", client.name(repository)).split() == ["gone", "stays"]
    if kind != "olareg":  # which lists no repositories
        assert repository in client.run("catalog", client.host).split()

    client.run("delete", client.name(f"{repository}:gone"))

    assert client.run("ls", client.name(repository)).split() == ["stays"]
    assert client.attempt("manifest", client.name(f"{repository}:gone")).returncode != 0
    for number, reference in enumerate((":stays", f"@{image.digest}")):
        client.pull(repository + reference, tmp_path / str(number))
        assert holds_image(tmp_path / str(number), image)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_digest_takes_its_tags(kind: str, log_in: LogIn, tmp_path: Path) -> None:
    """`crane delete REPO@DIGEST` removes the image and every tag on it."""
    client, image, repository = log_in("crane"), new_image(), f"{kind}/digests"
    client.push(write_layout(tmp_path / "in", image), f"{repository}:1")
    client.run("delete", client.name(f"{repository}@{image.digest}"))
    for reference in (":1", f"@{image.digest}"):
        assert "MANIFEST_UNKNOWN" in client.attempt("manifest", client.name(repository + reference)).stdout


@pytest.mark.parametrize("program", CLIENTS)
@pytest.mark.parametrize("kind", [*KINDS, pytest.param("zots", marks=needs("zots"))])
def test_layers_of_another_repository_are_pushed(kind: str, program: str, log_in: LogIn, tmp_path: Path) -> None:
    """An image is copied between repositories, and one with a layer of another repository is pushed; both come back."""
    client, base = log_in(program), tar_of(random_bytes(50_000))
    first, second = make_image(base), make_image(base, tar_of(random_bytes(50_000)))
    prefix = f"{kind}/{program}"
    client.push(write_layout(tmp_path / "first", first), f"{prefix}/first:1")
    client.copy(f"{prefix}/first:1", f"{prefix}/copy:1")
    client.push(write_layout(tmp_path / "second", second), f"{prefix}/second:1")
    for name, image in (("first", first), ("copy", first), ("second", second)):
        client.pull(f"{prefix}/{name}:1", tmp_path / f"out-{name}")
        assert holds_image(tmp_path / f"out-{name}", image)
