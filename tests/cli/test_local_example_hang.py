"""The shipped example in a router: a model server that hangs leaves the service, and returns or is replaced."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import yaml

from router.cli.trial import SAMPLE_REQUEST
from router.cluster.local import example_path
from tests.processes import wait_until
from tests.routers import Router, StartRouter

PROBES = {
    "period_seconds": 1, "timeout_seconds": 1, "readiness_period_seconds": 1, "readiness_timeout_seconds": 1,
    "readiness_failure_threshold": 1,
}  # fmt: skip


def example(**settings: Any) -> dict[str, Any]:
    """The service of the example, with quick probes."""
    service = yaml.safe_load(example_path().read_text())["services"]["iris"]
    entry_script = str(example_path().with_name(service["entry_script"]))
    return {**service, "entry_script": entry_script, "auth_enabled": False, **PROBES, **settings}


@contextlib.contextmanager
def stopped_model_server(router: Router) -> Iterator[int]:
    """Stop the processes of the only replica, and wait until it gets no requests. Yield its process id."""
    (pid,) = router.replicas()
    os.killpg(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: router.metric("replicas", service="iris", state="ready") == 0, "failure of the readiness")
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGCONT)


def test_example_survives_a_hanging_model_server(start: StartRouter) -> None:
    router = start({"iris": example()})
    wait_until(lambda: router.log("replica is ready"), "example", seconds=60)
    request = example_path().with_name(SAMPLE_REQUEST).read_bytes()
    assert router.score("iris", request).status == 200
    with stopped_model_server(router) as pid:
        assert router.score("iris", request).status == 503
    router.wait_for_replicas("iris")
    assert list(router.replicas()) == [pid]
    assert router.score("iris", request).status == 200
    with stopped_model_server(router):
        # By default, liveness probes begin 310 s after the start, which allows for a model that loads slowly.
        router.apply_config({"iris": example(initial_delay_seconds=1, failure_threshold=2)})
        wait_until(lambda: len(router.log("replica starts")) == 2, "replacement")
        router.apply_config({"iris": example()})
        wait_until(lambda: len(router.log("replica is ready")) == 2, "replacement", seconds=60)
        assert router.score("iris", request).status == 200
    router.wait_for_replicas("iris")
    assert pid not in router.replicas()
