"""The other routers: the pods of the router's own label in its own namespace, by the addresses at which they listen.

A pod counts from when it has an address, ready or not, until it is deleted: one that ends still has requests in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.cluster.kubernetes.objects import Pod

Address = tuple[str, int]


class PeerList:
    """Who is to be linked with. `set_expected` gets all addresses, each with the name of its pod."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._pods: dict[str, Pod] = {}
        self.set_expected: Callable[[Mapping[Address, str | None]], None] | None = None

    def changed(self, before: Pod | None, after: Pod | None) -> None:
        """A router's pod is new, other or gone."""
        if before is not None:
            self._pods.pop(before.name, None)
        if after is not None:
            self._pods[after.name] = after
        if self.set_expected is not None:
            self.set_expected(self.expected())

    def expected(self) -> dict[Address, str | None]:
        """All that there are, this router among them."""
        return {(pod.ip, self._port): pod.name for pod in self._pods.values() if pod.ip and not pod.ended}
