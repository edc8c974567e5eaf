"""Cost as load grows: throughput and memory of the router with 1 to 1,000 services and with 1 to 1,000 replicas, and
throughput of HAProxy and nginx that have as many back-ends and servers.

wrk sends to every service in turn over 32 connections, or to some of them while the rest are idle. Each replica is a
loopback address of its own, all served by one nginx, so that the work behind the router is the same in every cell.
Rounds are interleaved.

A thousand services are a thousand connections to replicas. Each request finds another one, whose state, in the kernel
and in the engine, has left the CPU's caches since its last request: the peers show what that costs anyone.
"""

from dataclasses import asdict, dataclass, replace
from typing import Final

from benchmarks.harness.backends import loopback_addresses, nginx_backend
from benchmarks.harness.engines import Running, Target, routers, running
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import measure, script, verify

ENGINES: Final = ("haproxy", "nginx")
CONNECTIONS: Final = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """How many services the router knows, how many replicas each has, and how many services are asked."""

    services: int
    replicas: int
    asked: int


SHAPES: Final = (
    Shape(1, 1, 1), Shape(10, 1, 10), Shape(100, 1, 100), Shape(1000, 1, 1), Shape(1000, 1, 100), Shape(1000, 1, 1000),
    Shape(1, 10, 1), Shape(1, 100, 1), Shape(1, 1000, 1),
)  # fmt: skip
QUICK_SHAPES: Final = (Shape(1, 1, 1), Shape(10, 1, 10), Shape(1, 10, 1))


def memory(engine: Running) -> dict[str, int]:
    """Bytes of the router's main process (the supervisor) and of all it started (the workers)."""
    if engine.child is None or engine.name != "router":
        return {}
    main, *others = [process.memory_full_info() for process in engine.child.tree()]
    return {
        "main_rss": main.rss,
        "main_pss": main.pss,
        "workers": len(others),
        "workers_rss": sum(info.rss for info in others),
        "workers_pss": sum(info.pss for info in others),
    }


def shape(text: str) -> Shape:
    """What is written as 1000x1, or 1000x1x10 where only ten are asked. Raises ValueError for anything else."""
    services, replicas, *asked = map(int, text.split("x"))
    return Shape(services, replicas, *(asked or [services]))


def measure_shape(name: str, wanted: Shape, port: int, current: Session) -> dict[str, object]:
    """One engine in one shape, one round."""
    hosts = loopback_addresses(wanted.replicas)
    target = Target(
        backends=tuple(f"{host}:{port}" for host in hosts),
        key=current.key,
        services=tuple(f"bench{number}" for number in range(wanted.services)),
        by_service=True,
    )
    asked = replace(target, services=target.services[: wanted.asked])
    lua = script(current.directory, asked, cycle=True)
    with running(name, target, cpus=current.cpus, directory=current.directory) as engine:
        verify(engine, target)
        measure(engine, target, lua=lua, connections=CONNECTIONS, seconds=1, cpus=current.cpus)
        rate = measure(engine, target, lua=lua, connections=CONNECTIONS, seconds=current.seconds, cpus=current.cpus)
        return {**asdict(wanted), "ready_seconds": engine.ready_seconds, **asdict(rate), **memory(engine)}


def main() -> None:
    """Command line."""
    arguments = parser(__doc__, engines=(*ENGINES, *routers()), rounds=3, seconds=3)
    arguments.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        metavar="SERVICESxREPLICAS[xASKED]",
        help="instead of all, such as 1x1 1000x1",
    )
    parsed = arguments.parse_args()
    shapes = parsed.shapes or (QUICK_SHAPES if parsed.quick else SHAPES)
    hosts = loopback_addresses(max(each.replicas for each in shapes))
    with (
        session("growth", parsed) as current,
        nginx_backend(cpus=current.cpus, directory=current.directory, hosts=hosts) as port,
    ):
        cells: list[dict[str, object]] = []
        for number in range(1, current.rounds + 1):
            current.say(f"round {number} of {current.rounds}")
            for name in current.engines:
                for each in shapes:
                    found = measure_shape(name, each, port, current)
                    cells.append({"round": number, "engine": name, **found})
                    current.say(
                        f"  {name:8} {each.services:5} services ({each.asked} asked), {each.replicas:5} replicas each: "
                        f"{found['requests_per_second']:9,.0f} requests/s"
                    )
        current.store(cells)


if __name__ == "__main__":
    main()
