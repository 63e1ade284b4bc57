"""Signatures, each compared as its receiver does it."""

import base64
import hashlib
import hmac
from collections.abc import Mapping

import pytest

from registry_proxy.events.signatures import secret_fault
from tests.events.support import composed, pushed

SECRET, OLD = "a secret of 16 characters", "the one before it, still live"
KEY = bytes(range(32))
STANDARD = f"whsec_{base64.b64encode(KEY).decode()}"


def standard_webhooks_accepts(key: bytes, headers: Mapping[str, str], body: bytes) -> bool:
    """Verify as the libraries of Standard Webhooks: any of the signatures has to be that of the key."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = hmac.digest(key, signed, hashlib.sha256)
    given = [each.split(",") for each in headers["webhook-signature"].split(" ")]
    return any(version == "v1" and base64.b64decode(text) == wanted for version, text in given)


def github_accepts(secret: str, signature: str, body: bytes) -> bool:
    """Verify as GitHub documents it: the name of the hash, an equals sign, and the HMAC of the body in hexadecimal."""
    name, _, digest = signature.partition("=")
    return name == "sha256" and hmac.compare_digest(bytes.fromhex(digest), hmac.digest(secret.encode(), body, name))


def test_standard_webhooks_accepts_every_live_secret() -> None:
    """While one secret replaces another, receivers with either of them accept; the time is that of the try."""
    request = composed(pushed(1), secrets=[STANDARD, OLD])
    assert (request.headers["webhook-id"], request.headers["webhook-timestamp"]) == ("event-1", "1700000009")
    assert standard_webhooks_accepts(KEY, request.headers, request.body)
    assert standard_webhooks_accepts(OLD.encode(), request.headers, request.body)
    assert not standard_webhooks_accepts(STANDARD.encode(), request.headers, request.body)


def test_standard_webhooks_accepts_a_secret_without_padding() -> None:
    """The specification's libraries print both."""
    request = composed(pushed(1), secrets=[STANDARD.rstrip("=")])
    assert standard_webhooks_accepts(KEY, request.headers, request.body)


def test_flux_accepts_the_signature_of_a_generic_hmac_receiver() -> None:
    """``X-Signature`` is that of the active secret alone, by the bytes of its text."""
    request = composed(pushed(1), secrets=[SECRET, OLD])
    assert github_accepts(SECRET, request.headers["X-Signature"], request.body)


@pytest.mark.parametrize("active", [SECRET, STANDARD])
def test_github_style_receivers_accept_the_active_secret(active: str) -> None:
    """``X-Hub-Signature-256`` takes any secret by the bytes of its text."""
    request = composed(pushed(1), secrets=[active, OLD])
    assert github_accepts(active, request.headers["X-Hub-Signature-256"], request.body)


def test_jenkins_generic_webhook_trigger_accepts_the_signature() -> None:
    """It compares what follows the equals sign with the HMAC in hexadecimal, without regard to case."""
    request = composed(pushed(1), secrets=[SECRET])
    calculated = hmac.new(SECRET.encode(), request.body, hashlib.sha256).hexdigest().upper()
    assert request.headers["X-Hub-Signature-256"].split("=")[1].upper() == calculated


def test_without_a_secret_nothing_is_signed() -> None:
    """The id and the time are there: a receiver tells duplicates by them."""
    headers = composed(pushed(1)).headers
    assert headers["webhook-id"] == "event-1"
    assert not {"webhook-signature", "X-Hub-Signature-256", "X-Signature"} & set(headers)


@pytest.mark.parametrize(
    ("secret", "is_fine"), [(SECRET, True), (STANDARD, True), ("whsec_dG9vIHNob3J0", False), ("whsec_ä", False)]
)
def test_a_secret_in_the_form_of_standard_webhooks_is_a_key(secret: str, *, is_fine: bool) -> None:
    """Receivers decode it: one that they cannot decode, or is too short, is refused."""
    assert (secret_fault(secret) is None) == is_fine
