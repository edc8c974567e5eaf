"""What proxies report about clients: which proxies are trusted, the client's address, the fields for replicas. No I/O.

The fields `X-Forwarded-*`, `Forwarded` and `X-Real-IP` of a trusted proxy are kept and extended. From anybody else they
never reach this module, because `header_rules` drops them: they may be forged.

Source: RFC 7239 (Forwarded). X-Forwarded-For has no standard: each proxy appends the address of its own peer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from router.config.networks import parse_network
from router.http.target import is_host

_PROTO: Final = re.compile(rb"https?|wss?", re.IGNORECASE)
_PORT: Final = re.compile(rb"[0-9]{1,5}")
_PREFIX: Final = re.compile(rb"(?:/[A-Za-z0-9._~!$&'()*+;=:@%-]+)*/?")
# An address with an optional port, as Azure's Application Gateway and IIS append it.
_ENTRY: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)")


def normalize_address(text: str) -> str:
    """Return the address of a peer without its zone. An IPv4-mapped IPv6 address becomes its IPv4 address.

    A listener on an IPv6 socket sees an IPv4 client at `::ffff:192.0.2.1`.
    """
    address = text.partition("%")[0]
    parsed = _parse_address(address) if ":" in address else None
    return address if parsed is None else str(parsed)


class TrustedProxies:
    """The networks of proxies whose reports about their clients are true."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[str]) -> None:
        """Raises ValueError for a text that is not a network."""
        self._networks = tuple(parse_network(network) for network in networks)

    def trusts(self, address: str) -> bool:
        """Return True if a peer of this address is a trusted proxy. A text that is no address is not."""
        if not self._networks:
            return False
        parsed = _parse_address(address)
        return parsed is not None and self._contains(parsed)

    def client_address(self, forwarded_for: bytes | None, peer: bytes) -> bytes:
        """Return the address of the client of a request that came from the trusted proxy `peer`.

        It is the last address in X-Forwarded-For that is not a trusted proxy's: those before it were sent by the client
        itself, or by proxies that are not trusted. If there is none, the first trusted one is the client. An entry that
        is no address, such as `unknown`, ends the search.
        """
        client = peer
        for entry in reversed((forwarded_for or b"").split(b",")):
            if not entry.strip():
                continue
            match = _ENTRY.fullmatch(entry.strip().decode("latin-1"))
            parsed = None if match is None else _parse_address(match[1] or match[2] or match[3])
            if parsed is None:
                break
            client = str(parsed).encode()
            if not self._contains(parsed):
                break
        return client

    def _contains(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)


def forwarded_lines(captured: Mapping[bytes, bytes], peer: bytes, secure: bool, host: bytes) -> list[bytes]:
    """Return the header lines for a replica about a request that came from the trusted proxy `peer`.

    `captured` has the proxy's fields by lower-case name. `secure` (TLS) and `host` describe the proxy's request; they
    are used where the proxy reports nothing, or something malformed.
    """
    proto = b"https" if secure else b"http"
    reported_for = captured.get(b"x-forwarded-for", b"").strip()
    reported_proto, reported_host = captured.get(b"x-forwarded-proto", b""), captured.get(b"x-forwarded-host", b"")
    lines = [
        b"X-Forwarded-For: " + (reported_for + b", " + peer if reported_for else peer),
        b"X-Forwarded-Proto: " + (reported_proto if _each_matches(_PROTO, reported_proto) else proto),
        b"X-Forwarded-Host: " + (reported_host if _each_is_host(reported_host) else host),
    ]
    if _each_matches(_PORT, port := captured.get(b"x-forwarded-port", b"")):
        lines.append(b"X-Forwarded-Port: " + port)
    real_ip = captured.get(b"x-real-ip", b"").strip()
    if real_ip and _parse_address(real_ip.decode("latin-1")) is not None:
        lines.append(b"X-Real-IP: " + real_ip)
    if forwarded := captured.get(b"forwarded", b"").strip():
        node = b'"[%b]"' % peer if b":" in peer else peer
        lines.append(b'Forwarded: %b, for=%b;host="%b";proto=%b' % (forwarded, node, host, proto))
    return lines


def outer_prefix(captured: Mapping[bytes, bytes]) -> bytes:
    """Return the path prefix that a trusted proxy has removed, without the slash at its end; b"" if there is none."""
    prefix = captured.get(b"x-forwarded-prefix", b"").strip()
    return prefix.rstrip(b"/") if _PREFIX.fullmatch(prefix) else b""


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _each_matches(pattern: re.Pattern[bytes], value: bytes) -> bool:
    return all(pattern.fullmatch(part.strip()) for part in value.split(b","))


def _each_is_host(value: bytes) -> bool:
    return all(part.strip() and is_host(part.strip()) for part in value.split(b","))
