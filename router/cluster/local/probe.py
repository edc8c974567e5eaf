"""Readiness probe: one GET over a connection of its own, and the loop that repeats it.

Lives here: how a replica is asked and how often. Must not live here: what readiness leads to (`processes`,
`addresses`).
"""

import asyncio
import os
from collections.abc import Callable

from router.authority import authority
from router.cluster.local.health import Health
from router.services import Version

STARTING_INTERVAL = 0.1
"""Seconds between probes of a process that starts: what a client waits longer than needed, at most."""

_LONGEST_HEAD = 16_384
_FAREWELL_SECONDS = 0.1


async def probe(host: str, port: int, path: str, timeout_seconds: float) -> str | None:
    """GET `path`; None when it is answered with a status below 500 in time, else why it counts as a failure."""
    try:
        async with asyncio.timeout(timeout_seconds):
            status = await _ask(host, port, path)
    except TimeoutError:
        return f"no answer within {timeout_seconds:g} s"
    except OSError as error:
        # asyncio's own text would repeat the address; that of a name which is not found has a negative number.
        number = error.errno or 0
        known = os.strerror(number) if number > 0 else error.strerror
        return known or type(error).__name__
    except (EOFError, ValueError, asyncio.LimitOverrunError):
        return "no HTTP answer"
    return None if status < 500 else f"status {status}"


async def _ask(host: str, port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection(host, port, limit=_LONGEST_HEAD)
    try:
        head = f"GET {path} HTTP/1.1\r\nHost: {authority(host, port)}\r\nUser-Agent: azureml-fe-probe\r\n"
        writer.write(f"{head}Accept: */*\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        protocol, _, rest = answer.partition(b" ")
        status = rest[:3]
        if not protocol.startswith(b"HTTP/1.") or len(status) != 3 or not status.isdigit():
            raise ValueError("not an HTTP status line")
        await _farewell(reader)
        return int(status)
    finally:
        writer.close()


async def _farewell(reader: asyncio.StreamReader) -> None:
    """Take the body's beginning: many servers log an error when a client resets the connection they still write to."""
    try:
        async with asyncio.timeout(_FAREWELL_SECONDS):
            await reader.read(_LONGEST_HEAD)
    except (TimeoutError, OSError):
        pass  # the status has been read, which is all that counts


class Watch:
    """Probes one replica for as long as `run` runs, and says when its readiness turns."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        path: Callable[[], str],
        version: Callable[[], Version],
        busy: Callable[[], bool],
        turned: Callable[[bool, str], None],
        silent: Callable[[str], None],
        interval: float = STARTING_INTERVAL,
    ) -> None:
        """`path` and `version` are asked before each probe, as they may change. `busy` says whether requests are in
        flight there. `turned` is called with the new readiness and, when lost, the reason; `silent` with the reason
        of each further failure while not ready, once there were `failure_threshold` in a row. `interval` is the time
        between probes while not ready, in seconds."""
        self._host = host
        self._port = port
        self._path = path
        self._version = version
        self._busy = busy
        self._turned = turned
        self._silent = silent
        self._interval = interval

    async def run(self) -> None:
        """Probe until cancelled."""
        health = Health()
        failures = 0
        while True:
            version = self._version()
            reason = await probe(self._host, self._port, self._path(), self.patience(version))
            turned = health.seen(
                reason is None,
                success_threshold=version.success_threshold,
                failure_threshold=version.failure_threshold,
            )
            failures = 0 if reason is None else failures + 1
            if turned:
                self._turned(health.ready, reason or "")
            elif reason is not None and not health.ready and failures >= version.failure_threshold:
                self._silent(reason)
            await asyncio.sleep(version.period_seconds if health.ready else self._interval)

    def patience(self, version: Version) -> float:
        """Seconds to wait for an answer. A server with one thread, such as gunicorn's sync worker, answers a probe only
        after the request it works on, which may rightly take the scoring timeout: it is busy then and not broken."""
        extra = version.scoring_timeout_ms / 1000 if self._busy() else 0.0
        return version.timeout_seconds + extra
