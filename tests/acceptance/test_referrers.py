"""Signing and attaching go on while one of two replicas is down (issue B8).

Reports: pipelines whose `cosign sign`, `oras attach` or `notation sign` ends in 503 during maintenance of one registry.
These clients ask for a tag that normally does not exist, and go on only when the answer is 404.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.clients import Client
from tests.acceptance.conftest import new_image
from tests.support.product import Proxy, User, random_bytes

pytestmark = pytest.mark.acceptance
_PASSWORD = "password of a user"


@pytest.fixture(params=["before", "meanwhile"])
def subject(request: pytest.FixtureRequest, outage: Proxy) -> Callable[[str], str]:
    """Return a function that gives a client an image: pushed before the replica stopped, or during the outage."""

    def name(program: str) -> str:
        if request.param == "meanwhile":
            User(outage, "ann", _PASSWORD).push(f"meanwhile/{program}", "1", new_image())
        return f"{outage.host}/{request.param}/{program}:1"

    return name


@pytest.fixture
def client(request: pytest.FixtureRequest, outage: Proxy, tmp_path: Path) -> Client:
    """Give the client named by the first mark of the test, logged in as ann."""
    (program,) = request.node.get_closest_marker("acceptance").args
    client = Client(program, tmp_path / "home", outage.host)
    client.log_in("ann", _PASSWORD)
    return client


@pytest.mark.acceptance("oras")
def test_oras_attaches_and_discovers(client: Client, subject: Callable[[str], str]) -> None:
    """Nothing is attached at first; two files are attached one after the other, and both are found."""
    image = subject("oras")
    assert "application/vnd.example" not in client.run("discover", "--plain-http", image)
    for kind in ("application/vnd.example.sbom", "application/vnd.example.scan"):
        (client.home / "file").write_bytes(random_bytes(100))
        client.run("attach", "--plain-http", "--artifact-type", kind, image, "file:text/plain")
        assert kind in client.run("discover", "--plain-http", image)
    assert "application/vnd.example.sbom" in client.run("discover", "--plain-http", image)


@pytest.mark.acceptance("regctl")
def test_regctl_puts_artifacts_and_copies_them_along(client: Client, subject: Callable[[str], str]) -> None:
    """An artifact with a subject is listed at it, and is copied with it to another repository."""
    image = subject("regctl")
    kind = ("--artifact-type", "application/vnd.example.sbom")
    client.run("artifact", "put", *kind, "--subject", image, stdin="words")
    assert kind[1] in client.run("artifact", "list", image)
    copy = image.replace("/regctl:", "/regctl-copy:")
    client.run("image", "copy", "--referrers", "--digest-tags", image, copy)
    assert kind[1] in client.run("artifact", "list", copy)


@pytest.mark.acceptance("notation")
def test_notation_signs_and_verifies(client: Client, subject: Callable[[str], str]) -> None:
    """An image is signed with a new key; the signature is listed, and is good."""
    image = subject("notation")
    client.run("cert", "generate-test", "--default", "tests.example")
    client.run("sign", "--insecure-registry", image)
    assert "application/vnd.cncf.notary.signature" in client.run("list", "--insecure-registry", image)
    policy = client.home / ".config" / "notation" / "trustpolicy.json"
    policy.write_text(
        '{"version": "1.0", "trustPolicies": [{"name": "tests", "registryScopes": ["*"], "trustedIdentities": ["*"],'
        ' "signatureVerification": {"level": "strict"}, "trustStores": ["ca:tests.example"]}]}'
    )
    assert "Successfully verified" in client.run("verify", "--insecure-registry", image)


@pytest.mark.acceptance("cosign")
@pytest.mark.parametrize("bundle", [True, False], ids=["bundle", "tags"])
def test_cosign_signs_attests_and_cleans(
    client: Client, subject: Callable[[str], str], outage: Proxy, *, bundle: bool
) -> None:
    """A signature and an attestation are added, each as a referrer or on its own tag, are good, and are removed.

    Both are good where the image is promoted to, too.
    """
    image = subject("cosign")
    (client.home / "predicate.json").write_text('{"built": "here"}')
    client.run("generate-key-pair")
    form = (f"--new-bundle-format={str(bundle).lower()}",)
    local = ("--key", "cosign.key", "--tlog-upload=false", "--use-signing-config=false", "--yes")
    client.run("sign", *form, *local, image)
    client.run("attest", *form, *local, "--type", "custom", "--predicate", "predicate.json", image)
    check = ("--key", "cosign.pub", "--insecure-ignore-tlog")
    client.run("verify", *form, *check, image)
    client.run("verify-attestation", *form, *check, "--type", "custom", image)
    promoted = image.replace("/cosign:", f"/cosign-{bundle}:".lower())
    with outage.admin() as admin:
        names = {side: one.partition("/")[2] for side, one in (("source", image), ("target", promoted))}
        answer = admin.post("/tags/promote", json=names)
        assert answer.status_code == 200, answer.text
    client.run("verify", *form, *check, promoted)
    client.run("verify-attestation", *form, *check, "--type", "custom", promoted)
    client.run("clean", "--force", image)
    assert client.attempt("verify", *form, *check, image).returncode != 0
