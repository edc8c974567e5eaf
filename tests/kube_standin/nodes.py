"""The Node objects that pods of the tests are bound to.

From Kubernetes 1.36 on, an API server refuses updates of a bound pod whose Node does not exist.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.kube_standin.client import MERGE, Access, Client, path_of
from tests.kube_standin.cluster import NODES, TESTS_LABEL

_RESOURCES = {"cpu": "1000", "memory": "1000Gi", "pods": "1000"}  # room for any pod of the tests


@contextlib.contextmanager
def existing_nodes(admin: Path, names: Sequence[str] = NODES) -> Iterator[None]:
    """Create those Nodes that the server of this kubeconfig lacks, and remove them after the `with` block."""
    client = Client(Access.read(admin))
    created: list[str] = []
    try:
        for name in names:
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {TESTS_LABEL: "true"}}}
            reply = client.request("POST", path_of("nodes"), node)
            assert reply.status in (201, 409), reply.body
            if reply.status == 201:
                created.append(name)
                _report_ready(client, name)
        yield
    finally:
        for name in created:
            client.delete("nodes", "", name)
        client.close()


def _report_ready(client: Client, name: str) -> None:
    """Write the status of a node, as a kubelet of the server's version does."""
    version = client.request("GET", "/version").ok()["gitVersion"]
    status = {
        "allocatable": _RESOURCES,
        "capacity": _RESOURCES,
        "conditions": [{"type": "Ready", "status": "True"}],
        "nodeInfo": {"kubeletVersion": version},
    }
    client.request("PATCH", path_of("nodes", "", name, "status"), {"status": status}, MERGE).ok()
