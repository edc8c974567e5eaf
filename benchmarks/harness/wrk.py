"""Scoring requests: single ones to verify the response, many with wrk."""

import http.client
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.harness.backends import RESPONSE_BODY
from benchmarks.harness.engines import Running, Target, scoring_path
from benchmarks.harness.processes import ROOT, BenchmarkError, Cpus, others_cpu_seconds, run_json

BODY: Final = '{"data": [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]}'
SCRIPTS: Final = ROOT / "benchmarks" / "load"
DISTURBED_CPUS: Final = 0.15  # above clock ticks, kernel threads and rounding errors of an idle machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """The result of wrk, and two values that show how reliable it is.

    ``engine_cpu`` is the engine's CPU seconds per second. If it is well below 1.0, the engine did not limit the rate.
    ``others_cpu`` is the CPU seconds per second of processes outside the benchmark and of the hypervisor.
    """

    requests_per_second: float
    engine_cpu: float | None
    others_cpu: float

    @property
    def disturbance(self) -> str:
        """A remark if other processes used so much CPU that the result is unreliable."""
        return f"  (disturbed: others used {self.others_cpu:.2f} CPUs)" if self.others_cpu > DISTURBED_CPUS else ""


def verify(engine: Running, target: Target) -> None:
    """Raise BenchmarkError unless the first and the last service return the replica's response."""
    for service in {target.services[0], target.services[-1]}:
        connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=30)
        headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
        connection.request("POST", scoring_path(service), BODY, headers)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        if response.status != 200 or body != RESPONSE_BODY:
            got = f"{response.status} {body!r}"
            raise BenchmarkError(f"{engine.name}: the response of {service} is {got}, not 200 {RESPONSE_BODY!r}")


def script(directory: Path, target: Target, *, cycle: bool) -> Path:
    """Write wrk's script, which contains the key, readable only by this user."""
    template = "score_many.lua" if cycle else "score.lua"
    text = (SCRIPTS / template).read_text() + "\n" + (SCRIPTS / "result.lua").read_text()
    paths = " ".join(scoring_path(service) for service in target.services)
    for name, value in (("BODY", BODY), ("KEY", target.key), ("PATHS", paths)):
        text = text.replace(f"@{name}@", value)
    path = directory / template
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def wrk_argv(
    engine: Running, target: Target, *, lua: Path, connections: int, seconds: int, scheme: str = "http"
) -> tuple[str, ...]:
    """Return wrk's command line, with one thread."""
    url = f"{scheme}://127.0.0.1:{engine.port}{scoring_path(target.services[0])}"
    return ("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(lua), url)


def measure(
    engine: Running, target: Target, *, lua: Path, connections: int, seconds: int, cpus: Cpus, scheme: str = "http"
) -> Rate:
    """Run wrk. Raises BenchmarkError if a response is no success or a connection failed."""
    argv = wrk_argv(engine, target, lua=lua, connections=connections, seconds=seconds, scheme=scheme)
    return rate_of(argv, engine, connections=connections, seconds=seconds, cpus=cpus)


def rate_of(argv: tuple[str, ...], engine: Running, *, connections: int, seconds: int, cpus: Cpus) -> Rate:
    """Run this command line of wrk. Raises like `measure`."""
    others = others_cpu_seconds()
    before = engine.child.cpu_seconds() if engine.child else 0.0
    output = run_json(argv, job="", cpus=cpus.load, timeout=seconds + 30)
    after = engine.child.cpu_seconds() if engine.child else 0.0
    result = next(json.loads(line[7:]) for line in output.splitlines() if line.startswith("RESULT "))
    errors = {name: result[name] for name in ("status", "connect", "read", "write", "timeout") if result[name]}
    if errors or not result["requests"] or "Non-2xx" in output:
        raise BenchmarkError(
            f"{engine.name}, {connections} connections: {result['requests']} requests, errors {errors}"
        )
    elapsed = result["microseconds"] / 1e6
    return Rate(
        requests_per_second=result["requests"] / elapsed,
        engine_cpu=(after - before) / elapsed if engine.child else None,
        others_cpu=max(0.0, others_cpu_seconds() - others) / elapsed,
    )


def background(argv: tuple[str, ...], cpus: Cpus) -> "subprocess.Popen[bytes]":
    """Start wrk in the background. The caller terminates it."""
    pinned = ("setpriv", "--pdeathsig", "TERM", "--", "taskset", "-c", ",".join(map(str, cpus.load)), *argv)
    return subprocess.Popen(pinned, stdout=subprocess.DEVNULL, start_new_session=True)
