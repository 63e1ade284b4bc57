"""docker shows why a rule refuses an image, with a real chain of images built FROM each other."""

import io
import tarfile

from tests.clients.conftest import Docker
from tests.conftest import StartProxy, StartRegistry


def build(docker: Docker, name: str, dockerfile: str) -> None:
    """Build an image of a Dockerfile that needs one file beside it, whose content is the image's name."""
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for path, content in (("Dockerfile", dockerfile.encode()), ("file", name.encode())):
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    docker.run("build", "-q", "-t", name, "-", stdin=context.getvalue())


def test_docker_shows_which_floor_is_too_many(
    docker: Docker, start_proxy: StartProxy, start_registry: StartRegistry
) -> None:
    """System, middleware and application are pushed; the fourth image is refused at once, with floors and remedy."""
    proxy = start_proxy([start_registry()])
    proxy.add_user("ann", pull_push=["shop/**"])
    added = proxy.command("rule", "add", "floors", "shop/**", "--max-floors", "3", "--advice", "See the wiki.")
    assert added.exit_code == 0, added.output
    docker.login(proxy.host, "ann", "password of a user")
    below, images = "scratch", [f"{proxy.host}/shop/{name}:1" for name in ("system", "java", "app", "fourth")]
    for image in images:
        build(docker, image, f"FROM {below}\nCOPY file /{image[-8:]}\nLABEL on={below}\n".replace(":1\nL", "\nL"))
        below = image
    for image in images[:3]:
        docker.run("push", image)
    refused = docker.run("push", images[3], check=False)
    assert refused.returncode != 0
    assert "rule floors, max_floors: the image is floor 4" in refused.stdout
    assert refused.stdout.rstrip().endswith("See the wiki.")
    docker.forget(*images)
