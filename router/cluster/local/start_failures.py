"""How the replicas of one version have failed to start, as text for operators. No I/O; time is an argument.

A program that is broken fails again and again in the same way. The first failure is described with lines of
its output. The same failure is then reported only when its number has doubled.
"""

from collections.abc import Sequence
from typing import NamedTuple

from router.model.problems import Problem, with_note
from router.model.services import VersionKey

_OUTPUT_LINES = 10
_TRACEBACK_LINES = 6


class StartFailure(NamedTuple):
    """One failed start."""

    reason: str
    """In one line: `exit code 3`, or `no process: Permission denied`."""
    exception: str = ""
    """The exception that ended the program, in one line; "" if there is none."""
    output: tuple[str, ...] = ()
    """The lines of the output that probably have the cause."""
    log: str = ""
    """Path of the whole output; "" if there is none."""

    @property
    def headline(self) -> str:
        """The failure in one line: `cannot start (exit code 3): RuntimeError: no weights (score.py, line 12)`."""
        return f"cannot start ({self.reason})" + (f": {self.exception}" if self.exception else "")


def excerpt(output: str, traceback: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the last lines of `output` that are not blank. Servers may log much after the exception that ends them. So
    if these lines do not have the end of `traceback`, most of them are replaced by it."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()][-_OUTPUT_LINES:]
    if traceback and traceback[-1].rstrip() not in lines:
        cause = [line.rstrip() for line in traceback if line.strip()][-_TRACEBACK_LINES:]
        lines = [*cause, "...", *lines[len(cause) + 1 - _OUTPUT_LINES :]]
    return tuple(lines)


class StartFailures:
    """The failures of one version since a replica was ready. `_count` is the number of equal ones."""

    def __init__(self) -> None:
        self._last: StartFailure | None = None
        self._count = 0
        self._first_at = self._last_at = 0.0
        self._retry_at = 0.0

    def add(self, failure: StartFailure, now: float, delay: float) -> str | None:
        """Count a failure. Return a text for the log, or None if it would only repeat the previous one. The next start
        is in `delay` seconds."""
        if self._last is None or failure.headline != self._last.headline:
            self._count, self._first_at = 0, now
        self._last, self._count, self._last_at, self._retry_at = failure, self._count + 1, now, now + delay
        if self._count & (self._count - 1):
            return None
        return self._describe(failure, now, with_output=self._count == 1)

    def clear(self) -> None:
        """Forget all failures: a replica was ready, or the program has changed."""
        self._last = None

    def problem(self, key: VersionKey, now: float) -> Problem | None:
        """Return the last failure as a problem of this version; None if there is none."""
        if self._last is None:
            return None
        return Problem(
            self._last.headline, *key, detail=self._repeats(), output="\n".join(self._output_lines(self._last, now))
        )

    def _describe(self, failure: StartFailure, now: float, *, with_output: bool) -> str:
        """Return a failure as text. The first line is its headline; the others are details."""
        lines = self._output_lines(failure, now)
        return "\n".join([with_note(failure.headline, self._repeats()), *(lines if with_output else lines[-1:])])

    def _repeats(self) -> str:
        return f"{self._count} times in {self._last_at - self._first_at:.0f} s" if self._count > 1 else ""

    def _output_lines(self, failure: StartFailure, now: float) -> list[str]:
        wait = self._retry_at - now
        retry = f"next start in {wait:.2g} s" if wait > 0 else "starting again"
        return [*failure.output, f"whole output: {failure.log}; {retry}" if failure.log else retry]
