"""The router and its own size: what a second worker brings, and how long it takes from overload to relief.

    python -m benchmarks.self_scaling [--rounds N] [--seconds N] [--quick]

Workers: requests/s with 1 and 2 workers, and requests for each CPU second that the router used. Router, replica and
load generator share all CPUs: on two of them a second worker competes with the load that it is to serve, so the rate
says little, and the cost of a request says whether workers get in each other's way.

Relief: `azureml-fe local --min-workers 1 --max-workers 2` with its default settings. wrk begins with as many
connections as make one worker slow; from that moment it is measured how long it takes until a second one serves.
"""

import http.client
import statistics
import subprocess
import time
from pathlib import Path
from typing import Final

from benchmarks.harness.backends import nginx_backend
from benchmarks.harness.engines import Running, Target, answers, router_launch
from benchmarks.harness.processes import BenchmarkError, free_port, started, wait_until
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import background, measure, script, verify, wrk_argv

CONNECTIONS: Final = 64
OVERLOAD_CONNECTIONS: Final = 512
LONGEST_SECONDS: Final = 60.0


def efficiency(workers: int, target: Target, current: Session) -> dict[str, float]:
    """One round with so many workers."""
    lua = script(current.directory, target, cycle=False)
    port, admin = free_port(), free_port()
    launch = router_launch(current.directory, port, admin, target, "--workers", str(workers))
    with started(launch.argv, name="router", cpus=current.cpus.engine, directory=current.directory) as child:
        wait_until(lambda: answers(*launch.ready), child=child, seconds=LONGEST_SECONDS)
        engine = Running(name="router", port=port, child=child, ready_seconds=0.0)
        verify(engine, target)
        measure(engine, target, lua=lua, connections=CONNECTIONS, seconds=1, cpus=current.cpus)
        rate = measure(engine, target, lua=lua, connections=CONNECTIONS, seconds=current.seconds, cpus=current.cpus)
    assert rate.engine_cpu is not None
    return {
        "workers": workers,
        "requests_per_second": rate.requests_per_second,
        "cpus": rate.engine_cpu,
        "requests_per_cpu_second": rate.requests_per_second / rate.engine_cpu,
    }


def relief(target: Target, current: Session) -> dict[str, float]:
    """One overload, and the seconds from its begin to the decision's effect."""
    lua = script(current.directory, target, cycle=False)
    port, admin = free_port(), free_port()
    sizes = ("--min-workers", "1", "--max-workers", "2")
    launch = router_launch(current.directory, port, admin, target, *sizes)
    with started(launch.argv, name="router", cpus=current.cpus.engine, directory=current.directory) as child:
        wait_until(lambda: answers(*launch.ready), child=child, seconds=LONGEST_SECONDS)
        engine = Running(name="router", port=port, child=child, ready_seconds=0.0)
        verify(engine, target)
        seconds = int(LONGEST_SECONDS)
        wrk = background(
            wrk_argv(engine, target, lua=lua, connections=OVERLOAD_CONNECTIONS, seconds=seconds), current.cpus
        )
        began = time.monotonic()
        try:
            while metric(admin, "azureml_fe_workers") < 2:
                child.check()
                if time.monotonic() - began > LONGEST_SECONDS:
                    raise BenchmarkError("no second worker came")
                time.sleep(0.02)
            grown = time.monotonic() - began
            slow = metric(admin, "azureml_fe_self_scaling_loop_lag_seconds")
        finally:
            end(wrk)
    return {"seconds_to_second_worker": grown, "loop_lag_p95_seconds": slow}


def end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait()


def metric(port: int, name: str) -> float:
    """A sample without labels; 0 where there is none."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        line.request("GET", "/metrics")
        text = line.getresponse().read().decode()
    finally:
        line.close()
    found = [each for each in text.splitlines() if each.startswith(f"{name} ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0


def main() -> None:
    """Command line."""
    arguments = parser(__doc__ or "", engines=("router",), rounds=3, seconds=4)
    arguments.set_defaults(no_pin=True, out=Path("benchmarks/results"))
    parsed = arguments.parse_args()
    with (
        session("self_scaling", parsed) as current,
        nginx_backend(cpus=current.cpus, directory=current.directory) as port,
    ):
        target = Target(backends=(f"127.0.0.1:{port}",), key=current.key)
        cells: list[dict[str, float]] = []
        for _ in range(current.rounds):
            cells += [efficiency(workers, target, current) for workers in (1, 2)]
        reliefs = [relief(target, current) for _ in range(current.rounds)]
        for workers in (1, 2):
            its = [cell for cell in cells if cell["workers"] == workers]
            rate = statistics.median(cell["requests_per_second"] for cell in its)
            cost = statistics.median(cell["requests_per_cpu_second"] for cell in its)
            used = statistics.median(cell["cpus"] for cell in its)
            current.say(
                f"  {workers} worker(s): {rate:9,.0f} requests/s, {used:.2f} CPUs, {cost:9,.0f} requests per CPU s"
            )
        took = sorted(each["seconds_to_second_worker"] for each in reliefs)
        lag = max(each["loop_lag_p95_seconds"] for each in reliefs)
        current.say(
            f"  overload to second worker: median {statistics.median(took):.1f} s ({took[0]:.1f} to {took[-1]:.1f}), "
            f"event-loop lag p95 before it at most {lag * 1000:.1f} ms"
        )
        current.store([*cells, *reliefs])


if __name__ == "__main__":
    main()
