"""Latency of ordinary requests beside clients and replicas that flood an engine, compared with HAProxy and nginx.

A flood makes an engine work as much as possible for each byte: pipelined requests that are refused, bodies in chunks of
one byte in both directions, tiny frames of a WebSocket, and bodies that are written byte by byte. One or eight
connections flood, each at a fixed rate of bytes, with or without TLS. Beside them ordinary requests come at a fixed
rate over their own connections. A latency starts when its request was due (`benchmarks.load.openloop`).

Each round starts every engine once, and measures all cells. The medians of the rounds are compared. A request without a
200 counts as failed, and a cell in which nothing is answered within ten seconds has that latency.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.harness.compiled import compiled_package
from benchmarks.harness.engines import Launch, responds, routers, scoring_path
from benchmarks.harness.processes import ROOT, BenchmarkError, free_port, run_json, running_child, wait_until
from benchmarks.harness.session import Session, parser, session
from benchmarks.tls import launch, write_certificate

RATE: Final = 400  # ordinary requests per second
CONNECTIONS: Final = 8
WARM_UP_SECONDS: Final = 0.5
TIMEOUT_SECONDS: Final = 10.0
READY_SECONDS: Final = 30.0
BODY: Final = '{"data": [[1, 2, 3, 4]]}'


@dataclass(frozen=True, slots=True)
class Flood:
    """What each connection sends: `start` once, then `unit` at `rate` bytes per second, `each` bytes in one write."""

    start: str
    unit: str = ""
    rate: float = 0
    each: int = 0


def _head(*lines: str) -> str:
    return "\r\n".join((f"POST {scoring_path()} HTTP/1.1", "Host: fe", "Authorization: Bearer @KEY@", *lines, "", ""))


FLOODS: Final = {
    "none": Flood(""),
    "pipelined bad requests": Flood("", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 1_600_000),
    "one-byte chunks up": Flood(_head("Transfer-Encoding: chunked"), "1\r\nx\r\n", 8_000_000),
    "one-byte chunks down": Flood(_head("X-Flood: 24000000", "Content-Length: 0")),
    "tiny WebSocket frames": Flood(
        _head("Connection: Upgrade", "Upgrade: websocket").replace("POST", "GET"), "\x82\x81\0\0\0\0x", 8_000_000
    ),
    "byte-wise writes": Flood(_head("Content-Length: 100000000"), "x", 20_000, 1),
}
FLOODERS: Final = (1, 8)
MAX_RATIO: Final = 2.0  # of a router's p99 and HAProxy's


def _start(name: str, directory: Path, values: dict[str, object]) -> Launch:
    launched = launch("router" if name == "compiled" else name, directory, values, 1)
    if name == "compiled":
        return Launch(argv=("env", "-C", str(compiled_package()), *launched.argv), ready=launched.ready)
    if name == "nginx":  # which needs to be told to open tunnels and to pass on bodies as they arrive
        path = directory / "nginx-tls.conf"
        text = path.read_text().replace("buffering on;", "buffering off;")
        text = text.replace(
            "upstream replicas", 'map $http_upgrade $option { default upgrade; "" ""; }\nupstream replicas'
        )
        path.write_text(text.replace('Connection "";', "Connection $option; proxy_set_header Upgrade $http_upgrade;"))
    return launched


@contextmanager
def running(name: str, current: Session, backend: str, pem: Path) -> Iterator[tuple[int, int]]:
    """Run an engine. Yield its port and its port for TLS."""
    port, tls_port = free_port(), free_port()
    values: dict[str, object] = {"PORT": port, "TLS_PORT": tls_port, "PEM": pem, "BACKEND": backend, "KEY": current.key}
    launched = _start(name, current.directory, values)
    with running_child(launched.argv, name=name, cpus=current.cpus.engine, directory=current.directory) as child:
        wait_until(lambda: responds(*launched.ready), child=child, seconds=READY_SECONDS)
        yield port, tls_port


@contextmanager
def flooding(flood: Flood, current: Session, port: int, count: int, tls: bool) -> Iterator[None]:
    """Flood a port over `count` connections."""
    if not count:
        yield
        return
    job = asdict(flood) | {"host": "127.0.0.1", "port": port, "connections": count, "tls": tls}
    command = ["setpriv", "--pdeathsig", "TERM", "--", "taskset", "-c", ",".join(map(str, current.cpus.load))]
    argv = [*command, sys.executable, "-m", "benchmarks.load.flooder"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(job).replace("@KEY@", current.key))
        process.stdin.close()
        yield
        if process.poll() is not None:
            raise BenchmarkError("the flood has ended")
    finally:
        process.terminate()
        process.wait()


def bystanders(current: Session, port: int, tls: bool) -> dict[str, float]:
    """Send ordinary requests. Return p50 and p99 in milliseconds, and the number of failures."""
    request = _head("Content-Type: application/json", f"Content-Length: {len(BODY)}").replace("@KEY@", current.key)
    job = {
        "host": "127.0.0.1", "port": port, "tls": tls, "request": request + BODY, "rate": RATE,
        "seconds": current.seconds, "warmup_seconds": WARM_UP_SECONDS, "connections": CONNECTIONS,
    }  # fmt: skip
    argv = (sys.executable, "-m", "benchmarks.load.openloop")
    try:
        found = json.loads(run_json(argv, job=json.dumps(job), cpus=current.cpus.load, timeout=current.seconds + 40))
    except BenchmarkError:  # some had no response in time
        return {"p50": TIMEOUT_SECONDS * 1e3, "p99": TIMEOUT_SECONDS * 1e3, "failed": float("nan")}
    return {"p50": found["p50"] / 1e3, "p99": found["p99"] / 1e3, "failed": found["not_200"] + found["lost"]}


def measure(name: str, current: Session, backend: str, pem: Path, floods: list[str]) -> Iterator[dict[str, object]]:
    """Measure one engine in one round."""
    with running(name, current, backend, pem) as ports:
        for what in floods:
            for tls in (False, True):
                for count in FLOODERS if what != "none" else (0,):
                    with flooding(FLOODS[what], current, ports[tls], count, tls):
                        found = bystanders(current, ports[tls], tls)
                    yield {"engine": name, "flood": what, "flooders": count, "tls": tls, **found}


def table(cells: list[dict[str, object]], engines: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of a table of medians, in Markdown."""
    yield "| flood | connections | " + " | ".join(f"{name}: p50, p99" for name in engines) + " |"
    yield "|---|---:|" + "---:|" * len(engines)
    for kind in _kinds(cells):
        row = [_label(kind), str(kind[2])]
        row += [", ".join(f"{_median(cells, name, kind, part):.1f}" for part in ("p50", "p99")) for name in engines]
        yield f"| {' | '.join(row)} |"


