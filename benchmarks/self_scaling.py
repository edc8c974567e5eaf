"""Self-scaling: the benefit of a second worker, and the time from an overload until it serves.

    python -m benchmarks.self_scaling [--rounds N] [--seconds N] [--quick]

Workers: requests/s with 1 and 2 workers, and requests per CPU second of the router. Router, replica and load generator
share all CPUs: on a machine with two CPUs a second worker competes with the load generator, so the rate says little.
The CPU time of a request shows whether workers slow each other down.

Relief: `azureml-fe local --min-workers 1 --max-workers 2` with default settings. wrk opens more
connections than one worker can serve quickly. The result is the time until a second worker serves.
"""

import http.client
import statistics
import subprocess
import time
from pathlib import Path
from typing import Final

from benchmarks.harness.backends import nginx_backend
from benchmarks.harness.engines import Running, Target, responds, router_launch
from benchmarks.harness.processes import BenchmarkError, free_port, running_child, wait_until
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import background, measure, script, verify, wrk_argv

CONNECTIONS: Final = 64
OVERLOAD_CONNECTIONS: Final = 512
MAX_SECONDS: Final = 60.0


def efficiency(workers: int, target: Target, current: Session) -> dict[str, float]:
    """Run one round with this number of workers."""
    lua = script(current.directory, target, cycle=False)
    port, admin = free_port(), free_port()
    launch = router_launch(current.directory, port, admin, target, "--workers", str(workers))
    with running_child(launch.argv, name="router", cpus=current.cpus.engine, directory=current.directory) as child:
        wait_until(lambda: responds(*launch.ready), child=child, seconds=MAX_SECONDS)
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
    """Run one overload; return the seconds from its start until a second worker serves."""
    lua = script(current.directory, target, cycle=False)
    port, admin = free_port(), free_port()
    sizes = ("--min-workers", "1", "--max-workers", "2")
    launch = router_launch(current.directory, port, admin, target, *sizes)
    with running_child(launch.argv, name="router", cpus=current.cpus.engine, directory=current.directory) as child:
        wait_until(lambda: responds(*launch.ready), child=child, seconds=MAX_SECONDS)
        engine = Running(name="router", port=port, child=child, ready_seconds=0.0)
        verify(engine, target)
        seconds = int(MAX_SECONDS)
        wrk = background(
            wrk_argv(engine, target, lua=lua, connections=OVERLOAD_CONNECTIONS, seconds=seconds), current.cpus
        )
        start = time.monotonic()
        try:
            while metric(admin, "azureml_fe_workers") < 2:
                child.check()
                if time.monotonic() - start > MAX_SECONDS:
                    raise BenchmarkError("no second worker was started")
                time.sleep(0.02)
            seconds_to_worker = time.monotonic() - start
            loop_lag = metric(admin, "azureml_fe_self_scaling_loop_lag_seconds")
        finally:
            terminate(wrk)
    return {"seconds_to_second_worker": seconds_to_worker, "loop_lag_p95_seconds": loop_lag}


def terminate(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait()


def metric(port: int, name: str) -> float:
    """Return the value of a metric without labels; 0 if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    lines = [each for each in text.splitlines() if each.startswith(f"{name} ")]
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0


def main() -> None:
    """Run the benchmark from the command line."""
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
            matching = [cell for cell in cells if cell["workers"] == workers]
            rate = statistics.median(cell["requests_per_second"] for cell in matching)
            cost = statistics.median(cell["requests_per_cpu_second"] for cell in matching)
            used = statistics.median(cell["cpus"] for cell in matching)
            current.log(
                f"  {workers} worker(s): {rate:9,.0f} requests/s, {used:.2f} CPUs, {cost:9,.0f} requests per CPU s"
            )
        took = sorted(each["seconds_to_second_worker"] for each in reliefs)
        lag = max(each["loop_lag_p95_seconds"] for each in reliefs)
        current.log(
            f"  overload to second worker: median {statistics.median(took):.1f} s ({took[0]:.1f} to {took[-1]:.1f}), "
            f"event-loop lag p95 before it at most {lag * 1000:.1f} ms"
        )
        current.store([*cells, *reliefs])


if __name__ == "__main__":
    main()
