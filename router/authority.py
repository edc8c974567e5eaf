"""An address as URLs, the Host header and people have it."""


def authority(host: str, port: int | str) -> str:
    """`host:port` (RFC 3986 section 3.2.2: an IPv6 address in brackets)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
