"""Probes: one HTTP GET on a connection of its own, and the loop that repeats it by the rules of Kubernetes.

A replica has two probes. Readiness decides whether it gets requests, liveness whether its process is replaced.

Does not contain: the effects of a result (`process_replicas`, `static_replicas`).
"""

import asyncio
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from router.model.services import Version
from router.net.address import host_port

STARTING_INTERVAL = 0.1
"""Seconds between readiness probes of a process that was never ready. It bounds the delay until readiness is detected.
The kubelet would wait for a whole period."""

NOT_READY_INTERVAL = 1.0
"""Seconds between readiness probes of other replicas that are not ready, unless the period is shorter. It is longer
than `STARTING_INTERVAL`, because such a replica may stay unready for hours."""

DEFAULT_PATH = "/"
"""Default path of probes. A server need not have it."""

_MAX_HEAD_BYTES = 16_384
_BODY_START_SECONDS = 0.1
"""Maximum wait for the start of a response body, see `_read_body_start`."""
_SETTINGS_POLL_SECONDS = 1.0
"""Interval at which a wait for the initial delay checks whether that setting was changed."""


class ProbeFailure(NamedTuple):
    """Why a probe failed."""

    reason: str
    """In one line: `status 503`, or `Connection refused`."""
    status: int | None = None
    """The status of the response; None if there was none."""
    is_refused: bool = False
    """True if nothing listens on the port."""


def is_success(status: int, path: str) -> bool:
    """Return True if a probe of `path` succeeds with this status.

    As in Kubernetes, these are 200 to 399. For `DEFAULT_PATH`, which the server need not have, they are also 400 to
    499, and 501 for a server without GET: they show that the server responds.
    """
    return 200 <= status < 400 or (path == DEFAULT_PATH and (400 <= status < 500 or status == 501))


async def probe(host: str, port: int, path: str, timeout_seconds: float) -> ProbeFailure | None:
    """Send a GET request for `path`. Return None if it succeeds within the timeout, else the failure."""
    try:
        async with asyncio.timeout(timeout_seconds):
            status = await _get_status(host, port, path)
    except TimeoutError:
        return ProbeFailure(f"no response within {timeout_seconds:g} s")
    except OSError as error:
        # asyncio's own text repeats the address. The number of a name resolution error is negative.
        number = error.errno or 0
        text = os.strerror(number) if number > 0 else error.strerror
        return ProbeFailure(text or type(error).__name__, is_refused=number == errno.ECONNREFUSED)
    except (EOFError, ValueError, asyncio.LimitOverrunError):
        return ProbeFailure("no HTTP response")
    return None if is_success(status, path) else ProbeFailure(f"status {status}", status)


