"""With AZUREML_FE_TEST_KUBECONFIG, tests use the server of that kubeconfig and leave nothing in it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.kube_standin.api_server.process import ROOT, running_api_server
from tests.kube_standin.client import Access, Client
from tests.kube_standin.cluster import Cluster
from tests.kube_standin.nodes import existing_nodes

ONE_TEST = "tests/kube_standin/test_conformance_writing.py::test_scale_of_a_deployment"


def test_tests_use_the_server_of_the_given_kubeconfig(tmp_path: Path) -> None:
    with running_api_server(tmp_path) as kubeconfig:
        client = Client(Access.read(kubeconfig))
        namespaces, nodes = client.list("namespaces"), client.list("nodes")
        version = _version(client)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", ONE_TEST, "-q", "-p", "no:cacheprovider"],
            cwd=ROOT,
            env=os.environ | {"AZUREML_FE_TEST_KUBECONFIG": str(kubeconfig)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert _version(client) > version
        assert (client.list("namespaces"), client.list("nodes")) == (namespaces, nodes)
        client.close()


def test_missing_nodes_exist_only_meanwhile(cluster: Cluster) -> None:
    present = cluster.create_node("present", cpu="1")
    missing = f"missing-{cluster.namespace}"
    with existing_nodes(cluster.admin, (present, missing)):
        assert cluster.client.get("nodes", "", missing)["status"]["allocatable"]["cpu"] == "1k"
        assert cluster.client.get("nodes", "", present)["status"]["allocatable"]["cpu"] == "1"
    assert cluster.client.find("nodes", "", missing) is None
    assert cluster.client.find("nodes", "", present) is not None


def _version(client: Client) -> int:
    return int(client.request("GET", "/api/v1/namespaces").ok()["metadata"]["resourceVersion"])
