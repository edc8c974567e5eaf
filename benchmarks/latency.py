"""Latency that each engine adds to the direct path at a fixed rate (1,000 requests/s): p50 and p99.

An open-loop generator measures each latency from the time when the request was due (``benchmarks.load.openloop``), so
requests that a stall delays count as slow. Rounds are interleaved, each with the direct path. The added latency is the
difference within a round. The report has the median of the rounds.
"""

import json
import sys
from typing import Final

from benchmarks.harness.backends import nginx_backend
from benchmarks.harness.engines import Running, Target, routers, running_engine, scoring_path
from benchmarks.harness.processes import BenchmarkError, run_json
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import BODY, verify

ENGINES: Final = ("direct", "haproxy", "nginx", "envoy", "aiohttp", "bare")
WARM_UP_SECONDS: Final = 1.0
CONNECTIONS: Final = 16


def generate(engine: Running, current: Session, rate: int) -> dict[str, float]:
    """Run the generator. Return latencies in microseconds. Raises BenchmarkError if a response is missing or no 200."""
    head = (
        f"POST {scoring_path()} HTTP/1.1\r\nHost: 127.0.0.1:{engine.port}\r\nAuthorization: Bearer {current.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    job = {
        "host": "127.0.0.1",
        "port": engine.port,
        "request": head + BODY,
        "rate": rate,
        "seconds": current.seconds,
        "warmup_seconds": WARM_UP_SECONDS,
        "connections": CONNECTIONS,
    }
    argv = (sys.executable, "-m", "benchmarks.load.openloop")
    output = run_json(argv, job=json.dumps(job), cpus=current.cpus.load, timeout=current.seconds + 40)
    result: dict[str, float] = json.loads(output)
    if result["not_200"] or result["lost"]:
        raise BenchmarkError(f"{engine.name}: {result['not_200']} responses not 200, {result['lost']} connections lost")
    return result


def main() -> None:
    """Run from the command line."""
    arguments = parser(__doc__, engines=(*ENGINES, *routers()), rounds=5, seconds=5)
    arguments.add_argument("--rate", type=int, default=1_000, help="requests per second")
    parsed = arguments.parse_args()
    if "direct" not in parsed.engines:
        arguments.error("--engines must include direct, because each result is a difference to it")
    with session("latency", parsed) as current, nginx_backend(cpus=current.cpus, directory=current.directory) as port:
        target = Target(backends=(f"127.0.0.1:{port}",), key=current.key)
        cells: list[dict[str, object]] = []
        for number in range(1, current.rounds + 1):
            current.log(f"round {number} of {current.rounds}")
            for name in current.engines:
                with running_engine(name, target, cpus=current.cpus, directory=current.directory) as engine:
                    verify(engine, target)
                    result = generate(engine, current, parsed.rate)
                cells.append({"round": number, "engine": name, "rate": parsed.rate, **result})
                current.log(f"  {name:8} p50 {result['p50']:7.0f} µs, p99 {result['p99']:7.0f} µs")
        current.store(cells)


if __name__ == "__main__":
    main()
