"""How `azureml-fe local` ends, and what it does at signals: nothing is lost, and nothing is left."""

import os
import signal
import time

import pytest

from tests.processes import Pending, all_gone, until
from tests.routers import Router, Start, echo, open_echo


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_in_flight_gets_its_answer(start: Start, number: signal.Signals) -> None:
    router = start({"slow": open_echo(delay=0.5, num_replicas=2), "free": open_echo()}, workers=2)
    pending = router.pending("slow")
    assert router.stop(number) == 0
    assert pending.answer().status == 200
    assert router.said.splitlines()[-1] == "stopped"


def test_requests_that_wait_get_their_answers(start: Start) -> None:
    router = start({"slow": open_echo(delay=0.3, max_request_wait_time=10_000)})
    first = router.pending("slow")
    others = [Pending(router.port, "/api/v1/service/slow/score") for _ in range(2)]
    until(lambda: router.metric("requests_queued") > 0)
    assert router.stop() == 0
    assert [pending.answer().status for pending in (first, *others)] == [200] * 3


def test_clients_that_go_on_asking_are_told_to_close(start: Start) -> None:
    """Whoever was connected gets an answer to all it sent; only new connections are refused."""
    router = start({"free": open_echo(replica_max_concurrent_requests=10)}, workers=2)
    with router.load("free", clients=4) as load:
        load.goes_on()
        router.send(signal.SIGTERM)
        assert router.wait() == 0
    assert set(load.answers) == {200}
    assert {failure.partition("(")[0] for failure in load.failures} <= {"ConnectionRefusedError"}, load


def test_a_request_that_takes_too_long_is_cut_and_that_is_said(start: Start) -> None:
    router = start({"slow": open_echo(delay=30)}, drain_seconds=0.1)
    pending = router.pending("slow")
    assert router.stop() == 1
    with pytest.raises(ConnectionError):
        pending.answer()
    assert router.said.splitlines()[-1] == "stopped; some requests did not finish in time and were cut"


def test_a_second_signal_stops_at_once(start: Start) -> None:
    router = start({"slow": open_echo(delay=30), "deaf": open_echo(ignore_sigterm=1)})
    pending = router.pending("slow")
    family = router.family
    router.send(signal.SIGTERM)
    router.says("once more to stop at once")
    assert not all_gone(router.workers)
    router.send(signal.SIGINT)
    assert router.wait() == 1
    router.is_gone(family)
    with pytest.raises(ConnectionError):
        pending.answer()


def test_a_second_signal_does_not_wait_for_replicas_either(start: Start) -> None:
    router = start({"deaf": open_echo(ignore_sigterm=1)})
    family = router.family
    workers = router.workers
    router.send(signal.SIGINT)
    until(lambda: all_gone(workers), "end of the workers")
    assert router.process.poll() is None
    router.send(signal.SIGINT)
    assert router.wait() == 0  # no request was cut
    router.is_gone(family)


def test_workers_are_replaced_and_no_request_fails(start: Start) -> None:
    router = start({"free": open_echo(num_replicas=2, max_request_wait_time=10_000)}, workers=2)
    for times in range(2):
        before = router.workers
        with router.load("free", clients=4) as load, router.load("free", clients=2, keep_alive=False) as short:
            load.goes_on()
            router.send(signal.SIGHUP)
            if times:
                router.send(signal.SIGHUP)
            until(lambda before=before: all_gone(before), "end of the former workers")  # type: ignore[misc]
            load.goes_on()
        assert load.all_well, load
        assert short.all_well, short
    until(lambda: len(router.workers) == 2)
    counted = router.metric("requests_total", service="free", code="200")
    assert counted >= load.answers.total()


def test_nothing_outlives_a_router_that_is_killed(start: Start) -> None:
    router = start({"free": open_echo(num_replicas=2), "echo": echo()}, workers=2)
    family = router.family
    assert len(family) == 6
    router.send(signal.SIGKILL)
    router.wait()
    router.is_gone(family)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_the_start_leaves_nothing(start: Start, number: signal.Signals) -> None:
    for moment in range(6):
        router = start({"free": open_echo()}, serving=False)
        time.sleep(0.07 * moment)
        family = router.family
        router.send(number)
        if number == signal.SIGHUP and _survives(router):
            continue
        assert router.wait() in (0, 1, -number), router.said
        router.is_gone(family)


def _survives(router: Router) -> bool:
    """Before a handler is there the signal ends it, afterwards it asks for new workers."""
    until(lambda: router.process.poll() is not None or "serves " in router.said)
    if router.process.poll() is not None:
        return False
    router.serves()
    router.ready("free")
    assert router.score("free").status == 200
    return True


def test_signals_go_to_the_router_alone(start: Start) -> None:
    """Ctrl-C in a terminal reaches the whole foreground group: neither workers nor replicas are in it."""
    router = start({"free": open_echo()}, workers=2)
    assert [pid for pid in router.family if os.getpgid(pid) == os.getpgid(router.pid)] == [router.pid]
