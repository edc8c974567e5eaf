"""A rolling upgrade under load: pods of one release are replaced one by one by pods of the next one.

The previous release is a checkout named by the environment variable `AZUREML_FE_TEST_PREVIOUS_CHECKOUT`:

    AZUREML_FE_TEST_PREVIOUS_CHECKOUT=/path/to/checkout pytest tests/pods/test_rolling_upgrade.py

Its protocol version must be supported by this release. Without the variable, the test upgrades to pods that only
support the next protocol version, which the previous pods must refuse without losing a request.
"""

import json
import os
from pathlib import Path

import pytest

from tests.pods.fleet import Clients, Fleet, Pod, running_fleet
from tests.processes import wait_until
from tests.routers import ROOT

PREVIOUS_CHECKOUT = os.environ.get("AZUREML_FE_TEST_PREVIOUS_CHECKOUT")
PODS = ("p0", "p1", "p2")
MAX_WAIT_MS = 10_000  # so that a request waits for a new owner of its service and gets no 503


def start_previous_pods(fleet: Fleet, checkout: Path) -> None:
    fleet.start(*PODS, pod_count=len(PODS), checkout=checkout, max_request_wait_time=MAX_WAIT_MS)
    fleet.wait_until_all_linked()


def replace_pod(fleet: Fleet, clients: Clients, pod_id: str, *, module: str) -> None:
    """Replace a pod with one of this release, while a load balancer sends its clients' requests to no other pod."""
    with clients.paused(pod_id):
        assert fleet.pods[pod_id].terminate() == 0
        fleet.start(pod_id, pod_count=len(PODS), module=module, max_request_wait_time=MAX_WAIT_MS)


def assert_no_request_was_lost(fleet: Fleet, clients: Clients) -> None:
    """Each request was sent to exactly one replica and got its response."""
    assert {status for results in clients.results.values() for status in results} == {"200"}, clients.results
    assert fleet.replicas.statistics()["requests"] == sum(results.total() for results in clients.results.values())


def refusals(pod: Pod) -> set[str]:
    """Return the logged reasons for which connections with peers were refused."""
    entries = [json.loads(line) for line in pod.log.splitlines() if line.startswith("{")]
    messages = ("connection on the peer port refused", "cannot link with a dialed peer")
    return {entry["reason"] for entry in entries if entry["message"] in messages}


@pytest.mark.skipif(PREVIOUS_CHECKOUT is None, reason="set AZUREML_FE_TEST_PREVIOUS_CHECKOUT to that checkout")
def test_pods_of_the_previous_release_are_replaced_without_losing_a_request(tmp_path: Path) -> None:
    assert PREVIOUS_CHECKOUT is not None
    with running_fleet(tmp_path) as fleet:
        start_previous_pods(fleet, Path(PREVIOUS_CHECKOUT))
        with fleet.load() as clients:
            for pod_id in PODS:
                replace_pod(fleet, clients, pod_id, module="tests.pods.pod")
                fleet.wait_until_all_linked()
                clients.wait_for_successes(*PODS, requests=100)
                owned = sum(pod.metric("service_owned") for pod in fleet.pods.values())
                assert owned == 6, "each service has one owner"
        assert_no_request_was_lost(fleet, clients)
        assert fleet.replicas.over_limit() == []
        assert [refusals(pod) for pod in fleet.pods.values()] == [set(), set(), set()]


def test_pods_without_a_common_protocol_version_refuse_each_other_and_lose_no_request(tmp_path: Path) -> None:
    with running_fleet(tmp_path) as fleet:
        start_previous_pods(fleet, ROOT)
        with fleet.load() as clients:
            for number, pod_id in enumerate(PODS, 1):
                replace_pod(fleet, clients, pod_id, module="tests.pods.pod_with_next_protocol")
                upgraded = [fleet.pods[each] for each in PODS[:number]]
                previous = [fleet.pods[each] for each in PODS[number:]]
                wait_until(lambda pods=upgraded: all(pod.has_links(len(pods) - 1) for pod in pods), "links of new pods")  # type: ignore[misc]
                wait_until(lambda pods=previous: all(pod.has_links(len(pods) - 1) for pod in pods), "links of old pods")  # type: ignore[misc]
                clients.wait_for_successes(*PODS, requests=100)
                if previous:
                    assert all("version" in refusals(pod) for pod in (*upgraded, *previous))
        assert_no_request_was_lost(fleet, clients)
        assert all(refusals(pod) <= {"version"} for pod in fleet.pods.values())
