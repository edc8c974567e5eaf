"""Simulates autoscalers under the same loads; prints a table and writes two plots.

    python -m benchmarks.autoscaler_simulation [--seeds N] [--load NAME] [--plots DIRECTORY]

See README.md for the rules and the results.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt

from benchmarks.autoscaler_simulation.loads import HOURS, Load, loads
from benchmarks.autoscaler_simulation.peers import SCALERS, TARGET
from benchmarks.autoscaler_simulation.simulation import Report, Simulation
from benchmarks.harness.simulated import panels

PLOTS = Path(__file__).parents[1] / "plots"
_MARKERS = "oPXsD^v*"


@dataclass(frozen=True, slots=True)
class Result:
    """One autoscaler under one load: means over seeds, and the highest peak."""

    refused_percent: float
    replica_hours: float
    peak: int
    first: Report

    def __str__(self) -> str:
        return f"{self.refused_percent:.1f} % / {self.replica_hours:.1f} / {self.peak}"


def run(load: Load, name: str, seeds: int) -> Result:
    minimum = 0 if load.from_zero else 1
    reports = [Simulation(load, SCALERS[name](minimum), seed).run() for seed in range(1, seeds + 1)]
    return Result(
        100 * fmean(each.refused_share for each in reports),
        fmean(each.replica_hours for each in reports),
        max(max(each.replicas) for each in reports),
        reports[0],
    )


def print_row(cells: Sequence[str]) -> None:
    print("|", " | ".join(cells), "|", flush=True)


def plot_comparison(results: Mapping[str, Mapping[str, Result]], path: Path) -> None:
    """Plot refused requests over replica hours: one panel per load, one point per autoscaler."""
    figure, grid = plt.subplots((len(results) + 1) // 2, 2, figsize=(11, 2.3 * ((len(results) + 1) // 2)),
                                layout="constrained", squeeze=False)  # fmt: skip
    for axis, (load, by_scaler) in zip(grid.flat, results.items(), strict=False):
        for number, (name, result) in enumerate(by_scaler.items()):
            color = "black" if name.startswith("router") else f"C{number}"
            axis.plot(result.replica_hours, result.refused_percent, _MARKERS[number], color=color, label=name, ms=7)
        axis.set_title(load, loc="left", fontsize=10)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=-0.05 * axis.get_ylim()[1])
        axis.set_ylabel("% refused")
    for axis in grid[-1]:
        axis.set_xlabel("replica hours")
    grid[0][0].legend(fontsize=7, ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def plot_router(results: Mapping[Load, Result], path: Path) -> None:
    """Plot the replicas that the router's autoscaler desires over time, beside those that are needed."""
    with panels(len(results), path, inches=1.7) as axes:
        for axis, (load, result) in zip(axes, results.items(), strict=True):
            report = result.first
            seconds = range(len(report.desired))
            minutes = [second / 60 for second in seconds]
            needed = [load.rate(second) * load.service_seconds / TARGET for second in seconds]
            axis.fill_between(minutes, needed, color="#c9d7e8", step="post", label="rate x time / target")
            axis.plot(minutes, report.desired, color="#d1495b", lw=1.1, drawstyle="steps-post", label="desired")
            refused = [minute for minute, count in zip(minutes, report.refused, strict=True) if count]
            axis.plot(refused, [0] * len(refused), "|", color="black", ms=7, label="requests refused")
            axis.set_title(f"{load.name}: {report.requests:,} requests, {report.refused_share:.2%} refused", loc="left",
                           fontsize=10)  # fmt: skip
            axis.set_ylabel("replicas")


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulates autoscalers under the same loads.")
    parser.add_argument("--seeds", type=int, default=3, help="runs per load and autoscaler (default 3)")
    parser.add_argument("--load", help="only the loads whose name contains this text; writes no plots")
    parser.add_argument("--plots", type=Path, default=PLOTS, help=f"directory of the plots (default {PLOTS})")
    arguments = parser.parse_args()
    start = time.perf_counter()
    print_row(["load", *SCALERS])
    print_row(["---"] * (len(SCALERS) + 1))
    results: dict[Load, dict[str, Result]] = {}
    for load in loads():
        if arguments.load is None or arguments.load in load.name:
            results[load] = {name: run(load, name, arguments.seeds) for name in SCALERS}
            print_row([load.name, *map(str, results[load].values())])
    runs = sum(len(each) for each in results.values()) * arguments.seeds
    print(f"\n{runs * HOURS:,} simulated hours in {time.perf_counter() - start:.0f} s")
    if arguments.load is None:
        plot_comparison({load.name: each for load, each in results.items()}, arguments.plots / "autoscalers.png")
        plot_router({load: each["router"] for load, each in results.items()}, arguments.plots / "autoscaler.png")


if __name__ == "__main__":
    main()
