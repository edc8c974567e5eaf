"""What coordination of workers and pods costs, and what it buys: slot leases with recall, measured on several routers.

    python -m benchmarks.coordination messages   # messages per request, and what a request pays that must ask
    python -m benchmarks.coordination load       # 3 pods, 50 services x 10 replicas, at 60, 90 and 120 % of capacity
    python -m benchmarks.coordination ramp       # utilization reached before the first 503, beside pods on their own
    python -m benchmarks.coordination takeover   # new grants after a pod is killed

Each prints a table. All runs on this machine: pods, replicas and clients share its CPUs, so absolute rates say little;
the replicas' time is chosen so that they, not the CPUs, are the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Sequence

import uvloop

from benchmarks.pods.stage import Clients, Outcome, Pod, Replicas, load, percentile, pods, services_of


def messages(seconds: float) -> None:
    """Messages per request and latency, with leases and with a question for each request."""
    print("| mode | service router | messages per request | p50, ms | p99, ms |")
    print("|---|---|---:|---:|---:|")
    replicas = Replicas(20 * 10, delay_ms=1)
    try:
        services = services_of(replicas, 20, 10)
        for ask_always in (False, True):
            with pods(2, services, ask_always=ask_always) as made:
                for name, owner in (("own pod", made[0]), ("other pod", made[1])):
                    owned = [service for service in services if owner.owns(service)][:4]
                    outcome, sent = uvloop.run(_steadily(made, owned, seconds))
                    mode = "asks for every request" if ask_always else "leases"
                    p50, p99 = percentile(outcome.took_ms, 0.5), percentile(outcome.took_ms, 0.99)
                    print(f"| {mode} | {name} | {sent / outcome.requests:.4f} | {p50:.2f} | {p99:.2f} |", flush=True)
    finally:
        replicas.end()


async def _steadily(made: Sequence[Pod], owned: Sequence[str], seconds: float) -> tuple[Outcome, float]:
    """A load far below what the replicas can do, on the first pod alone, and the messages that it took."""
    await load(made[:1], owned, 400, 1.0)
    before = sum([await asyncio.to_thread(pod.messages) for pod in made])
    outcome = await load(made[:1], owned, 400, seconds, warm=0.0)
    return outcome, sum([await asyncio.to_thread(pod.messages) for pod in made]) - before


def under_load(seconds: float) -> None:
    """Three pods with two workers each."""
    delay = 0.5
    print("| load | requests/s | 200/s | utilization | 503 | queue p50, ms | p99, ms | fairness | highest in flight |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    replicas = Replicas(50 * 10, delay_ms=delay * 1000)
    try:
        services = services_of(replicas, 50, 10)
        with pods(3, services) as made:
            for percent in (60, 90, 120):
                replicas.reset()
                rate = 500 / delay * percent / 100
                outcome = uvloop.run(load(made, list(services), rate, seconds, warm=2.0))
                served, refused = outcome.total(200), outcome.total(503)
                shares = [answers[200] / answers.total() for answers in outcome.answers.values()]
                print(
                    f"| {percent} % | {outcome.requests / seconds:,.0f} | {served / seconds:,.0f} "
                    f"| {served / seconds * delay / 500:.0%} | {refused / outcome.requests:.1%} "
                    f"| {percentile(outcome.queued_ms, 0.5):.1f} | {percentile(outcome.queued_ms, 0.99):.0f} "
                    f"| {min(shares) / max(shares):.3f} | {replicas.highest()} |",
                    flush=True,
                )
            leaks = sum(pod.metric("slot_leaks_repaired_total") for pod in made)
            print(
                f"\nSlot leaks repaired: {leaks:.0f}. Fairness: the smallest share of 200 of a pod beside the largest."
            )
    finally:
        replicas.end()


def ramp(seconds: float) -> None:
    """Five services of six replicas, three pods: as one; on their own with a third of the replicas each; with all."""
    delay, count = 0.4, 30
    print("| routers | utilization before the first 503 | queue p99 there, ms | highest in flight |")
    print("|---|---:|---:|---:|")
    replicas = Replicas(count, delay_ms=delay * 1000)
    try:
        services = services_of(replicas, 5, 6)
        for name, together, partition in (
            ("as one (leases with recall)", True, False),
            ("each on its own, a third of the replicas each", False, True),
            ("each on its own, all replicas", False, False),
        ):
            with pods(3, services, together=together, partition=partition) as made:
                replicas.reset()
                reached, waited = uvloop.run(_until_refused(made, list(services), count / delay, seconds))
                print(f"| {name} | {reached:.0%} | {waited:.0f} | {replicas.highest()} |", flush=True)
    finally:
        replicas.end()


async def _until_refused(
    made: Sequence[Pod], services: Sequence[str], capacity: float, seconds: float
) -> tuple[float, float]:
    """Raise the load until a request is refused: the share of the capacity that was served before, and the wait."""
    reached = waited = 0.0
    for percent in range(20, 105, 10):
        outcome = await load(made, services, capacity * percent / 100, seconds, warm=0.4)
        if outcome.total(503):
            break
        reached, waited = outcome.total(200) / seconds / capacity, percentile(outcome.queued_ms, 0.99)
    return reached, waited


def takeover(rounds: int) -> None:
    """Kill a pod, and ask another one for services that the killed pod's ledgers granted, each for the first time."""
    print("| round | first new grant after, ms | all new grants after at most, ms | services |")
    print("|---:|---:|---:|---:|")
    replicas = Replicas(60, delay_ms=1)
    try:
        services = services_of(replicas, 60, 1)
        for number in range(rounds):
            with pods(3, services) as made:
                owned = [service for service in services if made[2].owns(service)]
                took = uvloop.run(_after_kill(made, owned))
                print(f"| {number + 1} | {min(took):.0f} | {max(took):.0f} | {len(took)} |", flush=True)
    finally:
        replicas.end()


async def _after_kill(made: Sequence[Pod], owned: Sequence[str]) -> list[float]:
    """Milliseconds from the kill to the answer of each request that needed a new ledger; those that were refused had
    waited too long, and count as infinite."""
    clients = Clients(made)
    made[2].process.send_signal(signal.SIGKILL)
    killed = time.perf_counter()

    async def one(service: str) -> float:
        status, _ = await clients.ask(made[0], service)
        return (time.perf_counter() - killed) * 1000 if status == 200 else float("inf")

    took = await asyncio.gather(*(one(service) for service in owned))
    clients.close()
    return took


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("messages", "load", "ramp", "takeover"))
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="of takeover")
    arguments = parser.parse_args()
    began = time.monotonic()
    if arguments.what == "messages":
        messages(arguments.seconds or 5.0)
    elif arguments.what == "load":
        under_load(arguments.seconds or 10.0)
    elif arguments.what == "ramp":
        ramp(arguments.seconds or 4.0)
    else:
        takeover(arguments.rounds)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
