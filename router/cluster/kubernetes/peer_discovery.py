"""Discovers the other routers: the addresses of the pods with the router's label in its own namespace.

A pod is a peer as soon as it has an address, ready or not. It stays a peer until it has terminated, because a pod that
is shutting down still has requests in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.cluster.kubernetes.objects import Pod

Address = tuple[str, int]


class PeerDiscovery:
    """Tracks the addresses of all routers, this one included."""

    def __init__(self, port: int) -> None:
        """`port` is the peer port of all routers."""
        self._port = port
        self._pods: dict[str, Pod] = {}
        self._on_change: Callable[[Mapping[Address, str | None]], None] | None = None

    def subscribe(self, on_change: Callable[[Mapping[Address, str | None]], None]) -> None:
        """Call `on_change` with the pod name of each address, now and after each change."""
        self._on_change = on_change
        on_change(self._addresses())

    def on_pod_changed(self, before: Pod | None, after: Pod | None) -> None:
        """Record that a router pod was added, changed or removed."""
        if before is not None:
            self._pods.pop(before.name, None)
        if after is not None:
            self._pods[after.name] = after
        if self._on_change is not None:
            self._on_change(self._addresses())

    def _addresses(self) -> dict[Address, str | None]:
        return {(pod.ip, self._port): pod.name for pod in self._pods.values() if pod.ip and not pod.terminated}