async def _get_status(host: str, port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection(host, port, limit=_MAX_HEAD_BYTES)
    try:
        head = f"GET {path} HTTP/1.1\r\nHost: {host_port(host, port)}\r\nUser-Agent: azureml-fe-probe\r\n"
        writer.write(f"{head}Accept: */*\r\nConnection: close\r\n\r\n".encode())
        response_head = await reader.readuntil(b"\r\n\r\n")
        protocol, _, rest = response_head.partition(b" ")
        status = rest[:3]
        if not protocol.startswith(b"HTTP/1.") or len(status) != 3 or not status.isdigit():
            raise ValueError("not an HTTP status line")
        await _read_body_start(reader)
        return int(status)
    finally:
        writer.close()


async def _read_body_start(reader: asyncio.StreamReader) -> None:
    """Read the start of the body. Many servers log an error if the client closes the connection before that."""
    try:
        async with asyncio.timeout(_BODY_START_SECONDS):
            await reader.read(_MAX_HEAD_BYTES)
    except (TimeoutError, OSError):
        pass  # only the status matters, and it has been read


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """The settings of one probe, with the meanings of Kubernetes. Times are in seconds."""

    initial_delay: float
    period: float
    timeout: float
    success_threshold: int
    failure_threshold: int


def liveness_settings(version: Version) -> ProbeSettings:
    """Return the settings of a version's liveness probe."""
    return ProbeSettings(
        version.initial_delay_seconds,
        version.period_seconds,
        version.timeout_seconds,
        version.success_threshold,
        version.failure_threshold,
    )


def readiness_settings(version: Version) -> ProbeSettings:
    """Return the settings of a version's readiness probe."""
    return ProbeSettings(
        version.readiness_initial_delay_seconds,
        version.readiness_period_seconds,
        version.readiness_timeout_seconds,
        version.readiness_success_threshold,
        version.readiness_failure_threshold,
    )


class ProbeResult(NamedTuple):
    """The last result of a probe."""

    at: float
    """Seconds since the epoch."""
    failure: str | None
    """The reason; None after a success."""


class ProbeTracker:
    """The state of a probe. As in Kubernetes, it changes after a number of consecutive results."""

    __slots__ = ("_contrary_results", "ok")

    def __init__(self, *, ok: bool) -> None:
        self.ok = ok
        self._contrary_results = 0

    def record(self, ok: bool, *, success_threshold: int, failure_threshold: int) -> bool:
        """Count one result; return True if it changed `ok`."""
        if ok == self.ok:
            self._contrary_results = 0
            return False
        self._contrary_results += 1
        if self._contrary_results < (success_threshold if ok else failure_threshold):
            return False
        self.ok = ok
        self._contrary_results = 0
        return True


def extra_timeout(version: Version, *, has_requests: bool) -> float:
    """Return the seconds to add to the timeout of a probe.

    A server with one thread, such as gunicorn's sync worker, responds to a probe only after it has handled its current
    request. That may take the whole scoring timeout, or longer if the request was abandoned. During this time the
    replica is busy, not broken.
    """
    return max(version.scoring_timeout_ms, version.abandoned_timeout_ms) / 1000 if has_requests else 0.0


class Prober:
    """Probes one replica while `run` runs, and reports changes of its state."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        path: Callable[[], str],
        settings: Callable[[], ProbeSettings],
        extra_timeout: Callable[[], float],
        on_change: Callable[[bool, str], None],
        on_failure: Callable[[ProbeFailure], None] | None = None,
        ok: bool = False,
        starting_interval: float = NOT_READY_INTERVAL,
    ) -> None:
        """`path`, `settings` and `extra_timeout` (in seconds) are called before each probe, as the values may change.

        `ok` is the initial state: False for readiness, True for liveness. `on_change` is called with a new state, and
        with the reason if the state is False. `on_failure` is called with a failure that changes no state, if at least
        `failure_threshold` consecutive probes have failed. `starting_interval` is the time in seconds between probes
        until the first change to True, unless the period is shorter.
        """
        self._host = host
        self._port = port
        self._path = path
        self._settings = settings
        self._extra_timeout = extra_timeout
        self._on_change = on_change
        self._on_failure = on_failure
        self._tracker = ProbeTracker(ok=ok)
        self._interval = starting_interval
        self.last_result: ProbeResult | None = None

    async def run(self) -> None:
        """After the initial delay, probe until cancelled."""
        await self._wait_initial_delay()
        tracker = self._tracker
        failures = 0
        while True:
            settings = self._settings()
            timeout = settings.timeout + self._extra_timeout()
            failure = await probe(self._host, self._port, self._path(), timeout)
            reason = None if failure is None else failure.reason
            self.last_result = ProbeResult(time.time(), reason)
            has_changed = tracker.record(
                failure is None,
                success_threshold=settings.success_threshold,
                failure_threshold=settings.failure_threshold,
            )
            failures = 0 if failure is None else failures + 1
            if has_changed:
                if tracker.ok:
                    self._interval = NOT_READY_INTERVAL
                self._on_change(tracker.ok, reason or "")
            elif failure is not None and failures >= settings.failure_threshold and self._on_failure is not None:
                self._on_failure(failure)
            await asyncio.sleep(settings.period if tracker.ok else min(settings.period, self._interval))

    async def _wait_initial_delay(self) -> None:
        """Wait for the initial delay. The setting may change during the wait."""
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        while (remaining := started_at + self._settings().initial_delay - loop.time()) > 0:  # noqa: ASYNC110 (no event)
            await asyncio.sleep(min(remaining, _SETTINGS_POLL_SECONDS))
