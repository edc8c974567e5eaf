"""Large bodies: 16 concurrent uploads and 16 concurrent downloads of 100 MB through each engine.

Measures bytes per second, relative to nginx (which streams here: ``proxy_request_buffering off; proxy_buffering off``),
and the growth of the engine's memory: the sum of its processes' peak RSS during the transfers minus their RSS before.
The client counts every byte of a download. For an upload, the replica responds with the number of bytes that it read.
"""

import json
import sys
from typing import Final

from benchmarks.harness.backends import nginx_backend, sink_backend
from benchmarks.harness.engines import Running, Target, running_engine, scoring_path
from benchmarks.harness.processes import run_json
from benchmarks.harness.session import Session, parser, session

ENGINES: Final = ("direct", "haproxy", "nginx", "envoy", "aiohttp", "bare", "router")
CONNECTIONS: Final = 16
BODY_BYTES: Final = 104_857_600  # the router's limit, exactly
QUICK_BODY_BYTES: Final = 8_388_608
WARM_UP_BYTES: Final = 65_536
TIMEOUT_SECONDS: Final = 150.0


def transfer(engine: Running, current: Session, *, direction: str, size: int, connections: int) -> float:
    """Run the transfers. Return their total bytes per second. Raises BenchmarkError if a byte is missing."""
    upload = direction == "upload"
    path = scoring_path() if upload else scoring_path().replace("/score", "/large")
    length = f"Content-Type: application/octet-stream\r\nContent-Length: {size}\r\n" if upload else ""
    head = (
        f"{'POST' if upload else 'GET'} {path} HTTP/1.1\r\nHost: 127.0.0.1:{engine.port}\r\n"
        f"Authorization: Bearer {current.key}\r\n{length}\r\n"
    )
    job = {
        "host": "127.0.0.1",
        "port": engine.port,
        "head": head,
        "connections": connections,
        "upload": size if upload else 0,
        "download": None if upload else size,
    }
    argv = (sys.executable, "-m", "benchmarks.load.transfer")
    result = json.loads(run_json(argv, job=json.dumps(job), cpus=current.cpus.load, timeout=TIMEOUT_SECONDS))
    return float(result["bytes"] / result["seconds"])


def measure(engine: Running, current: Session, *, direction: str, size: int) -> dict[str, float]:
    """Measure the rate and the memory of one engine in one direction."""
    if engine.child is None:
        return {"bytes_per_second": transfer(engine, current, direction=direction, size=size, connections=CONNECTIONS)}
    before = engine.child.memory()
    engine.child.reset_peaks()
    cpu = engine.child.cpu_seconds()
    rate = transfer(engine, current, direction=direction, size=size, connections=CONNECTIONS)
    return {
        "bytes_per_second": rate,
        "engine_cpu_seconds": engine.child.cpu_seconds() - cpu,
        "rss_before": before.rss,
        "pss_before": before.pss,
        "rss_growth": engine.child.peak_rss() - before.rss,
    }


def main() -> None:
    """Run from the command line."""
    arguments = parser(__doc__, engines=ENGINES, rounds=3, seconds=0)
    arguments.add_argument("--bytes", type=int, default=BODY_BYTES, help="size of one body")
    parsed = arguments.parse_args()
    size = QUICK_BODY_BYTES if parsed.quick else parsed.bytes
    with (
        session("bodies", parsed) as current,
        sink_backend(cpus=current.cpus, directory=current.directory) as sink,
        nginx_backend(cpus=current.cpus, directory=current.directory, large_bytes=size) as nginx,
    ):
        cells: list[dict[str, object]] = []
        for number in range(1, current.rounds + 1):
            current.log(f"round {number} of {current.rounds}")
            for name in current.engines:
                for direction, port in (("upload", sink), ("download", nginx)):
                    target = Target(backends=(f"127.0.0.1:{port}",), key=current.key, streaming=True)
                    with running_engine(name, target, cpus=current.cpus, directory=current.directory) as engine:
                        # A download has a fixed size, so it has no small warm-up.
                        if direction == "upload":
                            transfer(engine, current, direction=direction, size=WARM_UP_BYTES, connections=1)
                        result = measure(engine, current, direction=direction, size=size)
                    cells.append({"round": number, "engine": name, "direction": direction, "bytes": size, **result})
                    growth = f", RSS +{result['rss_growth'] / 2**20:.1f} MiB" if "rss_growth" in result else ""
                    current.log(f"  {name:8} {direction:8} {result['bytes_per_second'] / 1e6:8,.0f} MB/s{growth}")
        current.store(cells)


if __name__ == "__main__":
    main()
