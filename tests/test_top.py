"""`azureml-fe top`: what a screen shows, and the command in a terminal."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from typing import Any

import pytest

from router.cli import main
from router.top import NoStatus, Screen, parse, run_top
from tests.processes import PATIENCE_SECONDS, until
from tests.routers import Start, environment, open_echo


def version(**changes: Any) -> dict[str, Any]:
    return {
        "name": "default", "in_flight": 1, "queued": 0, "slots": 2, "requests_per_second": 3.5,
        "refused_per_second": 0.0, "utilization": 0.5, "desired": 2, "states": {"ready": 2},
        "replicas": [
            {"state": "ready", "in_flight": 1, "slots": 1}, {"state": "ready", "in_flight": 0, "slots": 1},
            {"state": "starting", "in_flight": 0, "slots": 1}, {"state": "draining", "in_flight": 0, "slots": 1},
        ],
        **changes,
    }  # fmt: skip


def status(*services: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "router": {"version": "1.2.3", "pod": "pod-1", "leads": True, "config_in_force": True},
        "totals": {
            "requests_per_second": 3.5, "in_flight": 1, "queued": 0, "refused_per_second": 0, "replicas_ready": 2,
            "services": len(services),
        },
        "services": list(services),
        "decisions": [],
        "workers": [{"name": "worker-0", "state": "accepting", "in_flight": 1}],
        "peers": [],
        "config_errors": [],
        **changes,
    }  # fmt: skip


def service(name: str, *versions: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "versions": list(versions or (version(),))}


def shown(told: dict[str, Any], width: int = 120, height: int = 0, order: str = "name", **options: Any) -> list[str]:
    return Screen(coloured=options.get("coloured", False)).lines(told, width, height, order)


def test_a_version_is_a_line_with_a_cell_for_each_replica() -> None:
    (line,) = [line for line in shown(status(service("iris"))) if line.startswith("iris")]
    assert line.split() == ["iris", "3.5", "1/2", "0", "50%", "2", "█·+-"]


def test_versions_are_named_where_there_are_several_and_no_limit_is_no_number() -> None:
    told = status(service("ab", version(name="blue"), version(name="green", slots=None, utilization=None)))
    lines = [line.split() for line in shown(told) if line.startswith("ab")]
    assert lines[0][0] == "ab/blue"
    assert lines[1] == ["ab/green", "3.5", "1", "0", "2", "█·+-"]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60), (20, 5)])
def test_it_fits(width: int, height: int) -> None:
    told = status(
        *(service(f"service-{number}") for number in range(1000)),
        decisions=[{"time": 0, "service": "a", "version": "default", "desired": 3, "reason": "x" * 300}] * 9,
        peers=[{"name": "pod-2", "standing": "live", "services_owned": 3, "encrypted": True}] * 20,
    )
    lines = shown(told, width, height)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= max(height, 12)
    assert any("more" in line for line in lines)


def test_orders() -> None:
    told = status(
        service("a", version(queued=1, utilization=0.9)),
        service("b", version(queued=5, utilization=0.1)),
        service("c", version(queued=0, utilization=0.2, requests_per_second=9)),
    )
    orders = {
        order: [line[0] for line in shown(told, order=order) if line[1:2] == " " and line[0] in "abc"]
        for order in ("name", "queued", "utilization", "requests")
    }
    assert {order: "".join(names) for order, names in orders.items()} == {
        "name": "abc", "queued": "bac", "utilization": "acb", "requests": "cab",
    }  # fmt: skip


def test_what_would_steer_the_terminal_is_not_shown() -> None:
    told = status(service("iris"), config_errors=[{"error": "bad \x1b[2J\n value"}])
    told["router"]["config_in_force"] = False
    assert not any("\x1b" in line or "\n" in line for line in shown(told))
    assert any("refused settings: bad ?[2J? value" in line for line in shown(told))


def test_trouble_is_coloured() -> None:
    lines = shown(status(service("iris", version(refused_per_second=1.0))), coloured=True)
    assert any(line.startswith("\x1b[31miris") for line in lines)


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"services": 1}', b"\xff"])
def test_something_else_is_no_status(body: bytes) -> None:
    with pytest.raises(NoStatus, match="http://x: this is not the status of a router"):
        parse(body, "http://x")


def test_without_a_terminal_it_is_printed_once() -> None:
    out = io.StringIO()
    assert run_top(lambda: status(service("iris")), out, once=False) == 0
    assert "iris" in out.getvalue()
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x y"])
def test_bad_address_is_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", url]) == 2
    assert "allowed: http://HOST:PORT" in capsys.readouterr().err


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err == "azureml-fe: http://127.0.0.1:1/status.json: Connection refused\n"


def test_without_an_address_it_asks_the_admin_port_of_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZUREML_FE_ADMIN_HOST", "::1")
    monkeypatch.setenv("AZUREML_FE_ADMIN_PORT", "1")
    assert main(["top"]) == 1
    assert "http://[::1]:1/status.json: " in capsys.readouterr().err


class Terminal:
    """The command in a terminal of 100 x 30, and what it has written there."""

    def __init__(self, *words: str) -> None:
        self._own, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self._before = termios.tcgetattr(other)
        self._other = other
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "router", "top", *words],
            stdin=other, stdout=other, stderr=other, env=environment(), start_new_session=True,
        )  # fmt: skip

    def shows(self, pattern: str) -> None:
        """Wait until something is shown that was not shown before."""
        self.text = ""
        until(lambda: re.search(pattern, self._read()), pattern)

    def _read(self) -> str:
        while select.select([self._own], [], [], 0.02)[0]:
            self.text += os.read(self._own, 65536).decode()
        return self.text

    def press(self, key: str) -> None:
        os.write(self._own, key.encode())

    def ends(self) -> int:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read()
        code = self.process.wait(1)
        self._read()
        assert termios.tcgetattr(self._other) == self._before, "the terminal is not as it was"
        os.close(self._own)
        os.close(self._other)
        return code


def test_in_a_terminal_it_follows_what_happens_until_q(start: Start) -> None:
    router = start({"iris": open_echo(num_replicas=2), "slow": open_echo(delay=0.4)})
    terminal = Terminal(f"http://127.0.0.1:{router.admin_port}")
    terminal.shows(r"iris +0 +0/2 .*··")
    with router.load("slow", clients=3):
        terminal.shows(r"slow +\S+ +1/1 +[12] .*█")
    terminal.shows(r"slow +\S+ +0/1 +0 .*·")
    terminal.press("o")
    terminal.shows(r"order \(by queued\)")
    terminal.press("q")
    assert terminal.ends() == 0
    assert terminal.text.endswith("\x1b[?25h\x1b[?1049l")
