"""Signatures and artifacts are the same through the product and at each registry, whichever way they were pushed.

Reports: signatures that lie in a registry and vanish behind a proxy; `oras discover` shows nothing, with exit status 0.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.clients import Client
from tests.support.copied import Copies
from tests.support.product import Proxy, make_image, proxy_server, push_directly, random_bytes, tar_of
from tests.support.servers import Server, docker_registry, running

pytestmark = pytest.mark.acceptance
REPOSITORY = "team/app"
SBOM = "application/vnd.example.sbom"


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Start two registries without the referrers API."""
    root = tmp_path_factory.mktemp("registries")
    with ExitStack() as stack:
        yield [stack.enter_context(running(docker_registry(root / name))) for name in ("first", "second")]


@pytest.fixture(scope="module")
def proxy(registries: list[Server], tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[Proxy]:
    """Start the product before both."""
    proxy = proxy_server(tmp_path_factory.mktemp("proxy"), registries, copies=copies)
    with running(proxy):
        proxy.add_user("ann", pull_push_delete=["**"])
        yield proxy


At = Callable[[str], str]


@pytest.fixture
def subject(registries: list[Server]) -> At:
    """Push a new image to both registries past the product; return its name at a host."""
    image = make_image(tar_of(random_bytes(2000)))
    for server in registries:
        push_directly(server, REPOSITORY, "1", image)
    return lambda host: f"{host}/{REPOSITORY}@{image.digest}"


class Ways:
    """The same client at the product and at both registries; ``home`` is one client, with its keys."""

    def __init__(self, program: str, home: Path, proxy: Proxy, registries: list[Server]) -> None:
        self.client = Client(program, home, proxy.host)
        self.client.log_in("ann", "password of a user")
        self.through = proxy.host
        self.past = [f"127.0.0.1:{server.port}" for server in registries]
        if program == "regctl":
            for host in self.past:
                self.client.run("registry", "set", "--skip-check", "--tls", "disabled", host)

    @property
    def everywhere(self) -> list[str]:
        return [self.through, *self.past]


@pytest.fixture
def ways(request: pytest.FixtureRequest, proxy: Proxy, registries: list[Server], tmp_path: Path) -> Ways:
    """Give the client named by the first mark of the test."""
    (program,) = request.node.get_closest_marker("acceptance").args
    return Ways(program, tmp_path / "home", proxy, registries)


@pytest.mark.acceptance("oras")
def test_oras_discovers_the_same_everywhere(ways: Ways, subject: At) -> None:
    """Two artifacts attached past the proxy and one attached through it are listed at each place."""
    client = ways.client
    for number, host in enumerate([*ways.past, ways.through]):
        kind = f"{SBOM}.{'past' if host in ways.past else 'through'}"
        (client.home / "file").write_text("past" if number < 2 else "through")
        options = ("--artifact-type", kind, "--annotation", "org.opencontainers.image.created=2026-01-01T00:00:00Z")
        client.run("attach", "--plain-http", *options, subject(host), "file:text/plain")
    for host in ways.everywhere:
        shown = client.run("discover", "--plain-http", subject(host))
        assert f"{SBOM}.past" in shown, host
        assert f"{SBOM}.through" in shown, host


@pytest.mark.acceptance("notation")
def test_notation_verifies_the_same_everywhere(ways: Ways, subject: At) -> None:
    """A signature made at one registry is good through the proxy, and one made through the proxy at each registry."""
    client = ways.client
    client.run("cert", "generate-test", "--default", "tests.example")
    policy = client.home / ".config" / "notation" / "trustpolicy.json"
    policy.write_text(
        '{"version": "1.0", "trustPolicies": [{"name": "tests", "registryScopes": ["*"], "trustedIdentities": ["*"],'
        ' "signatureVerification": {"level": "strict"}, "trustStores": ["ca:tests.example"]}]}'
    )

    def verifies(host: str) -> bool:
        return client.attempt("verify", "--insecure-registry", subject(host)).returncode == 0

    assert not verifies(ways.through)
    client.run("sign", "--insecure-registry", subject(ways.past[0]))
    assert [verifies(host) for host in ways.everywhere] == [True, True, False]
    client.run("sign", "--insecure-registry", subject(ways.through))
    assert [verifies(host) for host in ways.everywhere] == [True, True, True]


@pytest.mark.acceptance("cosign")
@pytest.mark.parametrize("past_us", [True, False], ids=["past us", "through us"])
def test_cosign_verifies_the_same_everywhere(ways: Ways, subject: At, *, past_us: bool) -> None:
    """A signature that is a referrer (a bundle) is good at the proxy and at each registry."""
    client = ways.client
    client.run("generate-key-pair")
    local = ("--key", "cosign.key", "--tlog-upload=false", "--use-signing-config=false", "--yes")
    check = ("--key", "cosign.pub", "--insecure-ignore-tlog", "--new-bundle-format=true")
    assert client.attempt("verify", *check, subject(ways.through)).returncode != 0
    for host in ways.past if past_us else [ways.through]:
        client.run("sign", "--new-bundle-format=true", *local, subject(host))
    for host in ways.everywhere:
        client.run("verify", *check, subject(host))


@pytest.mark.acceptance("regctl")
def test_regctl_lists_and_deletes_the_same_everywhere(ways: Ways, subject: At) -> None:
    """An artifact that is deleted through the proxy is listed nowhere any more; its neighbour is listed everywhere."""
    client = ways.client
    for kind in ("first", "second"):
        client.run(
            "artifact", "put", "--artifact-type", f"{SBOM}.{kind}", "--subject", subject(ways.through), stdin=kind
        )
    listing = client.run(
        "artifact",
        "list",
        "--format",
        "{{range .Descriptors}}{{.Digest}} {{.ArtifactType}}\n{{end}}",
        subject(ways.through),
    )
    [gone] = [line.split()[0] for line in listing.splitlines() if line.endswith("first")]
    client.run("manifest", "delete", f"{subject(ways.through).partition('@')[0]}@{gone}")
    for host in ways.everywhere:
        shown = client.run("artifact", "list", subject(host))
        assert f"{SBOM}.first" not in shown, host
        assert f"{SBOM}.second" in shown, host
