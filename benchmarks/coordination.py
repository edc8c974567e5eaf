"""Cost and benefit of slot leases with recall, measured on several routers.

    python -m benchmarks.coordination messages   # messages per request, and the latency without leases
    python -m benchmarks.coordination load       # 3 pods, 50 services x 10 replicas, at 60, 90 and 120 % of capacity
    python -m benchmarks.coordination ramp       # utilization before the first 503, compared with independent routers
    python -m benchmarks.coordination takeover   # time until new grants after a pod is killed

Each prints a table. Pods, replicas and clients run on this machine and share its CPUs, so absolute rates have little
meaning. The service time of the replicas is such that they, not the CPUs, are the bottleneck.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Sequence

import uvloop

from benchmarks.pods.fleet import Clients, LoadResult, Pod, assign_replicas, percentile, run_load, running_pods
from tests.servers.counting import CountingReplicas


def messages(seconds: float) -> None:
    """Measure messages per request and latency, with leases and without: with a new lease for each request."""
    print("| mode | owner | messages per request | p50, ms | p99, ms |")
    print("|---|---|---:|---:|---:|")
    replicas = CountingReplicas(20 * 10, delay_ms=1)
    try:
        services = assign_replicas(replicas, 20, 10)
        for lease_per_request in (False, True):
            with running_pods(2, services, lease_per_request=lease_per_request) as running:
                for name, owner in (("own pod", running[0]), ("other pod", running[1])):
                    owned = [service for service in services if owner.owns(service)][:4]
                    result, sent = uvloop.run(_steady_load(running, owned, seconds))
                    mode = "a new lease for each request" if lease_per_request else "leases"
                    p50, p99 = percentile(result.latency_ms, 0.5), percentile(result.latency_ms, 0.99)
                    print(f"| {mode} | {name} | {sent / result.requests:.4f} | {p50:.2f} | {p99:.2f} |", flush=True)
    finally:
        replicas.stop()


async def _steady_load(running: Sequence[Pod], owned: Sequence[str], seconds: float) -> tuple[LoadResult, float]:
    """Load only the first pod, far below the capacity of the replicas. Return the result and the message count."""
    await run_load(running[:1], owned, 400, 1.0)
    before = sum([await asyncio.to_thread(pod.messages) for pod in running])
    result = await run_load(running[:1], owned, 400, seconds, warm_up=0.0)
    return result, sum([await asyncio.to_thread(pod.messages) for pod in running]) - before


def under_load(seconds: float) -> None:
    """Measure three pods with two workers each at three loads."""
    delay = 0.5
    print("| load | requests/s | 200/s | utilization | 503 | queue p50, ms | p99, ms | fairness | highest in flight |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    replicas = CountingReplicas(50 * 10, delay_ms=delay * 1000)
    try:
        services = assign_replicas(replicas, 50, 10)
        with running_pods(3, services) as running:
            for percent in (60, 90, 120):
                replicas.reset()
                rate = 500 / delay * percent / 100
                result = uvloop.run(run_load(running, list(services), rate, seconds, warm_up=2.0))
                served, refused = result.total(200), result.total(503)
                shares = [by_status[200] / by_status.total() for by_status in result.statuses.values()]
                print(
                    f"| {percent} % | {result.requests / seconds:,.0f} | {served / seconds:,.0f} "
                    f"| {served / seconds * delay / 500:.0%} | {refused / result.requests:.1%} "
                    f"| {percentile(result.queued_ms, 0.5):.1f} | {percentile(result.queued_ms, 0.99):.0f} "
                    f"| {min(shares) / max(shares):.3f} | {replicas.peak()} |",
                    flush=True,
                )
            mismatches = sum(pod.metric("slot_leaks_repaired_total") for pod in running)
            print(
                f"\nLease mismatches repaired: {mismatches:.0f}. "
                "Fairness: smallest rate of 200 at a pod divided by the largest."
            )
    finally:
        replicas.stop()


def ramp(seconds: float) -> None:
    """Measure five services of six replicas on three pods: as one router; independent, with a third of the replicas
    each; independent, with all replicas."""
    delay, count = 0.4, 30
    print("| routers | utilization before the first 503 | queue p99, ms | highest in flight |")
    print("|---|---:|---:|---:|")
    replicas = CountingReplicas(count, delay_ms=delay * 1000)
    try:
        services = assign_replicas(replicas, 5, 6)
        for name, joined, split_replicas in (
            ("as one (leases with recall)", True, False),
            ("independent, a third of the replicas each", False, True),
            ("independent, all replicas", False, False),
        ):
            with running_pods(3, services, joined=joined, split_replicas=split_replicas) as running:
                replicas.reset()
                reached, waited = uvloop.run(_until_refused(running, list(services), count / delay, seconds))
                print(f"| {name} | {reached:.0%} | {waited:.0f} | {replicas.peak()} |", flush=True)
    finally:
        replicas.stop()


async def _until_refused(
    running: Sequence[Pod], services: Sequence[str], capacity: float, seconds: float
) -> tuple[float, float]:
    """Raise the load until a request is refused. Return the share of the capacity before, and the queue p99 in ms."""
    reached = waited = 0.0
    for percent in range(20, 105, 10):
        result = await run_load(running, services, capacity * percent / 100, seconds, warm_up=0.4)
        if result.total(503):
            break
        reached, waited = result.total(200) / seconds / capacity, percentile(result.queued_ms, 0.99)
    return reached, waited


def takeover(rounds: int) -> None:
    """Kill a pod, and send another one the first request for each service that the killed pod owned."""
    print("| round | first new grant after, ms | all new grants after at most, ms | services |")
    print("|---:|---:|---:|---:|")
    replicas = CountingReplicas(60, delay_ms=1)
    try:
        services = assign_replicas(replicas, 60, 1)
        for number in range(rounds):
            with running_pods(3, services) as running:
                owned = [service for service in services if running[2].owns(service)]
                latencies_ms = uvloop.run(_after_kill(running, owned))
                print(
                    f"| {number + 1} | {min(latencies_ms):.0f} | {max(latencies_ms):.0f} | {len(latencies_ms)} |",
                    flush=True,
                )
    finally:
        replicas.stop()


async def _after_kill(running: Sequence[Pod], owned: Sequence[str]) -> list[float]:
    """Return the milliseconds from the kill to the response of each request. Requests that were refused, as they waited
    for too long, count as infinite."""
    clients = Clients(running)
    running[2].process.send_signal(signal.SIGKILL)
    killed = time.perf_counter()

    async def measure(service: str) -> float:
        status, _ = await clients.send(running[0], service)
        return (time.perf_counter() - killed) * 1000 if status == 200 else float("inf")

    latencies_ms = await asyncio.gather(*(measure(service) for service in owned))
    clients.close()
    return latencies_ms


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("messages", "load", "ramp", "takeover"))
    parser.add_argument("--seconds", type=float, help="duration of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="number of kills in `takeover`")
    arguments = parser.parse_args()
    started_at = time.monotonic()
    if arguments.what == "messages":
        messages(arguments.seconds or 5.0)
    elif arguments.what == "load":
        under_load(arguments.seconds or 10.0)
    elif arguments.what == "ramp":
        ramp(arguments.seconds or 4.0)
    else:
        takeover(arguments.rounds)
    print(f"\n{time.monotonic() - started_at:.0f} s")


if __name__ == "__main__":
    main()
