"""What trusted proxies report: networks, the client's address, and the header lines for replicas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http.forwarding import TrustedProxies, forwarded_lines, normalize_address, outer_prefix

PROXIES = TrustedProxies(("10.0.0.0/8", "2001:db8:1::/48", "192.0.2.7"))


@pytest.mark.parametrize(
    ("network", "address", "trusted"),
    [
        ("10.0.0.0/8", "10.200.3.4", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("2001:db8::/32", "2001:DB8:0:0::9", True),
        ("::ffff:10.0.0.0/104", "10.9.9.9", True),
        ("::ffff:10.0.0.0/104", "::ffff:10.9.9.9", True),
        ("10.0.0.0/8", "::ffff:10.0.0.1", True),
        ("10.0.0.0/8", "unknown", False),
        ("10.0.0.0/8", "", False),
    ],
)
def test_peer_is_trusted_by_its_network(network: str, address: str, trusted: bool) -> None:
    assert TrustedProxies((network,)).trusts(address) is trusted


def test_nobody_is_trusted_without_networks() -> None:
    assert not TrustedProxies(()).trusts("127.0.0.1")


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:201", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8:0:0::1", "2001:db8::1"),
        ("unknown", "unknown"),
    ],
)
def test_peer_address_is_normalized(peer: str, address: str) -> None:
    assert normalize_address(peer) == address


@pytest.mark.parametrize(
    ("forwarded_for", "client"),
    [
        (None, b"10.0.0.1"),
        (b"", b"10.0.0.1"),
        (b"203.0.113.9", b"203.0.113.9"),
        (b"203.0.113.9, 10.1.2.3", b"203.0.113.9"),
        (b"203.0.113.9,10.1.2.3 ,2001:db8:1::4", b"203.0.113.9"),
        (b"1.1.1.1, 203.0.113.9, 192.0.2.7", b"203.0.113.9"),  # the client itself sent the first one
        (b"10.8.8.8, 10.9.9.9", b"10.8.8.8"),  # all are proxies: the farthest
        (b"203.0.113.9:51234", b"203.0.113.9"),
        (b"[2001:db8:2::9]:443, 10.1.1.1", b"2001:db8:2::9"),
        (b"2001:DB8:2::0:9", b"2001:db8:2::9"),
        (b"::ffff:203.0.113.9", b"203.0.113.9"),
        (b"203.0.113.9, unknown, 10.1.2.3", b"10.1.2.3"),
        (b"203.0.113.9, <script>, 10.1.2.3", b"10.1.2.3"),
        (b"203.0.113.9, 010.1.2.3", b"10.0.0.1"),  # an octal number to some parsers
        (b"203.0.113.9, , 10.1.2.3,", b"203.0.113.9"),
        (b"300.1.1.1", b"10.0.0.1"),
        (b"\xff\xfe", b"10.0.0.1"),
    ],
)
def test_client_is_the_last_address_that_is_not_trusted(forwarded_for: bytes | None, client: bytes) -> None:
    assert PROXIES.client_address(forwarded_for, b"10.0.0.1") == client


@given(st.binary(max_size=60))
def test_client_cannot_change_what_the_proxy_appended(sent: bytes) -> None:
    assert PROXIES.client_address(sent + b", 203.0.113.9, 10.1.1.1", b"10.0.0.1") == b"203.0.113.9"


def lines(secure: bool = False, /, **fields: bytes) -> list[bytes]:
    captured = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    return forwarded_lines(captured, b"10.0.0.1", secure, b"fe:8080")


def test_fields_of_the_proxy_are_kept_and_extended() -> None:
    assert lines(
        x_forwarded_for=b"203.0.113.9, 10.2.2.2",
        x_forwarded_proto=b"https",
        x_forwarded_host=b"models.example.com",
        x_forwarded_port=b"443",
        x_real_ip=b"203.0.113.9",
        forwarded=b"for=203.0.113.9;proto=https",
    ) == [
        b"X-Forwarded-For: 203.0.113.9, 10.2.2.2, 10.0.0.1",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: models.example.com",
        b"X-Forwarded-Port: 443",
        b"X-Real-IP: 203.0.113.9",
        b'Forwarded: for=203.0.113.9;proto=https, for=10.0.0.1;host="fe:8080";proto=http',
    ]


def test_missing_fields_describe_the_connection_of_the_proxy() -> None:
    assert lines(True) == [
        b"X-Forwarded-For: 10.0.0.1", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: fe:8080",
    ]  # fmt: skip


@pytest.mark.parametrize("proto", [b"", b"ftp", b"https;x", b"https, javascript", b"http s", b","])
def test_malformed_scheme_is_replaced(proto: bytes) -> None:
    assert b"X-Forwarded-Proto: http" in lines(x_forwarded_proto=proto)


@pytest.mark.parametrize("host", [b"", b"a/b", b"good.example.com, evil@example.com", b"a b", b",", b"[::1"])
def test_malformed_host_is_replaced(host: bytes) -> None:
    assert b"X-Forwarded-Host: fe:8080" in lines(x_forwarded_host=host)


@pytest.mark.parametrize("field", ["x_forwarded_port", "x_real_ip"])
@pytest.mark.parametrize("value", [b"", b"-1", b"1;2", b"unknown"])
def test_malformed_port_and_address_are_dropped(field: str, value: bytes) -> None:
    assert lines(**{field: value}) == lines()


def test_address_of_a_proxy_in_ipv6_is_quoted_in_forwarded() -> None:
    added = forwarded_lines({b"forwarded": b"for=_x"}, b"2001:db8:1::4", True, b"fe")
    assert added[-1] == b'Forwarded: for=_x, for="[2001:db8:1::4]";host="fe";proto=https'


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        (b"/ml", b"/ml"),
        (b" /ml/v2/ ", b"/ml/v2"),
        (b"/", b""),
        (b"", b""),
        (b"ml", b""),
        (b"//evil.example.com", b""),
        (b"/a//b", b""),
        (b"/a\\b", b""),
        (b"/a, /b", b""),
        (b"https://evil.example.com/", b""),
    ],
)
def test_prefix_of_the_proxy_is_a_path(prefix: bytes, expected: bytes) -> None:
    assert outer_prefix({b"x-forwarded-prefix": prefix}) == expected
