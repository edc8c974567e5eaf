"""Logs of replicas are bounded and private, and their end can be read."""

import os
import stat
import subprocess
from pathlib import Path

from router.cluster.local.log_file import (
    KEPT_BYTES,
    KEPT_FILES,
    MAX_BYTES,
    TAIL_BYTES,
    TAIL_LINES,
    LogFile,
    log_path,
    remove_old_logs,
)


def test_tail_is_the_last_lines(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a" / "b.log")
    assert log.tail() == ""
    os.close(log.create())
    assert log.tail() == ""
    log.path.write_bytes(b"".join(b"line %d\n" % number for number in range(500)) + b"\xff last\n\n")
    lines = log.tail().split("\n")
    assert (lines[0], lines[-1]) == ("line 402", "\N{REPLACEMENT CHARACTER} last")
    assert len(lines) <= TAIL_LINES
    log.path.write_bytes(b"x" * 1_000_000)
    assert log.tail() == "x" * TAIL_BYTES


def test_created_log_is_empty_and_readable_only_by_its_owner(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "b.log")
    os.close(log.create())
    log.path.write_text("previous")
    os.close(log.create())
    assert log.path.read_text() == ""
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700


def test_truncated_log_keeps_its_end_and_later_output(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "b.log")
    fd = log.create()
    os.write(fd, b"a" * (MAX_BYTES - 2) + b"\n")
    log.truncate()
    assert log.path.stat().st_size == MAX_BYTES - 1
    os.write(fd, b"the end\n")
    log.truncate()
    os.write(fd, b"more\n")
    os.close(fd)
    text = log.path.read_bytes()
    assert text.startswith(b"[earlier output was removed]\naaa")
    assert text.endswith(b"a\nthe end\nmore\n")
    assert len(text) == len(b"[earlier output was removed]\n") + KEPT_BYTES + len(b"more\n")


def test_youngest_logs_of_ended_replicas_are_kept(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.log" for number in range(KEPT_FILES + 5)]
    for age, path in enumerate(paths):
        path.touch()
        os.utime(path, (age, age))
    remove_old_logs(tmp_path, frozenset(paths[:2]))
    assert set(tmp_path.iterdir()) == {*paths[:2], *paths[5:]}
    remove_old_logs(tmp_path / "none", frozenset())


def test_logs_of_another_running_router_are_neither_shared_nor_removed(tmp_path: Path) -> None:
    own = [log_path(tmp_path, f"echo-{number}") for number in range(KEPT_FILES)]
    with subprocess.Popen(["sleep", "600"]) as router:
        other = tmp_path / f"echo-1.{router.pid}.log"
        previous = tmp_path / "echo-1.log"
        for age, path in enumerate((other, previous, *own)):
            path.touch()
            os.utime(path, (age, age))
        assert other not in own
        remove_old_logs(tmp_path, frozenset())
        assert set(tmp_path.iterdir()) == {other, *own}
        router.kill()
    remove_old_logs(tmp_path, frozenset())
    assert set(tmp_path.iterdir()) == set(own)
