"""Scoring requests: one by hand to verify the answer, many with wrk."""

import http.client
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.harness.backends import ANSWER
from benchmarks.harness.engines import Running, Target, scoring_path
from benchmarks.harness.processes import ROOT, BenchmarkError, Cpus, others_cpu_seconds, run_json

BODY: Final = '{"data": [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]}'
SCRIPTS: Final = ROOT / "benchmarks" / "load"
DISTURBED_CPUS: Final = 0.15  # a quiet machine's clock ticks, kernel threads and rounding stay below it


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What wrk measured, and two facts that tell whether to believe it.

    ``engine_cpu`` is the engine's CPU seconds per second: well below 1.0, the engine was not what limited the rate.
    ``others_cpu`` is CPU seconds per second that went to processes outside the benchmark or that a hypervisor kept.
    """

    requests_per_second: float
    engine_cpu: float | None
    others_cpu: float

    @property
    def disturbance(self) -> str:
        """A remark for who watches, when others took so much that the figure means little."""
        return f"  (disturbed: others used {self.others_cpu:.2f} CPUs)" if self.others_cpu > DISTURBED_CPUS else ""


def verify(engine: Running, target: Target) -> None:
    """Raises BenchmarkError unless the first and the last service answer what the replica answers."""
    for service in {target.services[0], target.services[-1]}:
        connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=30)
        headers = {"Authorization": f"Bearer {target.key}", "Content-Type": "application/json"}
        connection.request("POST", scoring_path(service), BODY, headers)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        if answer.status != 200 or body != ANSWER:
            raise BenchmarkError(f"{engine.name}: {service} answered {answer.status} {body!r}, not 200 {ANSWER!r}")


def script(directory: Path, target: Target, *, cycle: bool) -> Path:
    """Write wrk's script, with the key in it, readable by this user alone."""
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
    """wrk's command line, with one thread."""
    url = f"{scheme}://127.0.0.1:{engine.port}{scoring_path(target.services[0])}"
    return ("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(lua), url)


def measure(
    engine: Running, target: Target, *, lua: Path, connections: int, seconds: int, cpus: Cpus, scheme: str = "http"
) -> Rate:
    """Run wrk. Raises BenchmarkError when one answer was not a success or one connection failed."""
    argv = wrk_argv(engine, target, lua=lua, connections=connections, seconds=seconds, scheme=scheme)
    return rate_of(argv, engine, connections=connections, seconds=seconds, cpus=cpus)


def rate_of(argv: tuple[str, ...], engine: Running, *, connections: int, seconds: int, cpus: Cpus) -> Rate:
    """What a command line of wrk measures. Raises as `measure` does."""
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
    """wrk beside whatever else goes on; who starts it ends it."""
    pinned = ("setpriv", "--pdeathsig", "TERM", "--", "taskset", "-c", ",".join(map(str, cpus.load)), *argv)
    return subprocess.Popen(pinned, stdout=subprocess.DEVNULL, start_new_session=True)
