"""Hours of load against the self-scaler, in seconds: CPUs beside demand, printed and plotted.

    python -m benchmarks.self_scaler_simulation [--seed N] [--purpose FastProd|DenseProd] [--plot FILE]

The decisions are the router's own: `router.scaling` runs here unchanged, with the defaults of a cluster's purpose, once
per simulated second (see `benchmarks/selfscaling/simulation.py`). "slow" is the share of seconds in which the chosen
percentile of delays was above its threshold; "turns" is how often a growth follows a shrinking or the other way round.
"""

import argparse
import random
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.harness.simulated import panels, print_table
from benchmarks.selfscaling.loads import Scenario, scenarios
from benchmarks.selfscaling.simulation import Simulation, Trace
from router.scaling.self_scaler import Kind, Policy
from router.settings import load_settings
from router.sizing.policy import pods_policy

PLOT = Path(__file__).parent / "plots" / "self_scaler.png"
MIN_PODS = 3
HEADINGS = ("load", "hours", "CPU h", "load CPU h", "largest", "slow", "changes", "turns", "at limit")


def policy_of(purpose: str) -> Policy:
    """The defaults of a cluster's purpose, with the pods that the chart installs."""
    settings = {"cluster_purpose": purpose, "self_scaling_min_pods": str(MIN_PODS)}
    return pods_policy(load_settings(environ={}, file=settings))


def row(scenario: Scenario, trace: Trace) -> tuple[str, ...]:
    seconds = len(trace.sizes)
    ups = [decision.kind in (Kind.MORE_CPU, Kind.MORE_PODS) for _, decision, _ in trace.decisions]
    largest = max(trace.sizes, key=lambda size: size.total)
    return (
        scenario.name,
        f"{scenario.hours:g}",
        f"{sum(size.total for size in trace.sizes) / 3600:.0f}",
        f"{sum(trace.cores) / 3600:.0f}",
        f"{largest.pods} x {largest.cpus:g}",
        f"{trace.slow_seconds / seconds:.2%}",
        f"{len(trace.decisions)}",
        f"{sum(one != other for one, other in pairwise(ups))}",
        f"{sum(trace.at_limit) / seconds:.0%}",
    )


def plot(results: list[tuple[Scenario, Trace]], path: Path) -> None:
    with panels(len(results), path, inches=2.1) as axes:
        for axis, (scenario, trace) in zip(axes, results, strict=True):
            minutes = [second / 60 for second in range(0, len(trace.sizes), 10)]
            sizes, cores = trace.sizes[::10], trace.cores[::10]
            axis.fill_between(minutes, cores, color="#c9d7e8", step="post", label="load")
            total = [size.total for size in sizes]
            axis.plot(minutes, total, color="#1b4965", lw=1.1, drawstyle="steps-post", label="CPUs of all pods")
            pods = [size.pods for size in sizes]
            axis.plot(minutes, pods, color="#d1495b", lw=1.0, ls=":", drawstyle="steps-post", label="pods")
            axis.set_title(f"{scenario.name}: {len(trace.decisions)} changes", loc="left", fontsize=10)
            axis.set_ylabel("CPUs")
            axis.set_ylim(0, max(total) * 1.3)  # more load than that can be cannot be served either


def main() -> None:
    parser = argparse.ArgumentParser(description="Synthetic and replayed load against the self-scaler.")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default 1)")
    parser.add_argument("--purpose", choices=("FastProd", "DenseProd"), default="FastProd", help="whose defaults")
    parser.add_argument("--plot", type=Path, default=PLOT, help=f"where the plot goes (default {PLOT})")
    arguments = parser.parse_args()
    began = time.perf_counter()
    policy = policy_of(arguments.purpose)
    results = [
        (each, Simulation(policy, random.Random(arguments.seed)).run(each))
        for each in scenarios(random.Random(arguments.seed))
    ]
    print_table([HEADINGS, *(row(*each) for each in results)])
    hours, took = sum(scenario.hours for scenario, _ in results), time.perf_counter() - began
    print(f"{hours:g} simulated hours in {took:.1f} s; plot: {arguments.plot}")
    plot(results, arguments.plot)


if __name__ == "__main__":
    main()
