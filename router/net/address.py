"""IP addresses and ports in texts: URLs, the Host header, messages, and addresses as sockets report them."""

from ipaddress import IPv6Address, ip_address


def host_port(host: str, port: int | str) -> str:
    """Return `host:port`, with an IPv6 address in brackets (RFC 3986 section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unmapped(address: str) -> str:
    """Return the IPv4 address of an IPv4-mapped IPv6 address, and any other text unchanged.

    A listener on an IPv6 socket sees an IPv4 client at `::ffff:192.0.2.1`.
    """
    if not address.startswith("::"):
        return address
    try:
        mapped = IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)


def is_wildcard(host: str) -> bool:
    """True if a listener on `host` has all addresses of the machine, such as `0.0.0.0` and `::`."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return host == ""


def local_destination(host: str) -> str:
    """Return the address at which this machine reaches a listener on `host`."""
    if not is_wildcard(host):
        return host
    return "::1" if ":" in host else "127.0.0.1"
