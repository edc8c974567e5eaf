"""Requests per second of each engine: small JSON POST, the same nginx behind all, wrk with 1, 32 and 256 connections.

Rounds are interleaved (every engine once, then every engine again), so that changes of the machine affect all engines
alike. Only the measured engine runs. A response other than a success fails the run.
"""

from dataclasses import asdict
from typing import Final

from benchmarks.harness.backends import nginx_backend
from benchmarks.harness.engines import Target, routers, running_engine
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import measure, script, verify

ENGINES: Final = ("direct", "haproxy", "nginx", "envoy", "aiohttp", "bare")
CONNECTIONS: Final = (1, 32, 256)
WARM_UP_CONNECTIONS: Final = 32


def measure_engine(name: str, target: Target, current: Session, connections: list[int]) -> list[dict[str, object]]:
    """Measure one engine for one round."""
    lua = script(current.directory, target, cycle=False)
    cells: list[dict[str, object]] = []
    with running_engine(name, target, cpus=current.cpus, directory=current.directory) as engine:
        verify(engine, target)
        measure(engine, target, lua=lua, connections=WARM_UP_CONNECTIONS, seconds=1, cpus=current.cpus)
        for count in connections:
            rate = measure(engine, target, lua=lua, connections=count, seconds=current.seconds, cpus=current.cpus)
            cells.append({"engine": name, "connections": count, **asdict(rate)})
            busy = "" if rate.engine_cpu is None else f", engine CPU {rate.engine_cpu:.0%}"
            current.log(
                f"  {name:8} {count:4} connections: {rate.requests_per_second:9,.0f} requests/s{busy}{rate.disturbance}"
            )
    return cells


def main() -> None:
    """Run from the command line."""
    arguments = parser(__doc__, engines=(*ENGINES, *routers()), rounds=5, seconds=3)
    arguments.add_argument("--connections", nargs="+", type=int, default=list(CONNECTIONS), help="open connections")
    parsed = arguments.parse_args()
    with (
        session("throughput", parsed) as current,
        nginx_backend(cpus=current.cpus, directory=current.directory) as port,
    ):
        target = Target(backends=(f"127.0.0.1:{port}",), key=current.key)
        cells: list[dict[str, object]] = []
        for number in range(1, current.rounds + 1):
            current.log(f"round {number} of {current.rounds}")
            for name in current.engines:
                measured = measure_engine(name, target, current, parsed.connections)
                cells += ({"round": number, **cell} for cell in measured)
        current.store(cells)


if __name__ == "__main__":
    main()
