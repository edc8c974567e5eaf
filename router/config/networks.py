"""IP networks in settings."""

from ipaddress import IPv4Network, IPv6Network, ip_network

from router.config.schema import SettingsError

_MAPPED_PREFIX = 96
"""Length of the prefix ::ffff:0:0/96 of IPv4-mapped addresses."""


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """Return a network such as `10.0.0.0/8`, or a single address. An IPv4-mapped IPv6 network becomes its IPv4 network.

    Raises ValueError, also if the address has bits outside of the network's mask.
    """
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_PREFIX:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - _MAPPED_PREFIX))
    return network


def check_networks(setting: str, networks: tuple[str, ...]) -> None:
    """Raise `SettingsError` for the first text that is neither a network nor an address."""
    for text in networks:
        try:
            parse_network(text)
        except ValueError as error:
            hint = f" ({error})" if "host bits" in str(error) else ""
            problem = f"must be networks such as 10.0.0.0/8 or fd00::/8, or single addresses{hint}"
            raise SettingsError(setting, text, problem) from None
