"""Makes `sys.stderr` a stream that never blocks, for processes that must serve although nobody reads their log.

The application log, the console of `azureml-fe local`, warnings and tracebacks are all written to `sys.stderr`, so
they stay in order. `LineWriter` has the reasons for a thread.
"""

import atexit
import io
import logging
import os
import sys
from typing import TYPE_CHECKING

from router.telemetry import log
from router.telemetry.line_writer import LineWriter

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_log = logging.getLogger("router.telemetry")

_EXIT_SECONDS = 1.0
"""Maximum time at exit to write the remaining lines."""

_STANDARD_DESCRIPTORS = (0, 1, 2)


def protect_standard_error() -> None:
    """Replace `sys.stderr`. Open `/dev/null` for each standard descriptor that the parent process has closed, because a
    socket would get its number.

    At exit the remaining lines are written for at most a second. Has no effect if `sys.stderr` was replaced before.
    """
    _open_missing_descriptors()
    if sys.stderr is not sys.__stderr__:
        return
    fd, encoding = (sys.stderr.fileno(), sys.stderr.encoding) if sys.stderr is not None else (2, "utf-8")
    writer = LineWriter(fd, on_recovered=_report_dropped)
    stream = _LineStream(fd, writer)
    sys.stderr = io.TextIOWrapper(stream, encoding=encoding, errors="backslashreplace", line_buffering=True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    atexit.register(_finish, writer)


def dropped_lines() -> int:
    """Return the number of lines that this process could not write to standard error."""
    stream = getattr(sys.stderr, "buffer", None)
    return stream.writer.dropped if isinstance(stream, _LineStream) else 0


class _LineStream(io.RawIOBase):
    """Passes what is written to a `LineWriter`."""

    def __init__(self, fd: int, writer: LineWriter) -> None:
        self._fd = fd
        self.writer = writer

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: "ReadableBuffer") -> int:
        text = bytes(data)
        self.writer.write(text)
        return len(text)


def _report_dropped(lines: int) -> None:
    log.event(_log, logging.WARNING, "log lines dropped, standard error was blocked or failed", lines=lines)


def _finish(writer: LineWriter) -> None:
    log.report_repeats(at_exit=True)
    sys.stderr.flush()
    writer.close(_EXIT_SECONDS)


def _open_missing_descriptors() -> None:
    for fd in _STANDARD_DESCRIPTORS:
        try:
            os.fstat(fd)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) == fd:  # the lowest free number
                os.set_inheritable(fd, True)
