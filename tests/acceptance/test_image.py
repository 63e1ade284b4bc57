"""The container image: small, without rights, on a read-only root, and a good process 1."""

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.roots import IMAGE, SMALL_IMAGE
from tests.clients.conftest import Docker
from tests.support.product import ADMIN_PASSWORD, Proxy, digest_of, random_bytes
from tests.support.servers import docker_registry, free_port, running, wait_until

pytestmark = [pytest.mark.acceptance("docker"), pytest.mark.timeout(900)]
_MAX_BYTES = 250_000_000
_ORPHAN = """
import os
if os.fork() == 0:
    os.setsid()
    os._exit(0 if os.fork() else 7)
os.wait()
"""
_PARENTS = """
import glob
print(*(open(each).read().split(")")[1].split()[0] for each in glob.glob("/proc/[0-9]*/stat")))
"""


def test_the_image_is_small_and_has_no_rights(engine: Docker) -> None:
    """It takes 250 MB on a minimal Debian, 150 without a shell; its user is a number, and its labels say what it is."""
    [image] = json.loads(engine.run("image", "inspect", IMAGE).stdout)
    config = image["Config"]
    print(f"{image['Size'] / 1e6:.0f} MB")
    assert image["Size"] <= _MAX_BYTES
    assert (config["User"], config["StopSignal"]) == ("10001:10001", "SIGTERM")
    assert config["Healthcheck"]["Test"][0] == "CMD"
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert (labels["title"], labels["version"], labels["licenses"]) == ("registry-proxy", "1.2.3", "Apache-2.0")
    assert labels["base.name"] == "debian:minimal"

    [small] = json.loads(engine.run("image", "inspect", SMALL_IMAGE).stdout)
    print(f"without a shell: {small['Size'] / 1e6:.0f} MB")
    assert small["Size"] <= 0.6 * _MAX_BYTES
    assert engine.run("run", "--rm", "--entrypoint", "/bin/sh", SMALL_IMAGE, "-c", "true", check=False).returncode != 0
    checked = engine.run(
        "run", "--rm", "--network=none", SMALL_IMAGE, "check-config", "/etc/registry-proxy/config.yaml"
    )
    assert checked.stdout == "OK\n"


@pytest.fixture
def contained(engine: Docker, tmp_path: Path) -> Iterator[Proxy]:
    """Run the image without a shell, on a read-only root and without capabilities; return the product in it."""
    registry = docker_registry(tmp_path / "registry")
    proxy = Proxy([], free_port(), tmp_path / "log", admin_port=free_port())
    replicas = json.dumps([{"url": registry.url}])
    settings = {"LISTEN": proxy.host, "ADMIN_LISTEN": f"127.0.0.1:{proxy.admin_port}"}
    variables = [f"REGISTRY_PROXY__{name}={value}" for name, value in settings.items()]
    variables += [f"REGISTRY_PROXY__UPSTREAMS__MAIN__REPLICAS={replicas}"]
    variables += [f"REGISTRY_PROXY_ADMIN_PASSWORD={ADMIN_PASSWORD}"]
    options = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=host"]
    environment = [word for variable in variables for word in ("-e", variable)]
    with running(registry):
        engine.run("run", "-d", "--name", "proxy", *options, *environment, SMALL_IMAGE)
        try:
            wait_until(lambda: "is ready: " in engine.run("logs", "proxy").stdout, "the container is ready")
            yield proxy
        finally:
            print(engine.run("logs", "proxy").stdout[-3000:])
            engine.run("rm", "-f", "-v", "proxy")


def test_the_service_runs_in_a_container(contained: Proxy, engine: Docker) -> None:
    """Docker pushes to the container and pulls from it, and it reaps the orphans of the processes in it."""
    user = contained.add_user("ann", pull_push=["**"])
    name = f"{contained.host}/team/app:1"
    engine.build_image(name, random_bytes(200_000))
    engine.login(contained.host, "ann", user.password or "")
    engine.run("push", name)
    pushed = engine.image_id(name)
    engine.run("image", "rm", name)
    engine.run("pull", name)
    assert engine.image_id(name) == pushed

    engine.run("exec", "proxy", "python", "-c", _ORPHAN)
    python = ("exec", "proxy", "python", "-c", _PARENTS)
    wait_until(lambda: "Z" not in engine.run(*python).stdout, "the orphan is reaped")
    variables = ["-e", f"REGISTRY_PROXY_ADMIN_URL={contained.admin_url}", "-e", "REGISTRY_PROXY_ADMIN_USER=admin"]
    assert "user:admin" in engine.run("exec", *variables, "proxy", "registry-proxy", "whoami").stdout


def test_a_stop_of_the_container_drains_it(contained: Proxy, engine: Docker) -> None:
    """`docker stop` lets a pull come to its end, and the container ends with status 0."""
    user = contained.add_user("ann", pull_push=["**"])
    content = random_bytes(40_000_000)
    assert user.push_blob("team/app", content).status_code == 201
    stopping = threading.Thread(target=engine.run, args=("stop", "-t", "30", "proxy"))
    with user.client("team/app") as client, client.stream("GET", f"/blobs/{digest_of(content)}") as answer:
        stopping.start()
        wait_until(lambda: _refuses(contained), "the container accepts no more connections")
        received = hashlib.sha256(b"".join(answer.iter_raw())).hexdigest()
    stopping.join()
    assert digest_of(content) == f"sha256:{received}"
    assert engine.run("inspect", "-f", "{{.State.ExitCode}}", "proxy").stdout.strip() == "0"


def _refuses(proxy: Proxy) -> bool:
    try:
        httpx.get(f"{proxy.url}/healthz")
    except httpx.ConnectError:
        return True
    return False
