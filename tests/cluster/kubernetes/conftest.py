"""Fixtures of tests with routers as processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kubernetes.resizable_routers import running_nodes
from tests.cluster.kubernetes.router_processes import RouterStarter, starting_routers
from tests.kube_standin.cluster import Cluster
from tests.kube_standin.resizing_nodes import ResizingNodes
from tests.processes import echo_server


@pytest.fixture
def routers(cluster: Cluster, tmp_path: Path) -> Iterator[RouterStarter]:
    with starting_routers(cluster, tmp_path) as starter:
        yield starter


@pytest.fixture
def nodes(cluster: Cluster, tmp_path: Path) -> Iterator[ResizingNodes]:
    """One large node that resizes router pods in place."""
    with running_nodes(cluster, tmp_path) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def model_port() -> Iterator[int]:
    """The port of a model server."""
    with echo_server() as port:
        yield port
