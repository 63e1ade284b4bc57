"""Third-party clients push, pull and copy through the product over plain HTTP, without a flag for it (issue A1)."""

from pathlib import Path

import pytest

from tests.acceptance.clients import Client
from tests.acceptance.layout import holds_image, write_layout
from tests.support.product import make_image, random_bytes, tar_of

pytestmark = pytest.mark.acceptance

PROGRAMS = [pytest.param(name, marks=pytest.mark.acceptance(name)) for name in ("crane", "oras", "regctl", "skopeo")]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_client_pulls_what_it_pushed(client: Client, tmp_path: Path) -> None:
    """An image that a client pushes and copies to another repository comes back with every byte."""
    image = make_image(tar_of(random_bytes(200_000)), tar_of(random_bytes(200_000)))
    repository = f"plain/{client.program}"
    client.push(write_layout(tmp_path / "in", image), f"{repository}:1")
    client.copy(f"{repository}:1", f"{repository}-copy:2")
    for number, name in enumerate((f"{repository}:1", f"{repository}-copy:2")):
        client.pull(name, tmp_path / f"out{number}")
        assert holds_image(tmp_path / f"out{number}", image)
