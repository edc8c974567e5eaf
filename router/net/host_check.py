"""Checks the Host header of requests to the admin port, against DNS rebinding. No I/O.

A page in an operator's browser can have its own name resolve to the address of a router, and then read the router's
responses as those of its own origin. The requests have the page's name as Host. So a router answers only to addresses
and to names that it knows.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping

COMMAND_HEADER = "Sec-Azureml-Fe"
"""Header of requests of the router's own commands. Their Host may be any name of the router, or that of the API server,
which forwards it. Scripts in browsers cannot set a header that begins with `Sec-` (Fetch standard, forbidden
request-header)."""

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]*)?")  # RFC 9110 section 7.2
_MAX_SHOWN = 100  # characters


class HostCheck:
    """The names under which clients may address a router."""

    def __init__(self, names: Iterable[str]) -> None:
        """Names are compared without case. IP addresses and `localhost` need not be among them."""
        self._names = frozenset(_normalized(name) for name in names) | {"localhost"}

    def problem(self, headers: Mapping[str, str]) -> str | None:
        """Return why a request with these headers must be refused; None if it may be answered.

        A request without Host does not come from a browser (HTTP/1.0, some probes).
        """
        host = headers.get("Host")
        if host is None or COMMAND_HEADER in headers or self._allows(host):
            return None
        return (
            f"Host {host[:_MAX_SHOWN]!r} is not allowed; allowed: IP addresses, localhost, the names of this router, "
            "and the names in the setting admin_hosts"
        )

    def _allows(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        address, name = match.groups()
        return _is_ip_address(address or name) or (name is not None and _normalized(name) in self._names)


def _normalized(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
