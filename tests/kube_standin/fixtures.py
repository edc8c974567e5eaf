"""Fixtures of a cluster: the API server stand-in, or the real server that AZUREML_FE_TEST_KUBECONFIG names."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube_standin.api_server.process import running_api_server
from tests.kube_standin.builtin_controllers import keep_out_builtin_controllers
from tests.kube_standin.cluster import Cluster, temporary_cluster
from tests.kube_standin.controller_manager import ControllerManager, running_controller_manager
from tests.kube_standin.fault_proxy import FaultProxy, running_fault_proxy
from tests.kube_standin.nodes import existing_nodes

# Removed from the environment, because routers refuse unknown AZUREML_FE_ variables.
REAL_SERVER = os.environ.pop("AZUREML_FE_TEST_KUBECONFIG", None)


def require_admission_plugin(plugin: str, is_enabled: bool) -> None:
    """Skip the test if a real API server runs without this admission plugin. The stand-in has the default plugins."""
    if REAL_SERVER and not is_enabled:
        pytest.skip(f"this API server runs without the admission plugin {plugin}")


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kubeconfig of the API server's administrator."""
    if REAL_SERVER:
        admin = Path(REAL_SERVER).expanduser().resolve()
        with keep_out_builtin_controllers(admin), existing_nodes(admin):
            yield admin
    else:
        with running_api_server(tmp_path_factory.mktemp("api_server")) as kubeconfig:
            yield kubeconfig


@pytest.fixture
def cluster(api_server: Path, tmp_path: Path) -> Iterator[Cluster]:
    """A new namespace in the API server."""
    with temporary_cluster(api_server, tmp_path) as cluster:
        yield cluster


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[FaultProxy]:
    """A proxy in front of the API server that records requests and injects faults."""
    with running_fault_proxy(cluster.access) as proxy:
        yield proxy


@pytest.fixture
def controller(cluster: Cluster, tmp_path: Path) -> Iterator[ControllerManager]:
    """Controllers and a kubelet that run the namespace's Deployments as processes."""
    with running_controller_manager(cluster, tmp_path) as controller:
        yield controller
