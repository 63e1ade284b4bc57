"""A client that withholds the rest of its requests delays no others: neither their answers nor health and admin.

The service runs with room for few open files, and so for few connections: hundreds do here what thousands do elsewhere.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.attack.withholding import (
    ADMIN_DOCUMENT,
    AT_REST,
    HALF_A_HEAD,
    NOTHING,
    TOKEN_FORM,
    UPLOAD,
    Withholding,
    withholding,
)
from tests.conftest import require_program
from tests.nginx.shipped import nginx_server
from tests.support.product import ADMIN_PASSWORD, Image, Proxy, User, make_image, proxy_server, random_bytes
from tests.support.servers import docker_registry, running, wait_until

FILES = 400
"""Open files of each process; half of them are for connections of clients."""

ROUNDS = 5


def start_service(stack: ExitStack, root: Path, files: int) -> tuple[Proxy, User, Image]:
    """Start a registry and the service before it, and push an image."""
    require_program("docker-registry")
    registry = stack.enter_context(running(docker_registry(root / "registry")))
    proxy = proxy_server(root / "proxy", [registry])
    proxy.arguments = [require_program("prlimit"), f"--nofile={files}:{files}", *proxy.arguments]
    stack.enter_context(running(proxy))
    user = proxy.add_user("ann", pull_push=["team/**"])
    image = make_image(random_bytes(100_000))
    user.push("team/app", "1", image)
    return proxy, user, image


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, User, Image]]:
    """Start the service with room for few connections."""
    with ExitStack() as stack:
        yield start_service(stack, tmp_path_factory.mktemp("service"), FILES)


def check_others(proxy: Proxy, user: User, image: Image, rounds: int, url: str | None = None) -> None:
    """Send every usual request of a client, each on a new connection; each is answered."""
    public, layer = url or proxy.url, max(image.blobs, key=lambda one: len(image.blobs[one]))
    form = {
        "grant_type": "password",
        "username": user.name,
        "password": user.password,
        "service": "x",
        "client_id": "x",
    }
    no_keep_alive = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(verify=False, timeout=30, limits=no_keep_alive) as client:
        for number in range(rounds):
            login = client.post(f"{public}/auth/token", data=form)
            basic = (user.name or "", user.password or "")
            scope = {"scope": "repository:team/app:pull"}
            token = client.get(f"{public}/auth/token", auth=basic, params=scope)
            bearer = {"Authorization": f"Bearer {token.json()['token']}"}
            answers = [login, token, client.get(f"{public}/healthz")]
            answers += [
                client.get(f"{public}/v2/team/app/{path}", headers=bearer) for path in ("manifests/1", f"blobs/{layer}")
            ]
            answers += [client.get(f"{proxy.admin_url}/{path}") for path in ("healthz", "metrics")]
            answers.append(client.get(f"{proxy.admin_url}/admin/v1/me", auth=("admin", ADMIN_PASSWORD)))
            assert [answer.status_code for answer in answers] == [200] * 8, f"round {number}"
            assert client.get(f"{proxy.admin_url}/readyz").status_code in {200, 503}


def readiness(proxy: Proxy) -> str:
    """Return the answer of /readyz."""
    return httpx.get(f"{proxy.admin_url}/readyz", verify=False).text


@pytest.mark.parametrize(
    "beginnings", [[TOKEN_FORM], [HALF_A_HEAD, NOTHING, UPLOAD]], ids=["forms", "heads and uploads"]
)
def test_one_address_that_withholds_takes_nothing_from_others(
    service: tuple[Proxy, User, Image], beginnings: Sequence[bytes]
) -> None:
    """One address opens more connections than there may be, and finishes no request: others notice nothing."""
    proxy, user, image = service
    with withholding([Withholding(proxy.port, "127.0.0.2", beginnings, FILES)]):
        check_others(proxy, user, image, ROUNDS)


def test_many_addresses_that_withhold_take_nothing_from_others(service: tuple[Proxy, User, Image]) -> None:
    """Each address has at most its share, together they have all connections; /readyz warns of it."""
    proxy, user, image = service
    kinds = [TOKEN_FORM, HALF_A_HEAD, NOTHING, UPLOAD, AT_REST]
    attacks = [Withholding(proxy.port, f"127.0.0.{number}", kinds, 25) for number in range(2, 14)]
    with withholding(attacks):
        wait_until(lambda: "connections" in readiness(proxy), "/readyz tells of it")
        check_others(proxy, user, image, ROUNDS)
    wait_until(lambda: "connections" not in readiness(proxy), "/readyz tells of it no more")


def test_the_admin_listener_is_not_held_either(service: tuple[Proxy, User, Image]) -> None:
    """Documents withheld from the admin listener delay no other client of it."""
    proxy, user, image = service
    with withholding([Withholding(proxy.admin_port, "127.0.0.2", [ADMIN_DOCUMENT, HALF_A_HEAD, NOTHING], FILES)]):
        check_others(proxy, user, image, 2)


def test_a_client_behind_the_shipped_nginx_takes_nothing_from_others(
    service: tuple[Proxy, User, Image], tmp_path: Path
) -> None:
    """Nginx bounds each address and passes the client's address on: others are served through it."""
    proxy, user, image = service
    require_program("nginx")
    with running(nginx_server(tmp_path / "nginx", None, proxy.port)) as nginx:
        attack = Withholding(nginx.port, "127.0.0.2", [TOKEN_FORM, UPLOAD], FILES)
        with withholding([attack]):
            check_others(proxy, user, image, 2, nginx.url)


@pytest.mark.soak
def test_thousands_of_withheld_bodies_take_nothing_from_others(tmp_path: Path) -> None:
    """8,192 forms from one address, and as many connections from sixteen, disturb no other client."""
    with ExitStack() as stack:
        proxy, user, image = start_service(stack, tmp_path, 20_000)
        with withholding([Withholding(proxy.port, "127.0.0.2", [TOKEN_FORM], 8192, 30)]):
            check_others(proxy, user, image, 20)
        kinds = [TOKEN_FORM, HALF_A_HEAD, UPLOAD, AT_REST]
        attacks = [Withholding(proxy.port, f"127.0.0.{number}", kinds, 550, 5) for number in range(2, 18)]
        with withholding(attacks):
            check_others(proxy, user, image, 20)
