"""The addresses of all routers, from their pods."""

from collections.abc import Mapping

from router.cluster.kubernetes.peer_discovery import Address, PeerDiscovery
from tests.cluster.kubernetes.object_builders import pod


def test_peers_are_the_addresses_of_the_pods_of_either_version_of_ip() -> None:
    seen: list[Mapping[Address, str | None]] = []
    discovery = PeerDiscovery(9091)
    discovery.subscribe(seen.append)
    pods = [pod("a", ip="10.0.0.1"), pod("b", ip="fd00::2"), pod("c", ip="")]
    for each in pods:
        discovery.on_pod_changed(None, each)
    assert seen[-1] == {("10.0.0.1", 9091): "a", ("fd00::2", 9091): "b"}
    discovery.on_pod_changed(pods[0], None)
    assert seen[0] == {}
    assert seen[-1] == {("fd00::2", 9091): "b"}
