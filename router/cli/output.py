"""Standard output and standard error of a command: pipes without a reader, full disks, closed descriptors, encodings.

Python reports a failure of buffered output when it exits, with a traceback and exit code 120. Commands have the exit
codes of `cli.handlers` instead.
"""

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from router.cli.handlers import EXIT_DONE, EXIT_FAILED
from router.telemetry.standard_error import protect_standard_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class OutputError(Exception):
    """Standard output cannot be written.

    Not an OSError, because argparse ignores those while it prints a help text.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror}")
        self.has_no_reader = isinstance(error, BrokenPipeError)


def run_with_output(command: Callable[[], int]) -> int:
    """Run `command`, write all of its output, and return its exit code.

    If standard output cannot be written, the command ends early with exit code 1 and a message, or without a message if
    the reader closed the pipe, such as `head`. Failures of standard error are ignored. A standard descriptor that is
    closed is opened as `/dev/null`. Characters that the encoding of standard output lacks are escaped, as on standard
    error.
    """
    protect_standard_error()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(sys.stdout.fileno(), "wb", closefd=False)),
        encoding=sys.stdout.encoding,
        errors="backslashreplace" if sys.stdout.errors == "strict" else sys.stdout.errors,
        line_buffering=sys.stdout.isatty(),
    )
    code = EXIT_DONE
    try:
        try:
            code = command()
        except SystemExit as exit_request:  # --help, --version
            code = exit_request.code if isinstance(exit_request.code, int) else EXIT_DONE
        sys.stdout.flush()
    except OutputError as error:
        if not error.has_no_reader:
            sys.stderr.write(f"azureml-fe: {error}\n")
        return code or EXIT_FAILED
    return code


class _Output(io.FileIO):
    """A file that raises OutputError at the first failure, and then discards what is written."""

    _failed = False

    def write(self, data: "ReadableBuffer", /) -> int:
        if self._failed:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self._failed = True
            raise OutputError(error) from error
