"""Docker's engine and containerd trust the authority of `make run TLS=1`, without an insecure setting."""

import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from scripts.authority import make_certificate
from tests.acceptance.test_containerd import ctr
from tests.clients.conftest import Docker
from tests.support.copied import Copies
from tests.support.product import Proxy, User, make_image, proxy_server, random_bytes, tar_of
from tests.support.servers import docker_registry, running

_PASSWORD = "password of a user"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Make an authority and a certificate as `make run TLS=1` does; return authority, certificate and key."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "127.0.0.1")


@pytest.fixture(scope="module")
def encrypted(
    authority: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory, copies: Copies
) -> Iterator[Proxy]:
    """Start the product with TLS of its own; ann may do everything."""
    root = tmp_path_factory.mktemp("encrypted")
    registry = docker_registry(root / "registry")
    _, certificate, key = authority
    settings = {"tls": {"cert_file": str(certificate), "key_file": str(key)}}
    proxy = proxy_server(root / "proxy", [registry], settings, copies=copies)
    with running(registry), running(proxy):
        proxy.add_user("ann", pull_push_delete=["**"])
        yield proxy


@pytest.fixture
def trusted(encrypted: Proxy, authority: tuple[Path, Path, Path]) -> Iterator[Path]:
    """Have Docker trust the authority for the product alone, by the line that `make run TLS=1` prints."""
    folder = Path("/etc/docker/certs.d", encrypted.host)
    folder.mkdir(parents=True)
    shutil.copy(authority[0], folder / "ca.crt")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.acceptance("docker")
def test_docker_pushes_and_pulls_over_tls(docker_socket: Path, encrypted: Proxy, trusted: Path, tmp_path: Path) -> None:
    """Docker refuses the certificate without the authority; with it, it logs in, pushes and pulls."""
    docker, name = Docker(docker_socket, tmp_path / "home"), f"{encrypted.host}/tls/docker:1"
    docker.home.mkdir()
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(encrypted)
    docker.build_image(name, random_bytes(200_000))
    docker.login(encrypted.host, "ann", _PASSWORD)
    docker.run("push", name)
    pushed = docker.image_id(name)
    docker.run("image", "rm", name)
    docker.run("pull", name)
    assert docker.image_id(name) == pushed


def _handshake(proxy: Proxy) -> None:
    """Ask as a client does that trusts the machine's authorities alone; raise the cause of its error."""
    try:
        httpx.get(f"https://{proxy.host}/v2/")
    except httpx.ConnectError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLError):
            cause = cause.__cause__ or cause.__context__
        raise cause or error from None


@pytest.mark.acceptance("containerd", "ctr")
def test_containerd_pulls_and_pushes_over_tls(
    containerd: Path, encrypted: Proxy, authority: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """With the `hosts.toml` of docs/install.md, containerd trusts the authority, pulls and pushes."""
    page = (Path(__file__).parent.parent.parent / "docs" / "install.md").read_text()
    [hosts, *_] = (block.partition("```")[0] for block in page.split("```toml\n")[1:])
    folder = tmp_path / "certs.d" / encrypted.host
    folder.mkdir(parents=True)
    shutil.copy(authority[0], folder / "ca.crt")
    hosts = hosts.replace("/etc/containerd/certs.d/registry.example.com:5000", str(folder))
    (folder / "hosts.toml").write_text(hosts.replace("registry.example.com:5000", encrypted.host))

    user = User(encrypted, "ann", _PASSWORD, f"https://{encrypted.host}")
    image = make_image(tar_of(random_bytes(200_000)))
    user.push("tls/ctr", "1", image)
    source, target = f"{encrypted.host}/tls/ctr:1", f"{encrypted.host}/tls/ctr:2"
    login = ("--user", f"ann:{_PASSWORD}", "--hosts-dir", str(folder.parent))
    ctr(containerd, "images", "pull", *login, "--snapshotter", "native", source)
    ctr(containerd, "images", "tag", source, target)
    ctr(containerd, "images", "push", *login, target)
    assert user.pull("tls/ctr", "2") == image
    ctr(containerd, "images", "remove", "--sync", source, target)
