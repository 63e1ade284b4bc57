"""A real Docker engine, shared by the tests of this folder."""

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import require_program
from tests.support.servers import terminated


@dataclass
class Docker:
    """The docker command line with a separate engine; ``home`` keeps its logins."""

    socket: Path
    home: Path

    def run(
        self, *arguments: str, stdin: bytes | None = None, check: bool = True, seconds: float = 90
    ) -> "subprocess.CompletedProcess[str]":
        """Run a docker command; with ``check`` a failure raises with the output. ``seconds`` limit it."""
        command = ["docker", "-H", f"unix://{self.socket}", "--config", str(self.home), *arguments]
        environment = {**os.environ, "DOCKER_BUILDKIT": "0"}
        done = subprocess.run(
            command,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=seconds,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{output}")
        return subprocess.CompletedProcess(command, done.returncode, output)

    def login(self, host: str, user: str, password: str, *, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Log in with the password on standard input."""
        return self.run("login", "-u", user, "--password-stdin", host, stdin=password.encode(), check=check)

    def build_image(self, name: str, *layers: bytes) -> None:
        """Build an image with one file per layer."""
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            lines = ["FROM scratch"]
            for i, layer in enumerate(layers):
                member = tarfile.TarInfo(f"layer{i}")
                member.size = len(layer)
                tar.addfile(member, io.BytesIO(layer))
                lines.append(f"COPY layer{i} /layer{i}")
            dockerfile = "\n".join([*lines, 'CMD ["/layer0"]']).encode()
            member = tarfile.TarInfo("Dockerfile")
            member.size = len(dockerfile)
            tar.addfile(member, io.BytesIO(dockerfile))
        self.run("build", "-q", "-t", name, "-", stdin=context.getvalue())

    def image_id(self, name: str) -> str:
        """Return the content id of a local image."""
        inspected = json.loads(self.run("image", "inspect", name).stdout)
        return str(inspected[0]["Id"])

    def forget(self, *names: str) -> None:
        """Remove local images, so that a pull fetches everything again."""
        self.run("image", "rm", "-f", *names)
        self.run("image", "prune", "-a", "-f")


@pytest.fixture(scope="session")
def docker_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start a separate Docker engine, without network and iptables."""
    require_program("dockerd")
    if os.geteuid() != 0:
        pytest.skip("a Docker engine needs root")
    root = tmp_path_factory.mktemp("docker")
    socket = root / "docker.sock"
    command = [
        "dockerd",
        "--data-root",
        str(root / "data"),
        "--exec-root",
        str(root / "exec"),
        "-H",
        f"unix://{socket}",
    ]
    command += ["--iptables=false", "--bridge=none", "--pidfile", str(root / "pid")]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    with terminated(process):
        deadline = time.monotonic() + 30
        ready = ["docker", "-H", f"unix://{socket}", "version"]
        while subprocess.run(ready, capture_output=True, check=False).returncode != 0:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((root / "log").read_text()[-3000:])
            time.sleep(0.1)
        yield socket
    for mount in root.glob("exec/netns/*"):  # of containers that share the network
        subprocess.run(["umount", str(mount)], stderr=subprocess.DEVNULL, check=False)


@pytest.fixture
def docker(docker_socket: Path, tmp_path: Path) -> Docker:
    """Return a docker command line that is logged in nowhere."""
    home = tmp_path / "docker-home"
    home.mkdir()
    return Docker(docker_socket, home)
