"""`azureml-fe local --peer`: a second router on the same machine that joins the first."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.processes import TIMEOUT_SECONDS, Response, echo_server, send_request, wait_until
from tests.routers import Router, StartRouter, open_echo_service, router_environment


class JoinedRouter:
    """A router that has joined another one."""

    def __init__(self, directory: Path, arguments: list[str], state_dir: Path) -> None:
        self._log_file = directory / "joined.txt"
        with self._log_file.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "router", *arguments, "--workers", "1", "--state-dir", str(state_dir)],
                env=router_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        self.port = int(self.wait_for_stderr(r"serves .+ at http://127\.0\.0\.1:(\d+)"))
        self.admin_port = int(self.wait_for_stderr(r"status page: http://127\.0\.0\.1:(\d+)/"))

    @property
    def stderr(self) -> str:
        return self._log_file.read_text()

    def wait_for_stderr(self, pattern: str) -> str:
        """Wait until the output matches `pattern`, and return its first group."""
        wait_until(
            lambda: re.search(pattern, self.stderr) or self.process.poll() is not None, f"{pattern!r} in {self.stderr}"
        )
        match = re.search(pattern, self.stderr)
        assert match is not None, self.stderr
        return match[1]

    def score(self, service: str) -> Response:
        return send_request(self.port, f"/api/v1/service/{service}/score", b"[1]")

    def metric(self, name: str) -> float:
        """Return the sum of the samples whose lines start with `name`."""
        text = send_request(self.admin_port, "/metrics").body.decode()
        return sum(float(value) for value in re.findall(rf"^azureml_fe_{re.escape(name)}.* (\S+)$", text, re.MULTILINE))


@contextlib.contextmanager
def joined_to(router: Router, directory: Path) -> Iterator[JoinedRouter]:
    """Join with the command that the router prints. SIGINT ends the joined router."""
    command = router.wait_for_stderr(r"another router joins with: .+ (local --peer .+)")[1]
    other = JoinedRouter(directory, command.split(), router.state_dir)
    try:
        yield other
        other.process.send_signal(signal.SIGINT)
        assert other.process.wait(TIMEOUT_SECONDS) == 0, other.stderr
        assert "Traceback" not in other.stderr
    finally:
        if other.process.poll() is None:
            other.process.kill()
            other.process.wait()


def test_joined_router_serves_the_same_services_within_the_same_limits(start: StartRouter, tmp_path: Path) -> None:
    router = start({"echo": open_echo_service(), "slow": open_echo_service(delay=0.3, max_request_wait_time=5000)})
    with joined_to(router, tmp_path) as other:
        assert other.score("echo").body == b"[1]"
        wait_until(lambda: router.metric("peers", standing="live") == 1)
        pending = router.start_request("slow")  # the only slot
        assert other.score("slow").status == 200
        assert pending.response().status == 200
        changed = {"echo": open_echo_service(), "slow": open_echo_service(delay=0.3), "new": open_echo_service()}
        router.apply_services(changed)
        wait_until(lambda: other.score("new").status == 200, "a service added later")
        wait_until(lambda: other.metric("requests_in_flight") == 0, "the end of all requests")
        assert other.metric("slot_leaks_repaired_total") == 0
    wait_until(lambda: router.metric("peers", standing="live") == 0, "the joined router to leave")
    assert router.score("echo").status == 200


def test_request_is_explained_by_any_router(start: StartRouter, tmp_path: Path) -> None:
    router = start({"echo": {**open_echo_service(), "auth_enabled": True}})
    with joined_to(router, tmp_path) as other:
        key = router.key("echo")
        response = send_request(other.port, "/api/v1/service/echo/score", b"[1]", Authorization=f"Bearer {key}")
        assert response.status == 200
        wait_until(lambda: router.metric("peers", standing="live") == 1)
        explained = send_request(router.admin_port, f"/explain/{response.headers['x-ms-request-id']}")
        explanation = json.loads(explained.body)
        assert (explained.status, explanation["status"], explanation["worker"]) == (200, 200, "worker-0")
        assert explanation == json.loads(
            send_request(other.admin_port, f"/explain/{explanation['request_id']}").body
        ) | {"pods": explanation["pods"]}
        assert key.encode() not in explained.body
        names = [
            json.loads(send_request(port, "/status.json").body)["router"]["pod"]
            for port in (router.admin_port, other.admin_port)
        ]
        assert explanation["pod"] == names[1]
        assert explanation["pods"] == {names[0]: "does not remember it", names[1]: "remembers it"}
        unknown = send_request(router.admin_port, "/explain/nothing")
        assert unknown.status == 404
        assert json.loads(unknown.body)["pods"] == dict.fromkeys(names, "does not remember it")
        os.kill(other.process.pid, signal.SIGSTOP)
        try:
            response = send_request(router.admin_port, f"/explain/{explanation['request_id']}")
        finally:
            os.kill(other.process.pid, signal.SIGCONT)
        assert response.status == 404
        assert json.loads(response.body)["pods"][names[1]] in ("did not answer", "cannot be reached")


def test_joined_router_continues_when_the_first_is_killed(start: StartRouter, tmp_path: Path) -> None:
    with echo_server() as port:
        service = {"addresses": [f"127.0.0.1:{port}"], "auth_enabled": False, "success_threshold": 1}
        router = start({"remote": service})
        router.wait_for_replicas("remote")
        with joined_to(router, tmp_path) as other:
            assert other.score("remote").status == 200
            family = router.process_tree
            os.kill(router.pid, signal.SIGKILL)
            router.wait()
            router.wait_until_ended(family)
            assert other.score("remote").status == 200
            wait_until(lambda: other.metric('peers{standing="live"}') == 0, "the lost link")
            assert other.score("remote").status == 200


def test_garbage_on_the_peer_port_is_refused_and_logged_once(start: StartRouter, tmp_path: Path) -> None:
    router = start({"echo": open_echo_service()})
    with joined_to(router, tmp_path) as other:
        wait_until(lambda: router.metric("peers", standing="live") == 1)
        peer_port = int(router.wait_for_stderr(r"--peer 127\.0\.0\.1:(\d+)")[1])
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\0\0\0\x20" + b"x" * 32):
            with socket.create_connection(("127.0.0.1", peer_port)) as connection, contextlib.suppress(ConnectionError):
                connection.sendall(garbage)
                while connection.recv(4096):
                    pass
        wait_until(lambda: router.metric("peer_refusals_total") == 3)
        assert len(router.log("connection on the peer port refused")) == 1
        assert router.metric("peers", standing="live") == 1
        assert other.score("echo").status == 200


def test_routers_that_are_not_linked_serve_all_services_of_the_first(start: StartRouter, tmp_path: Path) -> None:
    services = {f"echo-{number}": open_echo_service() for number in range(6)}  # enough that each router owns one
    router = start(services)
    directories = [tmp_path / "second", tmp_path / "third"]
    for directory in directories:
        directory.mkdir()
    with joined_to(router, directories[0]) as second, joined_to(router, directories[1]) as third:
        for other in (second, third):
            other.wait_for_stderr("(not all pods reach each other)")
            for service in services:
                assert other.score(service).status == 200
            assert other.metric("degraded_services") == 0
