"""The shipped examples are safe unchanged: people copy them, and change only addresses.

Reports: "config/ha.yaml opened the admin API, with passwords over plain HTTP, to the whole network".
"""

import ipaddress
from pathlib import Path

import pytest

from registry_proxy.config.load import load_settings

EXAMPLES = sorted((Path(__file__).parent.parent.parent / "config").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_admin_listener_is_on_loopback(example: Path) -> None:
    """The admin listener speaks plain HTTP: no example opens it to other machines."""
    settings = load_settings(str(example), {})
    assert ipaddress.ip_address(settings.admin_listen.host).is_loopback
