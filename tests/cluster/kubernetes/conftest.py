"""Fixtures of tests in which routers run as processes beside an API server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kubernetes.serving import Routers, routers_in
from tests.kubernetes.cluster import Cluster
from tests.processes import echo_server


@pytest.fixture
def routers(cluster: Cluster, tmp_path: Path) -> Iterator[Routers]:
    with routers_in(cluster, tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def model() -> Iterator[int]:
    """The port of a model server on this machine."""
    with echo_server() as port:
        yield port
