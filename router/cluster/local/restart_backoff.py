"""Decides when a replica that exited may be replaced. No I/O; time is an argument."""

from router.net.backoff import Backoff

FIRST_DELAY = 0.5
"""Seconds until the replacement of a replica that failed to start. It keeps the log of a crash loop readable."""

MAX_DELAY = 30.0
"""Maximum seconds between starts of a replica that always fails. One start may cost several CPU seconds, which
sets a lower limit. After a repair the operator waits for the next start, which sets an upper limit."""

STABLE_SECONDS = 60.0
"""A replica that was ready for this time shows that its program works. Earlier failures no longer count then."""


class RestartBackoff:
    """Delays between the exit of a replica and its replacement, for one version.

    The first replica that exits is replaced at once if it had been ready. Otherwise the delay is `FIRST_DELAY`,
    and each further failure doubles it, up to `MAX_DELAY`. Replicas that exit during one
    delay count as one failure, since all run the same program. A replica that was started after the last failure and
    was ready for `STABLE_SECONDS` resets the delay.
    """

    __slots__ = ("_backoff", "_has_failed", "_last_failure", "_until")

    def __init__(self) -> None:
        self._backoff = Backoff(FIRST_DELAY, MAX_DELAY)
        self._has_failed = False
        self._until = 0.0
        self._last_failure = 0.0

    def on_exit(self, now: float, ready_for: float | None) -> float:
        """Record that a replica exited. Return the seconds to wait before its replacement starts. `ready_for` is how
        many seconds the replica was ready, None if it never was."""
        if ready_for is not None and ready_for >= STABLE_SECONDS:
            return 0.0
        self._last_failure = now
        if now < self._until:
            return self._until - now
        is_immediate = ready_for is not None and not self._has_failed
        delay = 0.0 if is_immediate else self._backoff.next_delay()
        self._has_failed = True
        self._until = now + delay
        return delay

    def on_ready(self, started_at: float, ready_for: float) -> None:
        """Record that a replica that was started at `started_at` has been ready for `ready_for` seconds."""
        if ready_for >= STABLE_SECONDS and started_at >= self._last_failure:
            self._backoff.reset()
            self._has_failed = False
            self._until = 0.0
