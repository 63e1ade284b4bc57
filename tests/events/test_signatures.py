"""Signatures, each verified as its receiver does."""

import base64
import hashlib
import hmac
import time
from email.message import Message

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from examples.flow.deployer import is_signed
from registry_proxy.events.composition import ComposedRequest
from registry_proxy.events.signatures import secret_fault
from tests.events.support import composed, pushed

SECRET, OLD = "a secret of 16 characters", "the one before it, still live"
STANDARD = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"


def standard_webhooks_accepts(key: str | bytes, request: ComposedRequest) -> bool:
    """Verify with the library that receivers use; it decodes texts, and takes bytes unchanged."""
    try:
        Webhook(key).verify(request.body, dict(request.headers))
    except WebhookVerificationError:
        return False
    return True


def github_accepts(secret: str, signature: str, body: bytes) -> bool:
    """Verify as GitHub documents it: the name of the hash, an equals sign, and the HMAC of the body in hexadecimal."""
    name, _, digest = signature.partition("=")
    return name == "sha256" and hmac.compare_digest(bytes.fromhex(digest), hmac.digest(secret.encode(), body, name))


def test_standard_webhooks_accepts_every_live_secret() -> None:
    """While one secret replaces another, receivers with either of them accept."""
    request = composed(pushed(1), sent_at=time.time(), secrets=[STANDARD, OLD])
    assert standard_webhooks_accepts(STANDARD, request)
    assert standard_webhooks_accepts(OLD.encode(), request)
    assert not standard_webhooks_accepts(STANDARD.encode(), request)


def test_standard_webhooks_refuses_an_old_try() -> None:
    """The signed time is that of the attempt: a later repetition by somebody else is refused."""
    request = composed(pushed(1), secrets=[STANDARD])
    assert request.headers["webhook-timestamp"] == "1700000009"
    assert not standard_webhooks_accepts(STANDARD, request)


def test_standard_webhooks_accepts_a_secret_without_padding() -> None:
    """A secret without padding is accepted: the specification does not say whether it has padding."""
    request = composed(pushed(1), sent_at=time.time(), secrets=[STANDARD.rstrip("=")])
    assert standard_webhooks_accepts(STANDARD, request)


@pytest.mark.parametrize("secret", [SECRET, STANDARD, STANDARD.rstrip("=")])
def test_the_deployer_of_the_examples_accepts_our_signature_alone(secret: str) -> None:
    """It accepts each live secret; it refuses another body, another secret, an old attempt, and no signature."""
    request = composed(pushed(1), secrets=[OLD, secret])
    headers = Message()
    for name, text in request.headers.items():
        headers[name] = text
    now = 1_700_000_010.0
    assert is_signed(secret, headers, request.body, now)
    assert not is_signed(secret, headers, request.body + b" ", now)
    assert not is_signed(f"{SECRET} not", headers, request.body, now)
    assert not is_signed(secret, headers, request.body, now + 400)
    assert not is_signed(secret, Message(), request.body, now)


def test_flux_accepts_the_signature_of_a_generic_hmac_receiver() -> None:
    """``X-Signature`` is by the active secret alone, with the bytes of its text as the key."""
    request = composed(pushed(1), secrets=[SECRET, OLD])
    assert github_accepts(SECRET, request.headers["X-Signature"], request.body)


@pytest.mark.parametrize("active", [SECRET, STANDARD])
def test_github_style_receivers_accept_the_active_secret(active: str) -> None:
    """``X-Hub-Signature-256`` takes any secret by the bytes of its text."""
    request = composed(pushed(1), secrets=[active, OLD])
    assert github_accepts(active, request.headers["X-Hub-Signature-256"], request.body)


def test_jenkins_generic_webhook_trigger_accepts_the_signature() -> None:
    """It compares the text after the equals sign with the HMAC in hexadecimal, without regard to case."""
    request = composed(pushed(1), secrets=[SECRET])
    calculated = hmac.new(SECRET.encode(), request.body, hashlib.sha256).hexdigest().upper()
    assert request.headers["X-Hub-Signature-256"].split("=")[1].upper() == calculated


def test_without_a_secret_nothing_is_signed() -> None:
    """The id and the time are there: a receiver recognises duplicates by them."""
    headers = composed(pushed(1)).headers
    assert headers["webhook-id"] == "event-1"
    assert not {"webhook-signature", "X-Hub-Signature-256", "X-Signature"} & set(headers)


@pytest.mark.parametrize(
    ("secret", "is_fine"), [(SECRET, True), (STANDARD, True), ("whsec_dG9vIHNob3J0", False), ("whsec_ä", False)]
)
def test_a_secret_in_the_form_of_standard_webhooks_is_a_key(secret: str, *, is_fine: bool) -> None:
    """Receivers decode it: a secret that is too short or cannot be decoded is refused."""
    assert (secret_fault(secret) is None) == is_fine
