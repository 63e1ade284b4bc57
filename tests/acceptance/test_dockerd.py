"""Docker with the image store of containerd, the default of current releases, pushes and pulls over plain HTTP (A1)."""

import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.layout import write_layout
from tests.acceptance.programs import find_program
from tests.clients.conftest import Docker
from tests.support.product import Proxy, User, make_image, random_bytes, tar_of
from tests.support.servers import terminated, wait_until

pytestmark = pytest.mark.acceptance("containerd", "docker", "dockerd")


@pytest.fixture
def docker(containerd: Path, tmp_path: Path) -> Iterator[Docker]:
    """Start a current dockerd without network; return the docker command line for it."""
    docker = Docker(tmp_path / "socket", tmp_path / "home")
    docker.home.mkdir()
    command = [find_program("dockerd") or "dockerd", "--containerd", str(containerd), "-H", f"unix://{docker.socket}"]
    command += ["--data-root", str(tmp_path / "data"), "--exec-root", str(tmp_path / "exec")]
    command += ["--pidfile", str(tmp_path / "pid"), "--storage-driver", "native"]
    command += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PATH": _path()})
    with terminated(process):
        wait_until(lambda: docker.run("version", check=False).returncode == 0, "dockerd answers")
        yield docker


def _path() -> str:
    """Return the search path of dockerd: Debian's runc is in /usr/sbin."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def test_docker_pushes_and_pulls(docker: Docker, product: Proxy, tmp_path: Path) -> None:
    """An image is loaded, pushed, removed and pulled again; a wrong password and a missing right are reported."""
    image, name = (
        make_image(tar_of(random_bytes(200_000)), tar_of(random_bytes(1000))),
        f"{product.host}/plain/docker:1",
    )
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        for entry in sorted(write_layout(tmp_path / "layout", image).iterdir()):
            tar.add(entry, entry.name)
    docker.run("load", "-i", str(tmp_path / "image.tar"))
    docker.run("tag", image.digest, name)
    assert docker.login(product.host, "ann", "wrong", check=False).returncode != 0
    docker.login(product.host, "ann", "password of a user")
    docker.run("push", name)
    assert User(product, "ann", "password of a user").pull("plain/docker", "1") == image

    docker.run("image", "rm", "-f", name)
    docker.run("pull", name)
    assert docker.image_id(name) == image.digest
    docker.run("logout", product.host)
    refused = docker.run("pull", name, check=False)
    assert refused.returncode != 0
    assert "denied" in refused.stdout or "authorization" in refused.stdout, refused.stdout
