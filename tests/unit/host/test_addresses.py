"""The addresses of interfaces, as iproute2 tells them."""

from __future__ import annotations

from cachedind.host.addresses import Address, parse_addresses

# What `ip -oneline address` of iproute2 6.15 prints, with an interface of each kind.
OUTPUT = r"""1: lo    inet 127.0.0.1/8 scope host lo\       valid_lft forever preferred_lft forever
1: lo    inet6 ::1/128 scope host proto kernel_lo \       valid_lft forever preferred_lft forever
4: eth0    inet 192.0.2.2/24 brd 192.0.2.255 scope global eth0\       valid_lft forever preferred_lft forever
4: eth0    inet6 fd00::2/64 scope global nodad \       valid_lft forever preferred_lft forever
6: eth1@if7    inet 10.244.1.5/32 scope global eth1\       valid_lft forever preferred_lft forever
9: tun0    inet 10.8.0.2 peer 10.8.0.1/32 scope global tun0\       valid_lft forever preferred_lft forever
"""


def test_parse_addresses() -> None:
    assert parse_addresses(OUTPUT) == (
        Address("lo", "127.0.0.1/8"),
        Address("lo", "::1/128"),
        Address("eth0", "192.0.2.2/24"),
        Address("eth0", "fd00::2/64"),
        Address("eth1", "10.244.1.5/32"),
        Address("tun0", "10.8.0.2/32"),
    )
    assert parse_addresses("") == ()
