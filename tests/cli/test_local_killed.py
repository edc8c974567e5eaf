"""The workers of a router whose supervisor was killed: requests end, ports become free, no process is left."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.processes import PendingRequest, all_ended, echo_server, is_listening, statistics, wait_until
from tests.routers import Router, StartRouter, joined_router


def fixed_service(port: int) -> dict[str, Any]:
    """Return a service with one replica that the router does not start, so that it outlives the router."""
    return {"addresses": [f"127.0.0.1:{port}"], "auth_enabled": False, "success_threshold": 1}


def start_request_and_kill(router: Router, port: int) -> PendingRequest:
    """Start a request, and kill the supervisor once the replica at `port` has received it."""
    pending = PendingRequest(router.port, "/api/v1/service/slow/score")
    wait_until(lambda: statistics(port)["in_flight"], "request in flight")
    router.send_signal(signal.SIGKILL)
    router.wait()
    return pending


def test_request_gets_its_response_while_a_new_router_uses_the_ports(start: StartRouter) -> None:
    with echo_server(delay=1.5) as port:
        killed = start({"slow": fixed_service(port)}, workers=2, peer_port=0)
        workers = killed.workers
        pending = start_request_and_kill(killed, port)
        wait_until(lambda: not is_listening(killed.port), "closed listeners")
        peer_port = int(killed.wait_for_stderr(r"--peer 127\.0\.0\.1:(\d+)")[1])
        wait_until(lambda: not is_listening(peer_port), "closed listener for peers")
        assert statistics(port)["in_flight"] == 1
        start({"slow": fixed_service(port)}, port=killed.port, peer_port=peer_port)
        assert pending.response().status == 200
        wait_until(lambda: all_ended(workers), "end of the workers")


def test_request_is_aborted_after_the_drain_time(start: StartRouter) -> None:
    with echo_server(delay=60) as port:
        killed = start({"slow": fixed_service(port)}, drain_seconds=0.1)
        workers = killed.workers
        pending = start_request_and_kill(killed, port)
        wait_until(lambda: all_ended(workers), "end of the workers")
        with pytest.raises(ConnectionError):
            pending.response()


def test_stopped_workers_end(start: StartRouter) -> None:
    with echo_server() as port:
        killed = start({"slow": fixed_service(port)}, workers=2)
        workers = killed.workers
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        wait_until(lambda: all_ended(workers), "end of the workers")
        assert not is_listening(killed.port)


def test_request_is_aborted_if_another_router_shares_the_slots(start: StartRouter, tmp_path: Path) -> None:
    with echo_server(delay=60) as port:
        killed = start({"slow": fixed_service(port)})
        with joined_router(killed):
            wait_until(lambda: killed.metric("peers", standing="live") == 1, "link")
            workers = killed.workers
            pending = start_request_and_kill(killed, port)
            wait_until(lambda: all_ended(workers), "end of the workers")
            with pytest.raises(ConnectionError):
                pending.response()
