"""Work with many images, or with an index made by hand, goes through the product as at a plain registry (issue A4).

Reports: `docker manifest create` that fails at a proxy; jobs that log in once and pull a hundred images.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.acceptance.conftest import LogIn
from tests.support.product import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Image,
    Proxy,
    User,
    make_image,
    random_bytes,
    tar_of,
)

pytestmark = pytest.mark.acceptance
_IMAGES = 100
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_PASSWORD = "password of a user"
_LOGIN = {
    "crane": ("auth", "login"),
    "docker": ("login",),
    "oras": ("login", "--plain-http"),
    "regctl": ("registry", "login"),
    "skopeo": ("login", "--tls-verify=false"),
}


@pytest.fixture(scope="module")
def images(product: Proxy) -> list[str]:
    """Push small images to a hundred repositories; return their names with the tag."""
    user = User(product, "ann", _PASSWORD)
    base = tar_of(random_bytes(1000))

    def push(number: int) -> str:
        user.push(f"many/app{number}", "1", make_image(base, label=str(number)))
        return f"many/app{number}:1"

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(push, range(_IMAGES)))


@pytest.mark.parametrize("program", [pytest.param(name, marks=pytest.mark.acceptance(name)) for name in _LOGIN])
def test_a_client_logs_in_with_the_right_password(program: str, log_in: LogIn) -> None:
    """Every client that verifies a login accepts the right password on standard input and refuses a wrong one."""
    client = log_in(program)
    command = (*_LOGIN[program], "-u", "ann", "--password-stdin" if program != "regctl" else "--pass-stdin")
    client.run(*command, client.host, stdin=_PASSWORD)
    if program != "crane":  # keeps what it is given
        assert client.attempt(*command, client.host, stdin="wrong").returncode != 0


@pytest.mark.acceptance("crane")
def test_crane_pulls_a_hundred_images_after_one_login(images: list[str], log_in: LogIn) -> None:
    """One crane process pulls a hundred images after one login."""
    client = log_in("crane")
    client.run("auth", "login", "-u", "ann", "--password-stdin", client.host, stdin=_PASSWORD)
    client.run("pull", "--format=oci", *map(client.name, images), "pulled")
    assert (client.home / "pulled" / "index.json").read_text().count('"digest"') == _IMAGES


@pytest.mark.acceptance("skopeo")
def test_skopeo_pulls_a_hundred_images_after_one_login(images: list[str], log_in: LogIn) -> None:
    """One skopeo process pulls a hundred images after one login."""
    client = log_in("skopeo")
    client.run("login", "--tls-verify=false", "-u", "ann", "--password-stdin", client.host, stdin=_PASSWORD)
    names = "".join(f"    {name.partition(':')[0]}: ['1']\n" for name in images)
    (client.home / "sync.yaml").write_text(f"{client.host}:\n  tls-verify: false\n  images:\n{names}")
    client.run("sync", "--src", "yaml", "--dest", "dir", "sync.yaml", "pulled")
    assert len(list((client.home / "pulled").glob("**/manifest.json"))) == _IMAGES


def docker_image() -> Image:
    """Return a small image in Docker's media types: the docker of Debian 12 builds indexes of no others."""
    image = make_image(tar_of(random_bytes(1000)))
    media_types = {
        OCI_MANIFEST: _DOCKER_MANIFEST,
        OCI_CONFIG: "application/vnd.docker.container.image.v1+json",
        OCI_LAYER: "application/vnd.docker.image.rootfs.diff.tar",
    }
    manifest = image.manifest.decode()
    for old, new in media_types.items():
        manifest = manifest.replace(f'"{old}"', f'"{new}"')
    return Image(manifest.encode(), image.blobs, _DOCKER_MANIFEST)


@pytest.mark.acceptance("docker")
def test_docker_makes_an_index_by_hand(log_in: LogIn, product: Proxy) -> None:
    """`docker manifest create`, `push` and `inspect` make an index of two images, which is served."""
    client, user = log_in("docker"), User(product, "ann", _PASSWORD)
    images = [docker_image() for _ in range(2)]
    for number, image in enumerate(images):
        user.push("plain/by-hand", str(number), image)
    names = [client.name(f"plain/by-hand:{tag}") for tag in ("index", "0", "1")]
    client.run("manifest", "create", "--insecure", *names)
    client.run("manifest", "push", "--insecure", names[0])
    inspected = client.run("manifest", "inspect", "--insecure", names[0])
    served = user.get("plain/by-hand", "manifests/index", Accept="*/*")
    for image in images:
        assert image.digest in inspected
        assert image.digest in served.text
