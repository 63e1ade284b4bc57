"""A real Docker engine logs in, pushes and pulls; its output after a refusal is clear to a person."""

import concurrent.futures
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.clients.conftest import Docker
from tests.conftest import StartProxy
from tests.support.product import Proxy, random_bytes
from tests.support.servers import Server, wait_until


@pytest.fixture
def proxy(start_proxy: StartProxy, registries: list[Server]) -> Proxy:
    """Start a proxy in front of both registries."""
    return start_proxy(registries)


def test_push_and_pull_survive_the_loss_of_each_registry_and_cached_of_both(
    docker: Docker, proxy: Proxy, registries: list[Server]
) -> None:
    """A 3-layer image is pushed once and pulled by tag with one, the other, and (cached) both registries gone."""
    proxy.add_user("ann", pull_push=["team/**"])
    name = f"{proxy.host}/team/app:1"
    docker.build_image(name, *(random_bytes(300_000) for _ in range(3)))
    image_id = docker.image_id(name)
    assert "Login Succeeded" in docker.login(proxy.host, "ann", "password of a user").stdout
    docker.run("push", name)
    first, second = registries

    for gone, back in ((first, second), (second, first)):
        docker.forget(name)
        gone.stop()
        docker.run("pull", name)
        assert docker.image_id(name) == image_id
        gone.start()
        assert back.process is not None

    docker.forget(name)
    first.stop()
    second.stop()
    docker.run("pull", name)
    assert docker.image_id(name) == image_id
    assert proxy.metric("registry_proxy_cache_requests_total", kind="blob", result="hit") > 0


def test_pull_by_digest_and_a_second_push_work(docker: Docker, proxy: Proxy) -> None:
    """An image is pulled by its digest, and a second push of it uploads nothing."""
    proxy.add_user("ann", pull_push=["team/**"])
    name = f"{proxy.host}/team/app:1"
    docker.build_image(name, random_bytes(100_000), random_bytes(100_000))
    docker.login(proxy.host, "ann", "password of a user")
    pushed = docker.run("push", name).stdout
    digest = pushed.rpartition("digest: ")[2].split()[0]
    again = docker.run("push", name).stdout
    assert again.count("Layer already exists") == 2, again
    docker.forget(name)
    docker.run("pull", f"{proxy.host}/team/app@{digest}")


def test_a_layer_known_to_another_repository_is_mounted(docker: Docker, proxy: Proxy) -> None:
    """A push of the same layers to a second repository mounts them there; nothing is uploaded twice."""
    proxy.add_user("ann", pull_push=["team/**"])
    first, second = f"{proxy.host}/team/app:1", f"{proxy.host}/team/copy:1"
    docker.build_image(first, random_bytes(100_000))
    docker.run("tag", first, second)
    docker.login(proxy.host, "ann", "password of a user")
    docker.run("push", first)
    assert "Mounted from team/app" in docker.run("push", second).stdout
    docker.forget(first, second)
    docker.run("pull", second)


def test_a_wrong_password_is_reported_at_once(docker: Docker, proxy: Proxy) -> None:
    """Docker login with a wrong password fails with a clear message."""
    proxy.add_user("ann")
    refused = docker.login(proxy.host, "ann", "wrong", check=False)
    assert refused.returncode != 0
    assert "unauthorized" in refused.stdout, refused.stdout


def test_a_missing_right_is_reported_at_once(docker: Docker, proxy: Proxy) -> None:
    """A push and a pull without the right end with docker's "denied", without its 50 seconds of retries."""
    proxy.add_user("ann", pull_push=["team/**"])
    name = f"{proxy.host}/other/app:1"
    docker.build_image(name, random_bytes(1000))
    docker.login(proxy.host, "ann", "password of a user")
    for verb in ("push", "pull"):
        refused = docker.run(verb, name, check=False)
        assert refused.returncode != 0
        assert "denied" in refused.stdout, refused.stdout
        assert "Retrying" not in refused.stdout


def test_after_logout_nothing_is_allowed(docker: Docker, proxy: Proxy) -> None:
    """Docker logout removes the right to pull."""
    proxy.add_user("ann", pull_push=["team/**"])
    name = f"{proxy.host}/team/app:1"
    docker.build_image(name, random_bytes(1000))
    docker.login(proxy.host, "ann", "password of a user")
    docker.run("push", name)
    docker.run("logout", proxy.host)
    docker.forget(name)
    assert docker.run("pull", name, check=False).returncode != 0


def test_anonymous_pulls_what_everyone_may(docker: Docker, proxy: Proxy) -> None:
    """Without a login, docker pulls only repositories that are granted to anonymous."""
    proxy.add_user("ann", pull_push=["**"])
    public, private = f"{proxy.host}/public/app:1", f"{proxy.host}/private/app:1"
    docker.build_image(public, random_bytes(1000))
    docker.run("tag", public, private)
    docker.login(proxy.host, "ann", "password of a user")
    docker.run("push", public)
    docker.run("push", private)
    docker.run("logout", proxy.host)
    with proxy.admin() as admin:
        grant = {"subject": "anonymous", "repository": "public/**", "actions": ["pull"]}
        admin.post("/grants", json=grant).raise_for_status()
    docker.forget(public, private)
    docker.run("pull", public)
    assert docker.run("pull", private, check=False).returncode != 0


def test_a_new_image_is_pushed_while_a_registry_is_down(docker: Docker, proxy: Proxy, registries: list[Server]) -> None:
    """With one of two registries down, docker pushes and pulls an image that no registry had before."""
    proxy.add_user("ann", pull_push=["team/**"])
    name = f"{proxy.host}/team/new:1"
    docker.build_image(name, random_bytes(100_000))
    docker.login(proxy.host, "ann", "password of a user")
    registries[1].stop()
    pushed = docker.run("push", name).stdout
    assert "Retrying" not in pushed
    docker.forget(name)
    docker.run("pull", name)


def test_docker_gets_over_a_kill_in_mid_push_and_in_mid_pull(
    docker: Docker, proxy: Proxy, registries: list[Server]
) -> None:
    """Docker's own retries complete a push and a pull through a kill -9 of the whole service."""
    proxy.add_user("ann", pull_push=["team/**"])
    name = f"{proxy.host}/team/app:1"
    docker.build_image(name, random_bytes(64 << 20))
    image_id = docker.image_id(name)
    docker.login(proxy.host, "ann", "password of a user")

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for verb, folder in (("push", "spool"), ("pull", "fills")):
            if verb == "pull":
                docker.forget(name)
                proxy.stop()
                shutil.rmtree(proxy.cache)
                proxy.start()
            running = pool.submit(docker.run, verb, name)
            # A file of some MiB: docker is in the middle of the layer.
            wait_until(partial(holds_bytes, proxy.cache / folder, 2 << 20), f"the {verb} has begun")
            assert not running.done()
            proxy.kill_everything()
            proxy.start()
            running.result(timeout=90)
    assert docker.image_id(name) == image_id


def holds_bytes(folder: Path, size_bytes: int) -> bool:
    """Tell whether a directory holds a file of at least that size."""
    return any(file.stat().st_size >= size_bytes for file in folder.rglob("*.part"))
