"""Addresses of callers, and whose they are."""

import pytest

from registry_proxy.protocol.addresses import address_owner, parse_address, plain_address


@pytest.mark.parametrize(
    ("address", "plain", "owner"),
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1", "192.0.2.1"),
        ("::FFFF:C000:201", "192.0.2.1", "192.0.2.1"),
        ("2001:DB8::1", "2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff:ffff:ffff:ffff", "2001:db8::ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::1", "fe80::/64"),
        ("::1", "::1", "::1"),
        ("", "", ""),
        ("unix socket", "unix socket", "unix socket"),
    ],
)
def test_an_address_has_one_notation_and_one_owner(address: str, plain: str, owner: str) -> None:
    """Mapped addresses are IPv4, a /64 of IPv6 is one owner, and a text that is no address stands for itself."""
    assert (plain_address(address), address_owner(address)) == (plain, owner)


def test_a_text_that_is_no_address_is_none() -> None:
    """Nothing is guessed."""
    assert parse_address("192.0.2.1.5") is None
    assert parse_address("") is None
