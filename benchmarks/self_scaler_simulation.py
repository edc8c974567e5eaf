"""Simulates hours of load against the self-scaler; prints and plots CPUs, pods and load.

    python -m benchmarks.self_scaler_simulation [--seed N] [--purpose FastProd|DenseProd] [--plot FILE]

The decisions are those of the router: `router.scaling` runs unchanged, with the defaults of a cluster purpose, once per
simulated second (see `benchmarks/selfscaling/simulation.py`). "slow" is the share of seconds in which the configured
percentile of delays was above its threshold; "reversals" is how often growth follows shrinking, or shrinking growth.
"""

import argparse
import random
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.harness.simulated import panels, print_table
from benchmarks.selfscaling.loads import Scenario, scenarios
from benchmarks.selfscaling.simulation import Simulation, Trace
from router.config.router import load_settings
from router.scaling.self.policy import pods_policy
from router.scaling.self.self_scaler import SizeAction, SizePolicy

PLOT = Path(__file__).parent / "plots" / "self_scaler.png"
MIN_PODS = 3
HEADINGS = ("load", "hours", "CPU h", "load CPU h", "largest", "slow", "changes", "reversals", "at limit")


def policy_of(purpose: str) -> SizePolicy:
    """Return the default policy of a cluster purpose, with the number of pods that the chart installs."""
    settings = {"cluster_purpose": purpose, "self_scaling_min_pods": str(MIN_PODS)}
    return pods_policy(load_settings(environ={}, file=settings))


def row(scenario: Scenario, trace: Trace) -> tuple[str, ...]:
    seconds = len(trace.sizes)
    growths = [decision.action in (SizeAction.MORE_CPU, SizeAction.MORE_PODS) for _, decision, _ in trace.decisions]
    largest = max(trace.sizes, key=lambda size: size.total)
    return (
        scenario.name,
        f"{scenario.hours:g}",
        f"{sum(size.total for size in trace.sizes) / 3600:.0f}",
        f"{sum(trace.load) / 3600:.0f}",
        f"{largest.pods} x {largest.cpus:g}",
        f"{trace.slow_seconds / seconds:.2%}",
        f"{len(trace.decisions)}",
        f"{sum(one != other for one, other in pairwise(growths))}",
        f"{sum(trace.at_limit) / seconds:.0%}",
    )


def plot(results: list[tuple[Scenario, Trace]], path: Path) -> None:
    with panels(len(results), path, inches=2.1) as axes:
        for axis, (scenario, trace) in zip(axes, results, strict=True):
            minutes = [second / 60 for second in range(0, len(trace.sizes), 10)]
            sizes, load = trace.sizes[::10], trace.load[::10]
            axis.fill_between(minutes, load, color="#c9d7e8", step="post", label="load")
            total = [size.total for size in sizes]
            axis.plot(minutes, total, color="#1b4965", lw=1.1, drawstyle="steps-post", label="CPUs of all pods")
            pods = [size.pods for size in sizes]
            axis.plot(minutes, pods, color="#d1495b", lw=1.0, ls=":", drawstyle="steps-post", label="pods")
            axis.set_title(f"{scenario.name}: {len(trace.decisions)} changes", loc="left", fontsize=10)
            axis.set_ylabel("CPUs")
            axis.set_ylim(0, max(total) * 1.3)  # load above the CPUs is cut off


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulates synthetic load against the self-scaler.")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random numbers (default 1)")
    parser.add_argument(
        "--purpose",
        choices=("FastProd", "DenseProd"),
        default="FastProd",
        help="cluster purpose whose defaults apply (default FastProd)",
    )
    parser.add_argument("--plot", type=Path, default=PLOT, help=f"file of the plot (default {PLOT})")
    arguments = parser.parse_args()
    start = time.perf_counter()
    policy = policy_of(arguments.purpose)
    results = [
        (each, Simulation(policy, random.Random(arguments.seed)).run(each))
        for each in scenarios(random.Random(arguments.seed))
    ]
    print_table([HEADINGS, *(row(*each) for each in results)])
    hours, took = sum(scenario.hours for scenario, _ in results), time.perf_counter() - start
    print(f"{hours:g} simulated hours in {took:.1f} s; plot: {arguments.plot}")
    plot(results, arguments.plot)


if __name__ == "__main__":
    main()
