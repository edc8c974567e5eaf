"""`azureml-fe local --peer`: a second router on the same machine that joins the first, as a user sees it."""

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

from tests.processes import PATIENCE_SECONDS, Answer, ask, echo_server, until
from tests.routers import Router, Start, environment, open_echo


class Joined:
    """A router that has joined another one."""

    def __init__(self, folder: Path, words: list[str], state: Path) -> None:
        self._errors = folder / "joined.txt"
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "router", *words, "--workers", "1", "--state-dir", str(state)],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        self.port = int(self.says(r"serves .+ at http://127\.0\.0\.1:(\d+)"))
        self.admin_port = int(self.says(r"metrics and health: http://127\.0\.0\.1:(\d+)/metrics"))

    @property
    def said(self) -> str:
        return self._errors.read_text()

    def says(self, pattern: str) -> str:
        """Wait until it has said something; the first group of the pattern."""
        until(lambda: re.search(pattern, self.said) or self.process.poll() is not None, f"{pattern!r} in {self.said}")
        found = re.search(pattern, self.said)
        assert found is not None, self.said
        return found[1]

    def score(self, service: str) -> Answer:
        return ask(self.port, f"/api/v1/service/{service}/score", b"[1]")

    def metric(self, name: str) -> float:
        """The sum of the samples that begin like this."""
        text = ask(self.admin_port, "/metrics").body.decode()
        return sum(float(value) for value in re.findall(rf"^azureml_fe_{re.escape(name)}.* (\S+)$", text, re.MULTILINE))


@contextlib.contextmanager
def joined_to(router: Router, folder: Path) -> Iterator[Joined]:
    """Join as the router says on the terminal; ended by SIGINT, and then nothing is left."""
    command = router.says(r"another router joins with: azureml-fe (local --peer .+)")[1]
    other = Joined(folder, command.split(), router.state)
    try:
        yield other
        other.process.send_signal(signal.SIGINT)
        assert other.process.wait(PATIENCE_SECONDS) == 0, other.said
        assert "Traceback" not in other.said
    finally:
        if other.process.poll() is None:
            other.process.kill()
            other.process.wait()


def test_a_second_router_serves_what_the_first_serves_within_the_same_limits(start: Start, tmp_path: Path) -> None:
    router = start({"echo": open_echo(), "slow": open_echo(delay=0.3, max_request_wait_time=5000)})
    with joined_to(router, tmp_path) as other:
        assert other.score("echo").body == b"[1]"
        until(lambda: router.metric("peers", standing="live") == 1)
        pending = router.pending("slow")  # the only slot
        assert other.score("slow").status == 200
        assert pending.answer().status == 200
        changed = {"echo": open_echo(), "slow": open_echo(delay=0.3), "new": open_echo()}
        router.serve(changed)
        until(lambda: other.score("new").status == 200, "a service that came later")
        until(lambda: other.metric("requests_in_flight") == 0, "rest")
        assert other.metric("slot_leaks_repaired_total") == 0
    until(lambda: router.metric("peers", standing="live") == 0, "farewell")
    assert router.score("echo").status == 200


def test_what_became_of_a_request_is_told_by_whichever_router_is_asked(start: Start, tmp_path: Path) -> None:
    router = start({"echo": {**open_echo(), "auth_enabled": True}})
    with joined_to(router, tmp_path) as other:
        key = router.key("echo")
        answer = ask(other.port, "/api/v1/service/echo/score", b"[1]", Authorization=f"Bearer {key}")
        assert answer.status == 200
        until(lambda: router.metric("peers", standing="live") == 1)
        asked = ask(router.admin_port, f"/explain/{answer.headers['x-ms-request-id']}")
        told = json.loads(asked.body)
        assert (asked.status, told["status"], told["worker"]) == (200, 200, "worker-0")
        assert told == json.loads(ask(other.admin_port, f"/explain/{told['request_id']}").body) | {"pods": told["pods"]}
        assert key.encode() not in asked.body
        names = [
            json.loads(ask(port, "/status.json").body)["router"]["pod"]
            for port in (router.admin_port, other.admin_port)
        ]
        assert told["pod"] == names[1]
        assert told["pods"] == {names[0]: "does not remember it", names[1]: "remembers it"}
        unknown = ask(router.admin_port, "/explain/nothing")
        assert unknown.status == 404
        assert json.loads(unknown.body)["pods"] == dict.fromkeys(names, "does not remember it")
        os.kill(other.process.pid, signal.SIGSTOP)
        try:
            silent = ask(router.admin_port, f"/explain/{told['request_id']}")
        finally:
            os.kill(other.process.pid, signal.SIGCONT)
        assert silent.status == 404
        assert json.loads(silent.body)["pods"][names[1]] in ("did not answer", "cannot be reached")


def test_a_joined_router_goes_on_when_the_first_is_killed(start: Start, tmp_path: Path) -> None:
    with echo_server() as port:
        service = {"addresses": [f"127.0.0.1:{port}"], "auth_enabled": False, "success_threshold": 1}
        router = start({"remote": service})
        router.ready("remote")
        with joined_to(router, tmp_path) as other:
            assert other.score("remote").status == 200
            family = router.family
            os.kill(router.pid, signal.SIGKILL)
            router.wait()
            router.is_gone(family)
            assert other.score("remote").status == 200
            until(lambda: other.metric('peers{standing="live"}') == 0, "the loss")
            assert other.score("remote").status == 200


def test_garbage_on_the_peer_port_disturbs_nobody_and_is_logged_once(start: Start, tmp_path: Path) -> None:
    router = start({"echo": open_echo()})
    with joined_to(router, tmp_path) as other:
        until(lambda: router.metric("peers", standing="live") == 1)
        peer_port = int(router.says(r"--peer 127\.0\.0\.1:(\d+)")[1])
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\0\0\0\x20" + b"x" * 32):
            with socket.create_connection(("127.0.0.1", peer_port)) as line, contextlib.suppress(ConnectionError):
                line.sendall(garbage)
                while line.recv(4096):
                    pass
        until(lambda: router.metric("peer_refusals_total") == 3)
        assert len(router.log("connection on the peer port refused")) == 1
        assert router.metric("peers", standing="live") == 1
        assert other.score("echo").status == 200


def test_routers_that_know_nothing_of_each_other_serve_all_that_the_first_serves(start: Start, tmp_path: Path) -> None:
    services = {f"echo-{number}": open_echo() for number in range(6)}  # enough for each router to own one
    router = start(services)
    folders = [tmp_path / "second", tmp_path / "third"]
    for folder in folders:
        folder.mkdir()
    with joined_to(router, folders[0]) as second, joined_to(router, folders[1]) as third:
        for other in (second, third):
            other.says("(not all pods reach each other)")
            for service in services:
                assert other.score(service).status == 200
            assert other.metric("degraded_services") == 0
