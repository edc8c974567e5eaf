"""Signals and shutdown of `azureml-fe local`: no request is lost, and no process is left."""

import os
import signal
import time

import pytest

from tests.processes import PendingRequest, all_ended, wait_until
from tests.routers import Router, StartRouter, echo_service, open_echo_service


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_request_in_flight_gets_its_response(start: StartRouter, number: signal.Signals) -> None:
    router = start({"slow": open_echo_service(delay=0.5, num_replicas=2), "free": open_echo_service()}, workers=2)
    pending = router.start_request("slow")
    assert router.stop(number) == 0
    assert pending.response().status == 200
    assert router.stderr.splitlines()[-1] == "stopped"


def test_queued_requests_get_their_responses(start: StartRouter) -> None:
    router = start({"slow": open_echo_service(delay=0.3, max_request_wait_time=10_000)})
    first = router.start_request("slow")
    others = [PendingRequest(router.port, "/api/v1/service/slow/score") for _ in range(2)]
    wait_until(lambda: router.metric("requests_queued") > 0)
    assert router.stop() == 0
    assert [pending.response().status for pending in (first, *others)] == [200] * 3


def test_clients_that_keep_sending_get_responses_until_they_reconnect(start: StartRouter) -> None:
    """Requests on open connections get responses; only new connections are refused."""
    router = start({"free": open_echo_service(replica_max_concurrent_requests=10)}, workers=2)
    with router.load("free", clients=4) as load:
        load.wait_for_responses()
        router.send_signal(signal.SIGTERM)
        assert router.wait() == 0
    assert set(load.responses) == {200}
    assert {failure.partition("(")[0] for failure in load.failures} <= {"ConnectionRefusedError"}, load


def test_request_that_exceeds_the_drain_time_is_aborted_and_reported(start: StartRouter) -> None:
    router = start({"slow": open_echo_service(delay=30)}, drain_seconds=0.1)
    pending = router.start_request("slow")
    assert router.stop() == 1
    with pytest.raises(ConnectionError):
        pending.response()
    assert router.stderr.splitlines()[-1] == "stopped; some requests did not finish in time and were aborted"


def test_second_signal_stops_at_once(start: StartRouter) -> None:
    router = start({"slow": open_echo_service(delay=30), "stubborn": open_echo_service(ignore_sigterm=1)})
    pending = router.start_request("slow")
    family = router.process_tree
    router.send_signal(signal.SIGTERM)
    router.wait_for_stderr("a second signal stops at once")
    assert not all_ended(router.workers)
    router.send_signal(signal.SIGINT)
    assert router.wait() == 1
    router.wait_until_ended(family)
    with pytest.raises(ConnectionError):
        pending.response()


def test_second_signal_kills_replicas_that_do_not_stop(start: StartRouter) -> None:
    router = start({"stubborn": open_echo_service(ignore_sigterm=1)})
    family = router.process_tree
    workers = router.workers
    router.send_signal(signal.SIGINT)
    wait_until(lambda: all_ended(workers), "end of the workers")
    assert router.process.poll() is None
    router.send_signal(signal.SIGINT)
    assert router.wait() == 0  # no request was aborted
    router.wait_until_ended(family)


def test_sighup_replaces_workers_and_no_request_fails(start: StartRouter) -> None:
    router = start({"free": open_echo_service(num_replicas=2, max_request_wait_time=10_000)}, workers=2)
    for times in range(2):
        before = router.workers
        with router.load("free", clients=4) as load, router.load("free", clients=2, keep_alive=False) as short:
            load.wait_for_responses()
            router.send_signal(signal.SIGHUP)
            if times:
                router.send_signal(signal.SIGHUP)
            wait_until(lambda before=before: all_ended(before), "the end of the previous workers")  # type: ignore[misc]
            load.wait_for_responses()
        assert load.all_succeeded, load
        assert short.all_succeeded, short
    wait_until(lambda: len(router.workers) == 2)
    counted = router.metric("requests_total", service="free", code="200")
    assert counted >= load.responses.total()


def test_killed_router_leaves_no_process(start: StartRouter) -> None:
    router = start({"free": open_echo_service(num_replicas=2), "echo": echo_service()}, workers=2)
    family = router.process_tree
    assert len(family) == 6
    router.send_signal(signal.SIGKILL)
    router.wait()
    router.wait_until_ended(family)


def test_signal_during_the_start_leaves_no_process(start: StartRouter) -> None:
    for moment in range(8):
        number = signal.SIGTERM if moment % 2 else signal.SIGINT  # both have the same handler
        router = start({"free": open_echo_service()}, serving=False)
        router.wait_until_handling_signals()
        time.sleep(0.12 * moment)
        family = router.process_tree
        router.send_signal(number)
        assert router.wait() in (0, 1), router.stderr
        router.wait_until_ended(family)


def test_hangup_during_the_start_leaves_no_process(start: StartRouter) -> None:
    for moment in range(6):
        router = start({"free": open_echo_service()}, serving=False)
        time.sleep(0.07 * moment)
        family = router.process_tree
        router.send_signal(signal.SIGHUP)
        if not _survives(router):
            assert router.wait() == -signal.SIGHUP, router.stderr
            router.wait_until_ended(family)


def _survives(router: Router) -> bool:
    """SIGHUP ends the process before the handler is installed, and replaces the workers afterwards."""
    wait_until(lambda: router.process.poll() is not None or "serves " in router.stderr)
    if router.process.poll() is not None:
        return False
    router.wait_until_serving()
    router.wait_for_replicas("free")
    assert router.score("free").status == 200
    return True


def test_workers_and_replicas_are_not_in_the_foreground_process_group(start: StartRouter) -> None:
    """Ctrl-C in a terminal sends SIGINT to the whole foreground process group."""
    router = start({"free": open_echo_service()}, workers=2)
    assert [pid for pid in router.process_tree if os.getpgid(pid) == os.getpgid(router.pid)] == [router.pid]
