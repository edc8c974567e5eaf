"""HTTP/2 of each engine: requests per second with many streams on few connections, and ordinary requests beside floods.

The load is h2load over plain connections with prior knowledge, small JSON POSTs, the same nginx behind all. The line
`http/1.1` is h2load over the same number of connections with HTTP/1.1, one request at a time on each. With
`--floods` ordinary requests of HTTP/1.1 come at a fixed rate beside one client that floods the engine with HTTP/2 and
connects again whenever it is disconnected; the CPU time and the growth of memory are those of the engine meanwhile.
"""

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.floods import bystanders
from benchmarks.harness.backends import nginx_backend
from benchmarks.harness.engines import ENGINES, READY_SECONDS, Launch, Running, Target, responds, routers, scoring_path
from benchmarks.harness.processes import ROOT, BenchmarkError, free_port, running_child, wait_until
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import BODY, verify
from benchmarks.load.http2_flooder import FLOODS

# Connections and streams on each; no streams: HTTP/1.1.
LOADS: Final = ((1, 0), (1, 1), (1, 32), (1, 256), (32, 0), (32, 1), (32, 32), (32, 256))
_RATE: Final = re.compile(r"finished in [\d.]+m?s, ([\d.]+) req/s")


def _launch(name: str, directory: Path, port: int, target: Target) -> Launch:
    launch = ENGINES[name].launch
    assert launch is not None
    launched = launch(directory, port, target)
    if name in routers():
        return replace(
            launched,
            argv=(*launched.argv, "--http2", "on", "--http2-max-streams", "256", "--max-connection-requests", "0"),
        )
    path = directory / ENGINES[name].settings[0]
    text = path.read_text()
    text = text.replace("nbthread 1", "nbthread 1\n    tune.h2.max-concurrent-streams 256")
    path.write_text(text)
    return launched


@contextmanager
def running(name: str, current: Session, target: Target) -> Iterator[Running]:
    """Run an engine with HTTP/2."""
    port = free_port()
    launched = _launch(name, current.directory, port, target)
    with running_child(launched.argv, name=name, cpus=current.cpus.engine, directory=current.directory) as child:
        wait_until(lambda: responds(*launched.ready), child=child, seconds=READY_SECONDS)
        yield Running(name=name, port=port, child=child, ready_seconds=0.0)


def rate(engine: Running, current: Session, connections: int, streams: int) -> float:
    """Return the requests per second. Raises `BenchmarkError` if a response is no success."""
    body = current.directory / "body"
    body.write_text(BODY)
    protocol = ["-m", str(streams)] if streams else ["--h1", "-m", "1"]
    command = [
        "taskset", "-c", ",".join(map(str, current.cpus.load)), "h2load", *protocol, "-c", str(connections),
        "-D", str(current.seconds), "--warm-up-time", "1", "-d", str(body), "-H", "content-type: application/json",
        "-H", f"authorization: Bearer {current.key}", f"http://127.0.0.1:{engine.port}{scoring_path()}",
    ]  # fmt: skip
    output = subprocess.run(command, capture_output=True, text=True, timeout=current.seconds + 60).stdout
    found = _RATE.search(output)
    if found is None or " 0 failed, 0 errored, 0 timeout" not in output:
        raise BenchmarkError(f"{engine.name}, {connections} connections, {streams} streams: {output}")
    return float(found[1])


@contextmanager
def flooding(flood: str, current: Session, port: int) -> Iterator[None]:
    """Flood a port with HTTP/2."""
    command = ["setpriv", "--pdeathsig", "TERM", "--", "taskset", "-c", ",".join(map(str, current.cpus.load))]
    process = subprocess.Popen(
        [*command, sys.executable, "-m", "benchmarks.load.http2_flooder"], stdin=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps({"flood": flood, "port": port, "path": scoring_path(), "key": current.key}))
        process.stdin.close()
        yield
        if process.poll() is not None:
            raise BenchmarkError("the flood has ended")
    finally:
        process.terminate()
        process.wait()


def measure_floods(engine: Running, current: Session, floods: list[str]) -> Iterator[dict[str, object]]:
    """Measure ordinary requests beside each flood."""
    assert engine.child is not None
    for flood in floods:
        before = engine.child.cpu_seconds(), engine.child.memory().rss
        with flooding(flood, current, engine.port) if flood != "none" else nullcontext():
            found = bystanders(current, engine.port, tls=False)
        cpu, memory = engine.child.cpu_seconds() - before[0], engine.child.memory().rss - before[1]
        yield {"engine": engine.name, "flood": flood, **found, "cpu_seconds": cpu, "memory_bytes": memory}


def main() -> None:
    """Run from the command line."""
    arguments = parser(__doc__ or "", engines=("haproxy", *routers()), rounds=3, seconds=2)
    arguments.add_argument("--floods", nargs="*", default=None, choices=FLOODS, help="measure these floods instead")
    parsed = arguments.parse_args()
    with (
        session("http2", parsed) as current,
        nginx_backend(cpus=current.cpus, directory=current.directory) as port,
    ):
        target = Target(backends=(f"127.0.0.1:{port}",), key=current.key)
        cells: list[dict[str, object]] = []
        for number in range(1, current.rounds + 1):
            for name in current.engines:
                with running(name, current, target) as engine:
                    verify(engine, target)
                    if parsed.floods is not None:
                        for cell in measure_floods(engine, current, ["none", *parsed.floods]):
                            cells.append({"round": number, **cell})
                            current.log(f"  {number} {json.dumps(cell)}")
                        continue
                    for connections, streams in LOADS:
                        value = rate(engine, current, connections, streams)
                        cells.append(
                            {"round": number, "engine": name, "connections": connections, "streams": streams}
                            | {"requests_per_second": value}
                        )
                        label = f"{streams:4} streams" if streams else "    http/1.1"
                        current.log(f"  {number} {name:9} {connections:3} connections {label} {value:9,.0f} requests/s")
        current.store(cells, load_of_http2="h2load")
        if parsed.floods is None:
            for line in _table(cells, current.engines):
                current.log(line)


def _median(cells: list[dict[str, object]], engine: str, load: tuple[int, int]) -> float:
    found = [c for c in cells if c["engine"] == engine and (c["connections"], c["streams"]) == load]
    return statistics.median(float(str(cell["requests_per_second"])) for cell in found)


def _table(cells: list[dict[str, object]], engines: tuple[str, ...]) -> Iterator[str]:
    yield "| connections | streams | " + " | ".join(engines) + " |"
    yield "|---:|---:|" + "---:|" * len(engines)
    for load in LOADS:
        row = [f"{_median(cells, name, load):,.0f}" for name in engines]
        yield f"| {load[0]} | {load[1] or 'HTTP/1.1'} | {' | '.join(row)} |"


if __name__ == "__main__":
    main()
