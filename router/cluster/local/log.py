"""What a replica prints: a file of bounded size, and its end for an error message.

Lives here: the log file of one replica, and the bound on how many of them are kept. Must not live here: what is done
with a tail.

The process writes to the file itself and not through a pipe: it then never waits for the router, prints on when the
router is gone, and costs the router nothing per line.
"""

import os
from pathlib import Path

MAX_BYTES = 8 * 1024 * 1024
"""A log is cut when it is larger; checked about once a second, so that it may be exceeded by what is printed
meanwhile."""

KEPT_BYTES = 1024 * 1024
"""What stays of a log that is cut: its end."""

TAIL_LINES = 100
TAIL_BYTES = 64 * 1024

KEPT_FILES = 20
"""Logs of former replicas of one version that are kept: a program that always fails makes a new one each half
minute."""


class LogFile:
    """The log of one replica, readable only by the user, as programs print what they are given."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> int:
        """Create or empty the file; the descriptor is the caller's, to hand to the process and close."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # With O_APPEND the process goes on at the new end after a cut, instead of leaving a hole.
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def cut(self) -> None:
        """Keep only the end when the file has become too large. What is printed within that instant may be lost. Raises
        OSError when the file is gone or cannot be written."""
        if self.path.stat().st_size <= MAX_BYTES:
            return
        end = self._end(KEPT_BYTES)
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, 0)
            os.write(fd, b"[earlier output was cut off]\n" + end)
        finally:
            os.close(fd)

    def tail(self) -> str:
        """The last lines, at most `TAIL_LINES` and `TAIL_BYTES`; empty when nothing was printed or it cannot be
        read."""
        try:
            end = self._end(TAIL_BYTES)
        except OSError:
            return ""
        return "\n".join(end.decode(errors="replace").splitlines()[-TAIL_LINES:]).strip("\n")

    def _end(self, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(-min(size, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return file.read(size)


def forget_old_logs(directory: Path, in_use: frozenset[Path]) -> None:
    """Remove all logs in `directory` but those in use and the `KEPT_FILES` youngest of the others."""
    former = [path for path in directory.glob("*.log") if path not in in_use]
    former.sort(key=lambda path: path.stat().st_mtime_ns)
    for path in former[: max(0, len(former) - KEPT_FILES)]:
        path.unlink(missing_ok=True)
