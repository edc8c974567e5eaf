"""`azureml-fe local` in a pseudo-terminal: the live line, the key, Ctrl-C, and a closed window."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_local import run_in_shell
from tests.processes import Load, all_ended, descendants, wait_until, worker_pids
from tests.routers import Services, echo_service, open_echo_service, router_environment

COLUMNS = 60


class Terminal:
    """A router that was started in a terminal, and its output there."""

    def __init__(self, directory: Path, services: Services) -> None:
        (directory / "models.yaml").write_text(json.dumps({"services": services, "router": {"state_dir": "state"}}))
        self._controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        words = ["local", "models.yaml", "--port", "0", "--admin-port", "0", "--workers", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _AT_TERMINAL, *words],
            cwd=directory,
            env=router_environment() | {"TERM": "xterm"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        self.output = ""
        self._closed = False
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches `pattern`."""
        wait_until(lambda: re.search(pattern, self.output), f"{pattern!r} in\n{self.output}")
        match = re.search(pattern, self.output)
        assert match is not None
        return match

    def type(self, text: bytes) -> None:
        os.write(self._controller, text)

    def close(self) -> None:
        """Close the window."""
        if not self._closed:
            self._closed = True
            os.close(self._controller)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reading.join()
        self.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # one side of the pseudo-terminal is closed
            while data := os.read(self._controller, 65536):
                self.output += data.decode()


# Makes the terminal the controlling terminal of the session, so that closing it sends SIGHUP.
_AT_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from router.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def terminal(directory: Path) -> Iterator[Terminal]:
    terminal = Terminal(
        directory, {"echo": echo_service(), "a-service-with-a-rather-long-name": open_echo_service(delay=0.3)}
    )
    yield terminal
    terminal.end()


@pytest.mark.needs("curl")
def test_printed_command_has_the_key_and_works(terminal: Terminal, tmp_path: Path) -> None:
    line = terminal.wait_for(r"  try: (curl -sS \S+/service/echo/.*)\r\n")[1]
    key = (tmp_path / "state" / "keys.json").read_text().split('"primary": "')[1].split('"')[0]
    assert key in line
    assert run_in_shell(line.replace("curl -sS", "curl -sS -o body -w '%{http_code}'"), tmp_path) == "200"


def test_last_line_is_live_and_fits_the_terminal(terminal: Terminal) -> None:
    port = int(terminal.wait_for(r"serves models.yaml at http://127.0.0.1:(\d+)")[1])
    terminal.wait_for("a-service-with-a-rather-long-name is ready")
    terminal.wait_for(r"\r\x1b\[Kecho 1/1 replicas, 0 in flight, 0 queued \| ")
    with Load(port, "/api/v1/service/a-service-with-a-rather-long-name/score", clients=1) as load:
        terminal.wait_for(r"\| a-service-with")
        load.wait_for_responses(2)
    assert load.all_succeeded, load
    live = [part for part in terminal.output.split("\r") if " | " in part]
    assert live
    assert max(len(part.removeprefix("\x1b[K")) for part in live) < COLUMNS


def test_log_lines_are_readable_text_and_clear_the_live_line(terminal: Terminal) -> None:
    terminal.wait_for("echo is ready")
    terminal.process.send_signal(signal.SIGHUP)
    terminal.wait_for(r"\r\x1b\[K\d\d:\d\d:\d\d info    SIGHUP received, replacing the workers\r\n")
    assert "{" not in terminal.output
    assert "replica is ready" not in terminal.output  # the console shows it
    on_screen = terminal.output.replace("\r\n", "\n").split("\n")
    for line in on_screen:
        assert not re.search(r"queued.*\d\d:\d\d:\d\d", line.rpartition("\x1b[K")[2])


def test_ctrl_c_drains_and_leaves_no_process(terminal: Terminal) -> None:
    terminal.wait_for("echo is ready")
    family = descendants(terminal.process.pid)
    terminal.type(b"\x03")
    terminal.wait_for(r"finishing requests in flight \(at most 60 s; a second signal stops at once\)")
    assert terminal.process.wait(20) == 0
    terminal.wait_for("stopped\r\n")
    assert all_ended(family)


def test_closing_the_terminal_stops_the_router(terminal: Terminal) -> None:
    terminal.wait_for("echo is ready")
    family = descendants(terminal.process.pid)
    assert worker_pids(terminal.process.pid)
    terminal.close()
    assert terminal.process.wait(20) == 0
    wait_until(lambda: all_ended(family), "end of all processes")
