"""The start of a node, and its messages when it fails."""

from pathlib import Path

import pytest

from registry_proxy.app import prepare
from registry_proxy.config.errors import StartError
from registry_proxy.config.model import Settings


@pytest.mark.parametrize(
    ("key_file", "text"),
    [
        ("/proc/nowhere/key.pem", "/proc/nowhere/key.pem cannot be used: No such file or directory"),
        (".", " cannot be used: Is a directory"),
        ("config.yaml", "config.yaml holds no private key in PEM without a password"),
    ],
)
async def test_a_signing_key_that_cannot_be_used_is_reported(tmp_path: Path, key_file: str, text: str) -> None:
    """The error has the key and the configured path, is no defect, and comes before the store has a first admin."""
    (tmp_path / "config.yaml").write_text("workers: 1")
    configured = str(tmp_path / key_file)
    document = {
        "store": f"sqlite:///{tmp_path / 'store.db'}",
        "cache": {"path": str(tmp_path / "cache")},
        "auth": {"signing_key_file": configured},
        "upstreams": {"main": {"replicas": [{"url": "http://127.0.0.1:1"}]}},
        "routes": [{"prefix": "", "upstream": "main"}],
    }
    with pytest.raises(StartError) as caught:
        await prepare(Settings.model_validate(document), None)
    assert str(caught.value).startswith(f"auth.signing_key_file: {configured}")
    assert str(caught.value).endswith(text)
    assert not (tmp_path / "store.db").exists()
