"""Zones of addresses, from the internet inwards, in each notation that the system accepts."""

import pytest

from registry_proxy.protocol.zones import InsideError, Zone, check_zone, zone_of


@pytest.mark.parametrize(
    ("zone", "hosts"),
    [
        (Zone.GLOBAL, ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]),
        (Zone.PRIVATE, ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1", "fec0::1", "198.18.0.1"]),
        (Zone.PRIVATE, ["0x0a000001", "012.0.0.1", "167772161", "10.1", "::ffff:10.0.0.1", "::10.0.0.1"]),
        (Zone.PRIVATE, ["64:ff9b::10.0.0.1", "2002:0a00:0001::", "192.0.2.1", "240.0.0.1", "255.255.255.255"]),
        (Zone.LOOPBACK, ["127.0.0.1", "127.9.9.9", "::1", "0x7f000001", "0177.1", "2130706433", "::ffff:127.0.0.1"]),
        (Zone.LOOPBACK, ["::7f00:1", "64:ff9b::7f00:1", "2002:7f00:0001::"]),
        (Zone.NEVER, ["169.254.169.254", "0xa9fea9fe", "0251.0376.0251.0376", "2852039166", "169.254.43518"]),
        (Zone.NEVER, ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1", "fe80::1%eth0", "fd00:ec2::254"]),
        (
            Zone.NEVER,
            ["0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "ff02::1", "100.100.100.200", "168.63.129.16", "192.0.0.192"],
        ),
        (Zone.NEVER, ["", "a name", "1.2.3.4.5", "::ffff:0.0.0.0"]),
    ],
)
def test_each_address_has_its_zone(zone: Zone, hosts: list[str]) -> None:
    """The zone is that of the address to which packets finally go."""
    assert {host: zone_of(host) for host in hosts} == dict.fromkeys(hosts, zone)


def test_an_address_beyond_the_limit_is_an_error() -> None:
    """The limit itself is within."""
    check_zone("10.0.0.1", Zone.PRIVATE)
    with pytest.raises(InsideError):
        check_zone("10.0.0.1", Zone.GLOBAL)
