"""The API server of the tests: the double, or the real one that AZUREML_FE_TEST_KUBECONFIG names."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.bystanders import kept_out
from tests.kubernetes.cluster import Cluster, cluster_of
from tests.kubernetes.controller import Controller, controlling
from tests.kubernetes.double.running import running
from tests.kubernetes.proxy import Proxy, proxying

# Taken out of the environment: routers refuse what looks like a setting and is none.
REAL = os.environ.pop("AZUREML_FE_TEST_KUBECONFIG", None)


def needs_admission(plugin: str, is_on: bool) -> None:
    """Skip a test of an admission plugin that a real API server runs without; the double has those that are on by
    default."""
    if REAL and not is_on:
        pytest.skip(f"this API server runs without the admission plugin {plugin}")


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A kubeconfig of its master."""
    if REAL:
        admin = Path(REAL).expanduser().resolve()
        with kept_out(admin):
            yield admin
    else:
        with running(tmp_path_factory.mktemp("double")) as kubeconfig:
            yield kubeconfig


@pytest.fixture
def cluster(api_server: Path, tmp_path: Path) -> Iterator[Cluster]:
    """A namespace of its own in the API server."""
    with cluster_of(api_server, tmp_path) as found:
        yield found


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    """Stands before the API server, keeps a record of all requests, and makes faults."""
    with proxying(cluster.access) as found:
        yield found


@pytest.fixture
def controller(cluster: Cluster, tmp_path: Path) -> Iterator[Controller]:
    """Turns the Deployments of the namespace into processes."""
    with controlling(cluster, tmp_path) as found:
        yield found
