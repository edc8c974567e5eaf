"""Logs of replicas: bounded, private, and their end at hand."""

import os
import stat
from pathlib import Path

from router.cluster.local.log import KEPT_BYTES, KEPT_FILES, MAX_BYTES, TAIL_BYTES, TAIL_LINES, LogFile, forget_old_logs


def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
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


def test_a_log_is_begun_anew_and_only_the_user_can_read_it(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "b.log")
    os.close(log.create())
    log.path.write_text("former")
    os.close(log.create())
    assert log.path.read_text() == ""
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700


def test_a_log_that_grows_too_large_keeps_its_end_and_goes_on(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "b.log")
    fd = log.create()
    os.write(fd, b"a" * (MAX_BYTES - 2) + b"\n")
    log.cut()
    assert log.path.stat().st_size == MAX_BYTES - 1
    os.write(fd, b"the end\n")
    log.cut()
    os.write(fd, b"more\n")
    os.close(fd)
    text = log.path.read_bytes()
    assert text.startswith(b"[earlier output was cut off]\naaa")
    assert text.endswith(b"a\nthe end\nmore\n")
    assert len(text) == len(b"[earlier output was cut off]\n") + KEPT_BYTES + len(b"more\n")


def test_the_youngest_logs_of_former_replicas_are_kept(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.log" for number in range(KEPT_FILES + 5)]
    for age, path in enumerate(paths):
        path.touch()
        os.utime(path, (age, age))
    forget_old_logs(tmp_path, frozenset(paths[:2]))
    assert set(tmp_path.iterdir()) == {*paths[:2], *paths[5:]}
    forget_old_logs(tmp_path / "none", frozenset())
