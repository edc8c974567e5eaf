"""The tests themselves run against the server that they are pointed to, and leave nothing there."""

import os
import subprocess
import sys
from pathlib import Path

from tests.kubernetes.client import Access, Client
from tests.kubernetes.double.running import ROOT, running

# One that asks the server itself, and has the router ask it.
STORY = "tests/cluster/kubernetes/test_looking.py::test_check_names_a_model_that_something_else_scales"


def test_tests_run_against_the_server_of_a_kubeconfig(tmp_path: Path) -> None:
    with running(tmp_path) as kubeconfig:
        client = Client(Access.read(kubeconfig))
        before = client.list("namespaces")
        version = _version(client)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", STORY, "-q", "--reruns", "0", "-p", "no:cacheprovider"],
            cwd=ROOT,
            env=os.environ | {"AZUREML_FE_TEST_KUBECONFIG": str(kubeconfig)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert _version(client) > version  # it was there
        assert client.list("namespaces") == before
        client.close()


def _version(client: Client) -> int:
    return int(client.ask("GET", "/api/v1/namespaces").ok()["metadata"]["resourceVersion"])
