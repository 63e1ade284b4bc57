"""containerd 2 pulls and pushes over plain HTTP on 127.0.0.1, without a flag for it.

Reports: "Head https://127.0.0.1:5000/…: EOF" from ctr, from BuildKit, from Docker with the image store of containerd.
They try https, and fall back to http only where an HTTP server answers the TLS hello (issue A1).
"""

import subprocess
from pathlib import Path

import pytest

from tests.acceptance.programs import find_program
from tests.support.product import Proxy, User, make_image, random_bytes, tar_of

pytestmark = pytest.mark.acceptance("containerd", "ctr")


def ctr(socket: Path, *arguments: str) -> str:
    """Run ctr and return its output; fail with the output when ctr fails."""
    command = [find_program("ctr") or "ctr", "--address", str(socket), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=90, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout}"
    return done.stdout


@pytest.mark.parametrize(
    "flags", [(), ("--local",), ("--local", "--skip-verify")], ids=["plain", "local", "skip-verify"]
)
def test_ctr_pulls_and_pushes(flags: tuple[str, ...], containerd: Path, product: Proxy) -> None:
    """An image is pulled and unpacked, and pushed to another repository, by containerd or, ``--local``, by ctr."""
    user, image = User(product, "ann", "password of a user"), make_image(tar_of(random_bytes(200_000)))
    user.push("plain/ctr", "1", image)
    source, target = f"{product.host}/plain/ctr:1", f"{product.host}/plain/ctr{''.join(flags)}:2"
    login = ("--user", "ann:password of a user")
    ctr(containerd, "images", "pull", *flags, *login, "--snapshotter", "native", source)
    ctr(containerd, "images", "tag", source, target)
    ctr(containerd, "images", "push", *flags, *login, target)
    assert user.pull(f"plain/ctr{''.join(flags)}", "2") == image
    ctr(containerd, "images", "remove", "--sync", source, target)


def test_ctr_fetches_the_content_only(containerd: Path, product: Proxy) -> None:
    """`ctr content fetch` brings every blob of an image."""
    user, image = User(product, "ann", "password of a user"), make_image(tar_of(random_bytes(200_000)))
    user.push("plain/fetch", "1", image)
    ctr(containerd, "content", "fetch", "--user", "ann:password of a user", f"{product.host}/plain/fetch:1")
    held = ctr(containerd, "content", "ls", "-q").split()
    assert {image.digest, *image.blobs} <= set(held)
