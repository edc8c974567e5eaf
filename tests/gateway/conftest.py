"""The gateway that most tests of this directory use."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

import pytest
import uvloop

from tests.gateway.harness import GatewayHarness, open_descriptors, running_gateway


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gateway(**arguments): arguments of `GatewayHarness` for the fixture `harness`")


@pytest.fixture(scope="session")
def _first_event_loop() -> None:
    """The first event loop of a process opens a pipe that stays open."""
    uvloop.run(asyncio.sleep(0))


@pytest.fixture
def harness(
    request: pytest.FixtureRequest, _first_event_loop: None
) -> Iterator[AbstractAsyncContextManager[GatewayHarness]]:
    """A running gateway. The marker `gateway` has the arguments of `GatewayHarness`, such as settings.

    The test gets a `GatewayHarness`: `tests/async_runner.py` enters the context manager in the event loop of the test.
    """
    marker = request.node.get_closest_marker("gateway")
    descriptors = open_descriptors()
    yield running_gateway(**(marker.kwargs if marker is not None else {}))
    # Those of a failed test before may have been closed since: its traceback kept them open.
    assert open_descriptors() <= descriptors
