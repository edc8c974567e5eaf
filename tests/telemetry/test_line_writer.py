"""Writing a log never blocks the caller, and no line is lost without being counted."""

import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.telemetry.line_writer import LineWriter
from tests.processes import TIMEOUT_SECONDS, wait_until
from tests.telemetry.pipes import Pipe


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_lines_are_written_at_once_and_in_order(pipe: Pipe) -> None:
    writer = LineWriter(pipe.fileno())
    writer.write(b"first\n")
    assert pipe.read_lines(1) == [b"first"]
    writer.write(*(b"%d\n" % number for number in range(1000)))
    assert pipe.read_lines(1000) == [b"%d" % number for number in range(1000)]
    writer.close(TIMEOUT_SECONDS)


def test_full_pipe_drops_and_counts_lines_beyond_the_capacity(pipe: Pipe) -> None:
    pipe.fill()
    recovered: list[int] = []
    writer = LineWriter(pipe.fileno(), capacity=20, on_recovered=recovered.append)
    for number in range(10):
        writer.write(b"line %d\n" % number)  # does not block
    assert writer.dropped == 8
    assert recovered == []
    pipe.discard_filling()
    assert pipe.read_lines(2) == [b"line 0", b"line 1"]
    writer.close(TIMEOUT_SECONDS)
    assert recovered == [8]
    assert writer.dropped == 8


def test_report_of_dropped_lines_is_written_before_close_returns(pipe: Pipe) -> None:
    pipe.fill()
    writer: LineWriter
    writer = LineWriter(pipe.fileno(), capacity=7, on_recovered=lambda lines: writer.write(b"-%d\n" % lines))
    writer.write(b"line 0\n", b"line 1\n", b"line 2\n")
    reading = threading.Timer(0.05, pipe.discard_filling)
    reading.start()
    writer.close(TIMEOUT_SECONDS)
    reading.join()
    assert pipe.read_lines(2) == [b"line 0", b"-2"]


def test_close_of_a_blocked_writer_returns_and_counts_the_rest(pipe: Pipe) -> None:
    pipe.fill()
    writer = LineWriter(pipe.fileno())
    writer.write(b"x" * select.PIPE_BUF + b"\n")
    wait_until(lambda: not writer._pending, "the thread writes")
    writer.write(b"second\n")
    writer.close(0.01)
    assert writer.dropped == 1
    writer.write(b"third\n")
    assert writer.dropped == 2


def test_non_blocking_pipe_gets_every_line(pipe: Pipe) -> None:
    os.set_blocking(pipe.fileno(), False)  # by another process
    pipe.fill()
    os.set_blocking(pipe.fileno(), False)
    writer = LineWriter(pipe.fileno())
    writer.write(b"line\n")
    pipe.discard_filling()
    assert pipe.read_lines(1) == [b"line"]
    writer.close(TIMEOUT_SECONDS)
    assert not os.get_blocking(pipe.fileno())
    assert writer.dropped == 0


def test_closed_reader_and_full_disk_drop_lines_without_an_error(pipe: Pipe) -> None:
    pipe.close_reader()
    with Path("/dev/full").open("wb") as full_disk:
        for fd in (pipe.fileno(), full_disk.fileno()):
            writer = LineWriter(fd)
            writer.write(b"line\n", b"line\n")
            writer.close(TIMEOUT_SECONDS)
            assert writer.dropped == 2


_WRITER = """
import sys
from router.telemetry.line_writer import LineWriter

writer = LineWriter(1)
for number in range(1000):
    writer.write(f"{sys.argv[1]}-{number:0200}\\n".encode())
writer.close(60)
"""


def test_lines_of_processes_that_share_a_pipe_do_not_mix(pipe: Pipe) -> None:
    command = [sys.executable, "-c", _WRITER]
    processes = [subprocess.Popen([*command, name], stdout=pipe.fileno()) for name in ("a", "b", "c")]
    lines = pipe.read_lines(3000)
    assert [process.wait(TIMEOUT_SECONDS) for process in processes] == [0, 0, 0]
    for name in (b"a", b"b", b"c"):
        assert [line for line in lines if line.startswith(name)] == [b"%s-%0200d" % (name, n) for n in range(1000)]


def test_regular_file_has_a_line_when_write_returns(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("wb") as stream:
        writer = LineWriter(stream.fileno())
        for number in range(100):
            writer.write(b"line %d\n" % number)
            assert file.read_bytes().splitlines()[-1] == b"line %d" % number


def test_lines_lost_on_a_full_disk_are_reported_when_it_has_room(tmp_path: Path) -> None:
    code = """
import os, resource, signal
from router.telemetry.line_writer import LineWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, unlimited[1]))  # each write fails
writer = LineWriter(1, on_recovered=lambda lines: writer.write(b"-%d\\n" % lines))
writer.write(b"first\\n")
writer.write(b"second\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
writer.write(b"third\\n")
"""
    file = tmp_path / "log"
    with file.open("wb") as stream:
        subprocess.run([sys.executable, "-c", code], stdout=stream, check=True)
    assert file.read_bytes().splitlines() == [b"third", b"-2"]
