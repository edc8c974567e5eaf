"""`azureml-fe local` on a terminal, a pseudo one: the live line, the key, Ctrl-C, and a window that is closed."""

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import Load, all_gone, descendants, until, workers_of
from tests.routers import Services, echo, environment, open_echo
from tests.test_local import in_a_shell

COLUMNS = 60


class Terminal:
    """A router that was started at a terminal, and what that shows."""

    def __init__(self, folder: Path, services: Services) -> None:
        (folder / "models.yaml").write_text(json.dumps({"services": services, "router": {"state_dir": "state"}}))
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        words = ["local", "models.yaml", "--port", "0", "--admin-port", "0", "--workers", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _AT_TERMINAL, *words],
            cwd=folder,
            env=environment(),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""
        self._closed = False
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def shows(self, pattern: str) -> re.Match[str]:
        """Wait until something is shown."""
        until(lambda: re.search(pattern, self.shown), f"{pattern!r} in\n{self.shown}")
        found = re.search(pattern, self.shown)
        assert found is not None
        return found

    def type(self, text: bytes) -> None:
        os.write(self._ours, text)

    def close(self) -> None:
        """Close the window."""
        if not self._closed:
            self._closed = True
            os.close(self._ours)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reading.join()
        self.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # nobody has the other end any more, or this one is closed
            while data := os.read(self._ours, 65536):
                self.shown += data.decode()


# The leader of a new session that opens a terminal has it as its controlling one: closing it then hangs up.
_AT_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from router.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def terminal(folder: Path) -> Iterator[Terminal]:
    made = Terminal(folder, {"echo": echo(), "a-service-with-a-rather-long-name": open_echo(delay=0.3)})
    yield made
    made.end()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_line_to_paste_has_the_key_and_works(terminal: Terminal, tmp_path: Path) -> None:
    line = terminal.shows(r"  try: (curl -s \S+/service/echo/score .*)\r\n")[1]
    key = (tmp_path / "state" / "keys.json").read_text().split('"primary": "')[1].split('"')[0]
    assert key in line
    assert in_a_shell(line, tmp_path) == '{"data": []}'


def test_the_last_line_is_live_and_fits(terminal: Terminal) -> None:
    port = int(terminal.shows(r"serves models.yaml at http://127.0.0.1:(\d+)")[1])
    terminal.shows(r"\recho 1/1 replicas, 0 in flight, 0 queued \| ")
    with Load(port, "/api/v1/service/a-service-with-a-rather-long-name/score", clients=1) as load:
        terminal.shows(r"\| a-service-with")
        load.goes_on(2)
    assert load.all_well, load
    live = [part for part in terminal.shown.split("\r") if " | " in part]
    assert live
    assert max(map(len, live)) < COLUMNS


def test_the_log_is_for_people(terminal: Terminal) -> None:
    terminal.shows(r"\d\d:\d\d:\d\d info    replica is ready  service=echo")
    assert "{" not in terminal.shown.replace("'{\"data\": []}'", "")


def test_ctrl_c_drains_and_leaves_nothing(terminal: Terminal) -> None:
    terminal.shows("echo is ready")
    family = descendants(terminal.process.pid)
    terminal.type(b"\x03")
    terminal.shows(r"finishing requests in flight \(at most 60 s; once more to stop at once\)")
    assert terminal.process.wait(20) == 0
    terminal.shows("stopped\r\n")
    assert all_gone(family)


def test_a_terminal_that_is_closed_ends_what_was_started_there(terminal: Terminal) -> None:
    terminal.shows("echo is ready")
    family = descendants(terminal.process.pid)
    assert workers_of(terminal.process.pid)
    terminal.close()
    assert terminal.process.wait(20) == 0
    until(lambda: all_gone(family), "end of all processes")
