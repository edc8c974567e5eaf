"""Addresses as sockets report them."""

import pytest

from router.net.address import local_destination, unmapped


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("::1", "::1"),
        ("::", "::"),
        ("::1%lo", "::1%lo"),
        ("2001:db8::ffff:1.2.3.4", "2001:db8::ffff:1.2.3.4"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("127.0.0.1", "127.0.0.1"),
        ("::nonsense", "::nonsense"),
        ("a-router.example", "a-router.example"),
        ("", ""),
    ],
)
def test_mapped_address_becomes_its_ipv4_address(address: str, expected: str) -> None:
    assert unmapped(address) == expected


@pytest.mark.parametrize(
    ("host", "destination"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("::", "::1"),
        ("", "127.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("localhost", "localhost"),
        ("fe80::1", "fe80::1"),
    ],
)
def test_wildcard_is_reached_at_a_loopback_address(host: str, destination: str) -> None:
    assert local_destination(host) == destination
