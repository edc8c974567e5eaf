"""Fixtures that tests of more than one directory use, and the runner of `async def` tests."""

import inspect
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.async_runner import run_async
from tests.kube_standin.fixtures import api_server, cluster, controller, proxy  # noqa: F401
from tests.programs import missing_packages
from tests.routers import StartRouter, router_starter

# How long an example takes depends on what else the machine does. Each run uses the same examples, so that chance does
# not decide whether a change passes. `pytest --hypothesis-profile=explore` looks for new ones.
settings.register_profile(
    "same-examples", settings(), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "explore", settings(), deadline=None, max_examples=2_000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same-examples")


def pytest_configure() -> None:
    """Restore SIGINT, which shells ignore in background jobs. The processes of the tests would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests whose programs are missing (`tests.programs`)."""
    for item in items:
        programs = [program for mark in item.iter_markers("needs") for program in mark.args]
        if packages := missing_packages(programs):
            item.add_marker(pytest.mark.skip(reason=f"install the Debian packages: {' '.join(packages)}"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test; leave other tests to pytest."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    run_async(pyfuncitem.obj, arguments)
    return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartRouter]:
    """Starts routers as processes. At the end of the test each must be idle and leave nothing behind."""
    with router_starter(tmp_path) as start_router:
        yield start_router


@pytest.fixture(scope="module")
def start_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartRouter]:
    """Starts routers that all tests of a module share."""
    with router_starter(tmp_path_factory.mktemp("shared")) as start_router:
        yield start_router