def ratios(cells: list[dict[str, object]], engines: tuple[str, ...]) -> Iterator[str]:
    """Yield for each router the floods beside which its p99 is more than twice HAProxy's."""
    for name in (name for name in engines if name in routers() and "haproxy" in engines):
        above = {}
        for kind in _kinds(cells):
            ratio = _median(cells, name, kind, "p99") / _median(cells, "haproxy", kind, "p99")
            if ratio > MAX_RATIO:
                above[f"{_label(kind)} by {kind[2]} ({ratio:.1f})"] = ratio
        found = ", ".join(sorted(above, key=lambda label: -above[label]))
        yield f"{name}: p99 more than {MAX_RATIO:g} times HAProxy's: {found or 'nowhere'}"


def _kinds(cells: list[dict[str, object]]) -> list[tuple[object, object, object]]:
    return list(dict.fromkeys((cell["flood"], cell["tls"], cell["flooders"]) for cell in cells))


def _label(kind: tuple[object, object, object]) -> str:
    return f"{kind[0]}{', TLS' if kind[1] else ''}"


def _median(cells: list[dict[str, object]], engine: str, kind: tuple[object, object, object], part: str) -> float:
    return statistics.median(
        float(str(cell[part]))
        for cell in cells
        if (cell["engine"], cell["flood"], cell["tls"], cell["flooders"]) == (engine, *kind)
    )


def main() -> None:
    """Run from the command line."""
    arguments = parser(__doc__ or "", engines=("haproxy", "nginx", *routers()), rounds=5, seconds=1)
    arguments.add_argument("--floods", nargs="+", default=list(FLOODS), choices=FLOODS)
    parsed = arguments.parse_args()
    with session("floods", parsed) as current:
        pem, port = write_certificate(current.directory), free_port()
        argv = (sys.executable, "-m", "benchmarks.load.flooding_replica", str(port))
        cells: list[dict[str, object]] = []
        with running_child(argv, name="replica", cpus=current.cpus.load, directory=current.directory) as child:
            wait_until(lambda: responds(port, "/"), child=child, seconds=READY_SECONDS)
            for number in range(1, current.rounds + 1):
                for name in current.engines:
                    for cell in measure(name, current, f"127.0.0.1:{port}", pem, parsed.floods):
                        cells.append({"round": number, **cell})
                        current.log(
                            f"  {number} {name:9} {cell['flood']:23} {'TLS' if cell['tls'] else 'plain':5} "
                            f"{cell['flooders']:2} p50 {cell['p50']:8.1f} ms, p99 {cell['p99']:8.1f} ms"
                        )
        for line in (*table(cells, current.engines), *ratios(cells, current.engines)):
            current.log(line)
        current.store(cells)


if __name__ == "__main__":
    main()
