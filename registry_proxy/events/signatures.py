"""Signatures of a delivery: Standard Webhooks, and the two headers of receivers that know one secret."""

import base64
import hashlib
import hmac
from collections.abc import Sequence

_KEY_PREFIX = "whsec_"
_KEY_MIN_BYTES = 24
_KEY_MAX_BYTES = 64


def secret_fault(secret: str) -> str | None:
    """Return why a secret in the form of Standard Webhooks is no such key; None for every other text."""
    if not secret.startswith(_KEY_PREFIX) or _key(secret) is not None:
        return None
    return f"expected the Base64 of {_KEY_MIN_BYTES} to {_KEY_MAX_BYTES} bytes behind {_KEY_PREFIX}"


def signatures(secrets: Sequence[str], event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers that prove the sender.

    Standard Webhooks has one signature for each live secret. Receivers that compare a single value get that of the
    active secret, by the bytes of its text, as GitHub and Flux take it.

    Args:
        secrets: the active one first; none for no signature.
        event_id: the same at each try.
        timestamp: of the try, in seconds since the epoch.
        body: as it is sent.
    """
    headers = {"webhook-id": event_id, "webhook-timestamp": str(timestamp)}
    if not secrets:
        return headers
    signed = f"{event_id}.{timestamp}.".encode() + body
    digests = (hmac.digest(_key(each) or each.encode(), signed, hashlib.sha256) for each in secrets)
    alone = f"sha256={hmac.new(secrets[0].encode(), body, hashlib.sha256).hexdigest()}"
    return {
        **headers,
        "webhook-signature": " ".join(f"v1,{base64.b64encode(each).decode()}" for each in digests),
        "X-Hub-Signature-256": alone,
        "X-Signature": alone,
    }


def _key(secret: str) -> bytes | None:
    """Return the bytes that a secret in the form of Standard Webhooks encodes; None for another text."""
    if not secret.startswith(_KEY_PREFIX):
        return None
    encoded = secret.removeprefix(_KEY_PREFIX).rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        return None
    return key if _KEY_MIN_BYTES <= len(key) <= _KEY_MAX_BYTES else None
