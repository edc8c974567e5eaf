"""Cost as the number of services and replicas grows: throughput and memory of the router with 1 to 1,000 services and
with 1 to 1,000 replicas, and the throughput of HAProxy and nginx with the same number of back ends and servers.

wrk sends requests to all services in turn over 32 connections, or to some of them while the rest are idle. Each replica
is its own loopback address. One nginx serves all of them, so the work behind the router is always the same. Rounds
are interleaved.

A thousand services need a thousand connections to replicas. Each request uses another connection, whose state in the
kernel and in the engine has left the CPU's caches since its last request. The other engines show this general cost.
"""

from dataclasses import asdict, dataclass, replace
from typing import Final

from benchmarks.harness.backends import loopback_addresses, nginx_backend
from benchmarks.harness.engines import Running, Target, routers, running_engine
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import measure, script, verify

ENGINES: Final = ("haproxy", "nginx")
CONNECTIONS: Final = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """The number of configured services, of replicas for each service, and of services that get requests."""

    services: int
    replicas: int
    active: int


SHAPES: Final = (
    Shape(1, 1, 1), Shape(10, 1, 10), Shape(100, 1, 100), Shape(1000, 1, 1), Shape(1000, 1, 100), Shape(1000, 1, 1000),
    Shape(1, 10, 1), Shape(1, 100, 1), Shape(1, 1000, 1),
)  # fmt: skip
QUICK_SHAPES: Final = (Shape(1, 1, 1), Shape(10, 1, 10), Shape(1, 10, 1))


def memory(engine: Running) -> dict[str, int]:
    """Return the memory in bytes of the router's main process (the supervisor) and of its workers."""
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


def parse_shape(text: str) -> Shape:
    """Parse 1000x1, or 1000x1x10 if only ten services get requests. Raises ValueError."""
    services, replicas, *active = map(int, text.split("x"))
    return Shape(services, replicas, *(active or [services]))


def measure_shape(name: str, shape: Shape, port: int, current: Session) -> dict[str, object]:
    """Measure one engine with one shape for one round."""
    hosts = loopback_addresses(shape.replicas)
    target = Target(
        backends=tuple(f"{host}:{port}" for host in hosts),
        key=current.key,
        services=tuple(f"bench{number}" for number in range(shape.services)),
        by_service=True,
    )
    active = replace(target, services=target.services[: shape.active])
    lua = script(current.directory, active, cycle=True)
    with running_engine(name, target, cpus=current.cpus, directory=current.directory) as engine:
        verify(engine, target)
        measure(engine, target, lua=lua, connections=CONNECTIONS, seconds=1, cpus=current.cpus)
        rate = measure(engine, target, lua=lua, connections=CONNECTIONS, seconds=current.seconds, cpus=current.cpus)
        return {**asdict(shape), "ready_seconds": engine.ready_seconds, **asdict(rate), **memory(engine)}


def main() -> None:
    """Run from the command line."""
    arguments = parser(__doc__, engines=(*ENGINES, *routers()), rounds=3, seconds=3)
    arguments.add_argument(
        "--shapes",
        nargs="+",
        type=parse_shape,
        metavar="SERVICESxREPLICAS[xACTIVE]",
        help="shapes to measure, such as 1x1 1000x1; default: all",
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
            current.log(f"round {number} of {current.rounds}")
            for name in current.engines:
                for each in shapes:
                    result = measure_shape(name, each, port, current)
                    cells.append({"round": number, "engine": name, **result})
                    current.log(
                        f"  {name:8} {each.services:5} services ({each.active} active), {each.replicas:5} replicas "
                        f"each: {result['requests_per_second']:9,.0f} requests/s"
                    )
        current.store(cells)


if __name__ == "__main__":
    main()
