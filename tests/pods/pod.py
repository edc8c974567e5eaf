"""One router pod as a process, with a cluster that never changes: `python -m tests.pods.pod FILE`, which is JSON.

The supervisor, its workers and the links are the router's own; as in a cluster, each pod knows of the services itself.
Prints a line once it accepts clients. SIGTERM drains it and ends it.
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
from router.peers.accepting import listening_socket
from router.peers.mesh import Mesh
from router.services import Replica, ReplicaState, parse_service
from router.settings import load_settings
from router.supervisor import Supervisor
from router.telemetry import log


class FixedCluster:
    """Services and replicas from the file."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = facts

    async def start(self, listener: ClusterListener) -> None:
        services = {name: parse_service(name, described) for name, described in self._facts["services"].items()}
        listener.services_changed(services)
        for name, ports in self._facts["replicas"].items():
            ready = tuple(Replica(f"{name}-{port}", "127.0.0.1", port, ReplicaState.READY) for port in ports)
            listener.replicas_changed((name, "default"), ready)

    def scale(self, key: tuple[str, str], replicas: int, remove: Collection[str] = ()) -> None:
        """Nothing is scaled."""

    async def stop(self) -> None:
        """Nothing was begun."""


async def main(facts: dict[str, Any]) -> int:
    """Serve until SIGTERM. Returns the exit code."""
    log.configure("info", sys.stderr, human=False)
    settings = replace(
        load_settings(environ={}),
        host=facts["host"],
        port=facts["port"],
        admin_host=facts["host"],
        admin_port=facts["admin_port"],
        workers=facts["workers"],
        drain_seconds=10.0,
    )
    peer_socket = listening_socket(facts["host"], facts["peer_port"])
    supervisor = Supervisor(settings, own_id=facts["id"], human_log=False, peer_socket=peer_socket)
    mesh = Mesh(facts["id"], peer_socket, facts["secret"].encode(), supervisor.pods)
    mesh.set_expected({(host, port): peer for host, port, peer in facts["peers"]})
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    try:
        await supervisor.join(mesh)
        await supervisor.start(FixedCluster(facts))
        print("serves", flush=True)
        await stopping.wait()
    finally:
        complete = await supervisor.stop()
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(uvloop.run(main(json.loads(Path(sys.argv[1]).read_text()))))
