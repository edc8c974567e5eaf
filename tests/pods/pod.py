"""A router pod as a process, with a fixed cluster: `python -m tests.pods.pod FILE`.

The supervisor, the workers and the links are the router's own. Each pod gets the services from FILE, as pods in
Kubernetes get them from the API server. It prints a line once it accepts clients, and drains on SIGTERM.

FILE is JSON, see `tests/pods/fleet.py`. `test_rolling_upgrade` starts this program from checkouts of earlier releases,
too, so keys may be added to FILE, but not renamed.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from router.cluster import ClusterListener
from router.config.router import SourcedSettings, load_settings
from router.config.service import parse_service
from router.model.services import Replica, ReplicaState
from router.net.listen import bind_listener
from router.peers.handshake import SUPPORTED_VERSIONS, ProtocolVersions
from router.peers.mesh import Mesh
from router.supervisor.supervisor import Supervisor
from router.telemetry import log


class FixedCluster:
    """A `Cluster` with the services and replicas of the file."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    async def start(self, listener: ClusterListener) -> None:
        services = {name: parse_service(name, settings) for name, settings in self._config["services"].items()}
        listener.services_changed(services)
        for name, ports in self._config["replicas"].items():
            replicas = tuple(Replica(f"{name}-{port}", "127.0.0.1", port, ReplicaState.READY) for port in ports)
            listener.replicas_changed((name, "default"), replicas)

    def report_server_error(self, key: tuple[str, str], replica_id: str, status: int) -> None:
        pass

    def report_ejection(self, key: tuple[str, str], replica_id: str, reason: str) -> None:
        pass

    def scale(self, key: tuple[str, str], replicas: int, remove: Collection[str] = ()) -> None:
        """Do nothing: the number of replicas is fixed."""

    async def stop(self) -> None:
        """Do nothing: the replicas are not this pod's."""


async def main(config: dict[str, Any], versions: ProtocolVersions = SUPPORTED_VERSIONS) -> int:
    """Serve until SIGTERM. Return the exit code."""
    log.configure("info", sys.stderr, human=False)
    settings = replace(
        load_settings(environ={}),
        host=config["host"],
        port=config["port"],
        admin_host=config["host"],
        admin_port=config["admin_port"],
        workers=config["workers"],
        drain_seconds=10.0,
    )
    peer_socket = bind_listener(config["host"], config["peer_port"])
    supervisor = Supervisor(
        SourcedSettings(settings, {}), FixedCluster(config), own_id=config["id"], human_log=False,
        peer_listeners=[peer_socket],
    )  # fmt: skip
    mesh = Mesh(config["id"], peer_socket, config["secret"].encode(), supervisor.peer_observer, versions=versions)
    mesh.set_expected_peers({(host, port): peer for host, port, peer in config["peers"]})
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    try:
        await supervisor.join(mesh)
        await supervisor.start()
        print("ready", flush=True)
        await stopping.wait()
    finally:
        complete = await supervisor.stop()
    return 0 if complete else 1


def load_config() -> dict[str, Any]:
    """Read the file named on the command line."""
    config: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    return config


if __name__ == "__main__":
    sys.exit(uvloop.run(main(load_config())))
