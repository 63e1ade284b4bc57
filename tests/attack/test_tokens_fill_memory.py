"""Tokens, names and heads that callers make up cannot fill a worker: its memory of them is bounded in bytes."""

import gc
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from registry_proxy.access import tokens
from registry_proxy.access.policy import Policy
from registry_proxy.access.tokens import TokenSigner, TokenVerifier, create_key_file, public_key_of
from registry_proxy.edge import fast_path
from registry_proxy.edge.fast_path import FastPath
from registry_proxy.protocol.scope import Access, Action

BOUND_BYTES = 256 * 1024


def kept_bytes(attack: Callable[[], object]) -> int:
    """Return the bytes in use after an attack that were not in use before."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        attack()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("scopes", "name"), [(0, "{}"), (1, "team/app{}"), (65, "{}x{}"), (200, "{}x{}" + "y" * 200)])
def test_verified_tokens(scopes: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens with no access, one name, as many names as fit, or two hundred digests stay within the bound."""
    monkeypatch.setattr(tokens, "_REMEMBERED_BYTES", BOUND_BYTES)
    create_key_file(str(tmp_path / "key.pem"))
    signer, verifier = TokenSigner(str(tmp_path / "key.pem"), "registry-proxy", 300), TokenVerifier("registry-proxy")
    verifier.set_keys({signer.key_id: public_key_of(signer.public_jwk)})
    made, now = [], time.time()
    for number in range(BOUND_BYTES // (600 + 70 * scopes)):
        access = [Access("repository", name.format(number, scope), frozenset({"pull"})) for scope in range(scopes)]
        made.append(signer.issue(f"user:{number}", 0, access, now).token)

    def attack() -> None:
        for token in made:
            verifier.verify(bytes(token, "ascii").decode(), now)

    assert 0.4 * BOUND_BYTES < kept_bytes(attack) < 1.1 * BOUND_BYTES


def test_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions about absent repositories and tags with the longest names stay within the bound."""
    monkeypatch.setattr("registry_proxy.access.policy._REMEMBERED_BYTES", BOUND_BYTES)
    policy = Policy([], [], [], {})

    def attack() -> None:
        for number in range(800):
            policy.decide("anonymous", f"{number:0255}", Action.PULL, f"{number:0128}")

    assert kept_bytes(attack) < 1.1 * BOUND_BYTES


def test_heads_of_hot_pulls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remembered heads that differ in a field of 7 KB stay within the bound."""
    monkeypatch.setattr(fast_path, "_REMEMBERED_HEADS_BYTES", BOUND_BYTES)
    nobody = MagicMock()
    nobody.answer_now.return_value = None
    hot = FastPath(nobody, nobody, nobody)
    line = f"GET /v2/team/app/blobs/sha256:{'0' * 64} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "

    def attack() -> None:
        for number in range(125):
            hot.answer(f"{line}{number:07000}\r\n\r\n".encode(), nobody)
            nobody.reset_mock()

    assert kept_bytes(attack) < 1.2 * BOUND_BYTES
