"""Fixtures that tests of more than one folder use."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.fixtures import api_server, cluster, controller, proxy  # noqa: F401
from tests.routers import Start, starting_in


def pytest_configure() -> None:
    """Shells start what is in the background with SIGINT ignored, and all processes of the tests would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts routers as processes; each must be at rest at the end of the test, and leave nothing behind."""
    with starting_in(tmp_path) as begin:
        yield begin


@pytest.fixture(scope="module")
def start_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """The same for routers that the tests of one module share."""
    with starting_in(tmp_path_factory.mktemp("shared")) as begin:
        yield begin
