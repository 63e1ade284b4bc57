"""Both listeners with TLS: pushes, pulls, the admin API, an exchanged certificate."""

import os
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry, make_certificate
from tests.support.product import ADMIN_PASSWORD, Proxy, User, make_image, push_directly, random_bytes, tar_of
from tests.support.servers import Server, wait_until

REPOSITORY = "team/app"


class Secured:
    """A proxy whose listeners speak TLS, and a client that trusts it."""

    def __init__(self, proxy: Proxy, registry: Server, ca_file: Path) -> None:
        self.proxy = proxy
        self.registry = registry
        self.ca_file = ca_file
        self.url = f"https://127.0.0.1:{proxy.port}"
        self.admin_url = f"https://127.0.0.1:{proxy.admin_port}"
        self.context = ssl.create_default_context(cafile=ca_file)
        with httpx.Client(base_url=f"{self.admin_url}/admin/v1", auth=("admin", ADMIN_PASSWORD), verify=False) as admin:
            admin.put("/users/ann", json={"password": "password of a user"}).raise_for_status()
            grant = {"subject": "user:ann", "repository": "team/**", "actions": ["pull", "push"]}
            admin.post("/grants", json=grant).raise_for_status()
        self.user = User(proxy, "ann", "password of a user", url=self.url)

    def serial(self) -> int:
        """Return the serial number of the certificate on a new connection."""
        with socket.create_connection(("127.0.0.1", self.proxy.port)) as plain:
            unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
            with unverified.wrap_socket(plain) as secured:
                return hash(secured.getpeercert(binary_form=True))


@pytest.fixture
def secured(start_registry: StartRegistry, start_proxy: StartProxy, certificate: Path) -> Secured:
    """Start a proxy with TLS on both listeners in front of one registry."""
    tls: dict[str, Any] = {"cert_file": str(certificate), "key_file": str(certificate.with_name("key.pem"))}
    registry = start_registry("first")
    return Secured(start_proxy([registry], {"tls": tls, "admin_tls": tls}), registry, certificate)


def test_everything_goes_over_tls(secured: Secured) -> None:
    """Push, pull, ranges, the challenge and the commands work over verified TLS; plain HTTP gets a 400 that says so."""
    user, proxy = secured.user, secured.proxy
    large = tar_of(random_bytes(9_000_000))
    image = make_image(tar_of(b"small"), large)
    user.push(REPOSITORY, "v1", image)
    assert user.pull(REPOSITORY, "v1").blobs == image.blobs
    digest = next(digest for digest, blob in image.blobs.items() if blob == large)
    part = user.get(REPOSITORY, f"blobs/{digest}", Range="bytes=5000000-8999999")
    assert (part.status_code, part.content) == (206, large[5_000_000:9_000_000])
    pull_cold(secured)

    with httpx.Client(verify=secured.context) as client:
        challenge = client.get(f"{secured.url}/v2/").headers["WWW-Authenticate"]
        assert f'realm="{secured.url}/auth/token"' in challenge
        assert client.get(f"{secured.admin_url}/readyz").status_code == 200
        expiry = [line for line in client.get(f"{secured.admin_url}/metrics").text.splitlines() if "expires" in line]
        assert {'listener="public"', 'listener="admin"'} == {
            part for line in expiry for part in ('listener="public"', 'listener="admin"') if part in line
        }
    for port in (proxy.port, proxy.admin_port):
        answer = httpx.get(f"http://127.0.0.1:{port}/healthz")
        assert answer.status_code == 400
        assert "https://" in answer.json()["errors"][0]["message"]
    assert "is ready: https://" in proxy.log_text()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Proxy, "admin_url", secured.admin_url)
        refused = proxy.command("user", "list")
        assert refused.exit_code != 0
        assert "REGISTRY_PROXY_ADMIN_CA_FILE" in refused.stderr
        patch.setattr(Proxy, "admin_url", f"http://127.0.0.1:{proxy.admin_port}")
        assert "use https:// for it" in proxy.command("user", "list").stderr
        patch.setattr(Proxy, "admin_url", secured.admin_url)
        patch.setenv("REGISTRY_PROXY_ADMIN_CA_FILE", str(secured.ca_file))
        assert "ann" in proxy.command("user", "list").stdout


def pull_cold(secured: Secured) -> None:
    """Pull a large image that only the registry has, twice at once, and compare every byte."""
    image = make_image(tar_of(random_bytes(20_000_000)))
    push_directly(secured.registry, REPOSITORY, "cold", image)
    secured.user.token(f"repository:{REPOSITORY}:pull")
    with ThreadPoolExecutor(2) as pool:
        pulled = list(pool.map(lambda _: secured.user.pull(REPOSITORY, "cold").blobs == image.blobs, range(2)))
    assert pulled == [True, True]


def test_a_certificate_is_exchanged_without_a_failed_request(secured: Secured) -> None:
    """Under load, new connections get the new certificate soon; files that do not match change nothing."""
    secured.user.push(REPOSITORY, "v1", make_image(tar_of(b"one")))
    failed: list[object] = []
    stop = threading.Event()

    def pull() -> None:
        while not stop.is_set():
            try:
                secured.user.pull(REPOSITORY, "v1")
            except (httpx.HTTPError, AssertionError) as error:
                failed.append(error)

    puller = threading.Thread(target=pull)
    puller.start()
    try:
        before = secured.serial()
        key = secured.ca_file.with_name("key.pem")
        fresh, fresh_key = secured.ca_file.with_name("new.pem"), secured.ca_file.with_name("newkey.pem")
        make_certificate(fresh, fresh_key)
        os.replace(fresh, secured.ca_file)
        wait_until(lambda: "the certificate was not exchanged" in secured.proxy.log_text(), "the fault is in the log")
        assert secured.serial() == before
        os.replace(fresh_key, key)
        wait_until(lambda: secured.serial() != before, "the new certificate is in use")
    finally:
        stop.set()
        puller.join(60)
    assert failed == []


def test_a_client_without_a_certificate_is_refused(
    start_registry: StartRegistry, start_proxy: StartProxy, certificate: Path
) -> None:
    """With `client_ca_file` the admin listener answers only clients with a certificate of that authority."""
    key = certificate.with_name("key.pem")
    tls = {"cert_file": str(certificate), "key_file": str(key), "client_ca_file": str(certificate)}
    proxy = start_proxy([start_registry("first")], {"admin_tls": tls, "admin_insecure": False})
    url = f"https://127.0.0.1:{proxy.admin_port}/healthz"
    with httpx.Client(verify=False) as stranger, pytest.raises(httpx.HTTPError):
        stranger.get(url)
    context = ssl.create_default_context(cafile=certificate)
    context.load_cert_chain(certificate, key)
    with httpx.Client(verify=context) as known:
        assert known.get(url).status_code == 200
