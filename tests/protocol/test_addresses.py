"""Addresses of callers, and their owners."""

import pytest

from registry_proxy.protocol.addresses import (
    address_owner,
    is_loopback,
    parse_address,
    parse_network,
    plain_address,
    site_of,
)


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
    """A text that is no address is never guessed to be one."""
    assert parse_address("192.0.2.1.5") is None
    assert parse_address("") is None


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("2001:db8::1", "2001:db8::1/128"),
    ],
)
def test_a_network_of_mapped_addresses_is_of_ipv4(text: str, network: str) -> None:
    """The network is one of IPv4, as the addresses in it are; no other network is changed."""
    assert str(parse_network(text)) == network


@pytest.mark.parametrize("host", ["127.9.9.9", "::1", "::ffff:127.0.0.1", "localhost"])
def test_a_loopback_host_is_this_machine(host: str) -> None:
    """All of 127/8 and ::1, in any notation, and the name of this machine are loopback."""
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "", "localhost.example.com", "::"])
def test_any_other_host_is_not(host: str) -> None:
    """Other addresses and names are not loopback, whatever they resolve to."""
    assert not is_loopback(host)


def test_a_network_with_host_bits_is_none() -> None:
    """A network with host bits is refused, also one of mapped addresses."""
    for text in ("192.0.2.1/24", "::ffff:192.0.2.1/120", "x"):
        with pytest.raises(ValueError, match=r"host bits|does not appear"):
            parse_network(text)


def test_the_site_of_an_owner_is_a_48() -> None:
    """Only IPv6 owners share a site; a text that is no address is its own site."""
    assert (
        site_of(address_owner("2001:db8:1:2::3")) == site_of(address_owner("2001:db8:1:ffff::1")) == "2001:db8:1::/48"
    )
    assert [site_of(owner) for owner in ("192.0.2.1", "", "/run/socket")] == ["192.0.2.1", "", "/run/socket"]
