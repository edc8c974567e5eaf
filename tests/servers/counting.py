"""Starts `counting_replicas.py` as a process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_PROGRAM = Path(__file__).with_name("counting_replicas.py")
_STOP_TIMEOUT_SECONDS = 20.0


class CountingReplicas:
    """Replicas in one process, each of which should have at most one request at a time."""

    def __init__(self, count: int, delay_ms: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), "127.0.0.1", "0", str(count), str(delay_ms), "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ports: list[int] = json.loads(self._read_line())

    def statistics(self) -> dict[str, Any]:
        """Return the counters, see `counting_replicas.py`."""
        self._send("stats")
        statistics: dict[str, Any] = json.loads(self._read_line())
        return statistics

    def peak(self) -> int:
        """Return the maximum number of requests that one replica had at the same time."""
        return int(max(self.statistics()["peak"].values()))

    def over_limit(self, *, after: float = 0.0) -> list[tuple[float, int, int]]:
        """Return when a replica had more than one request: time, port, requests. `after` is a monotonic time."""
        return [tuple(each) for each in self.statistics()["over_limit"] if each[0] >= after]

    def reset(self) -> None:
        """Set all counters to zero."""
        self._send("reset")

    def stop(self) -> None:
        with self._process:
            self._process.communicate(timeout=_STOP_TIMEOUT_SECONDS)

    def _send(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()
