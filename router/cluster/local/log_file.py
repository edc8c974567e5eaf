"""The log of a replica: a file of bounded size. Error messages quote its last lines.

The process writes directly to the file, not through a pipe. So it never waits for the router, it can write after the
router has exited, and its output costs the router no CPU.
"""

import os
from pathlib import Path

MAX_BYTES = 8 * 1024 * 1024
"""Size above which a log is truncated. It is checked once a second, so a log exceeds it by the output of one second."""

KEPT_BYTES = 1024 * 1024
"""Number of last bytes that a truncated log keeps."""

TAIL_LINES = 100
TAIL_BYTES = 64 * 1024

KEPT_FILES = 20
"""Number of logs of ended replicas that each version keeps. A replica that always fails adds a log every 30 s."""


def log_path(directory: Path, replica_id: str) -> Path:
    """Return the path of the log of a replica of this process. Routers with the same state directory have replicas with
    the same ids, so the name contains the pid of the router."""
    return directory / f"{replica_id}.{os.getpid()}.log"


class LogFile:
    """The log of one replica. It is readable only by its owner, as replicas may print the requests that they
    receive."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> int:
        """Create or empty the file. Return a file descriptor for the process, which the caller must close."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # With O_APPEND the process continues at the new end after `truncate`, instead of leaving a hole.
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def truncate(self) -> None:
        """Remove the beginning of a file that is too large. Output written at the same time may be lost.

        Raises OSError if the file was removed or cannot be written.
        """
        if self.path.stat().st_size <= MAX_BYTES:
            return
        end = self._end(KEPT_BYTES)
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, 0)
            os.write(fd, b"[earlier output was removed]\n" + end)
        finally:
            os.close(fd)

    def tail(self) -> str:
        """Return the last lines, at most `TAIL_LINES` and `TAIL_BYTES`; "" if there are none or the read fails."""
        try:
            end = self._end(TAIL_BYTES)
        except OSError:
            return ""
        return "\n".join(end.decode(errors="replace").splitlines()[-TAIL_LINES:]).strip("\n")

    def _end(self, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(-min(size, file.seek(0, os.SEEK_END)), os.SEEK_END)
            return file.read(size)


def remove_old_logs(directory: Path, in_use: frozenset[Path]) -> None:
    """Remove all logs in `directory` except those in use, those of other running routers, and the `KEPT_FILES` newest
    of the others."""
    paths = (path for path in directory.glob("*.log") if path not in in_use and not _is_of_other_router(path))
    unused = sorted(paths, key=_modified_at)
    for path in unused[: max(0, len(unused) - KEPT_FILES)]:
        path.unlink(missing_ok=True)


def _is_of_other_router(path: Path) -> bool:
    """Return True if another running process has the pid in the name of the log."""
    _, dot, pid = path.stem.rpartition(".")
    return dot != "" and pid.isdigit() and pid != str(os.getpid()) and Path("/proc", pid).exists()


def _modified_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0  # another router has removed it
