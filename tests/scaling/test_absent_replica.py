"""Requests that wait for the only replica, while it is away for a moment, are no reason for more replicas."""

import pytest

from router.config.service import parse_service
from router.model import usage
from router.model.usage import ZERO, UsageDelta
from router.scaling.autoscaler import Autoscaler
from router.scaling.demand import Demand
from tests.slots.slot_simulation import SlotSimulation, Worker

STEP = 1 / 64
SERVICE_SECONDS = 8 * STEP
WAIT_SECONDS = 0.5
SETTINGS = {"autoscale_min_replicas": 1, "autoscale_max_replicas": 20, "autoscale_refresh_seconds": 1}


def most_desired(*, period: int, away: tuple[int, int], removed: bool = False) -> int:
    """Return the highest number of replicas that the autoscaler wants in 20 s. A request arrives every `period` steps.

    The only replica is away from one step to another: it refuses connections, or it is `removed`.
    """
    simulation = SlotSimulation(immediate=True)
    simulation.set_replicas("r1", slots=1)
    worker = simulation.add_worker()
    autoscaler = Autoscaler(parse_service("iris", SETTINGS).versions[0])
    before: UsageDelta = ZERO
    most = 0
    lease = None
    for step in range(20 * 64):
        for request in [each for each in worker.in_flight if each.since <= simulation.now - SERVICE_SECONDS]:
            lease = request.replica
            simulation.end(worker, request)
        if step in away and removed:
            simulation.set_replicas(*(["r1"] if step == away[1] else []))
        elif step in away:
            assert lease is not None
            (simulation.resume if step == away[1] else simulation.suspend)(worker, lease)
        expire(simulation, worker)
        if step % period == 0:
            simulation.arrive(worker)
        simulation.advance_clock(STEP)
        if step % 64 == 63:
            totals = worker.cache.totals(simulation.now)
            decision = autoscaler.observe(simulation.now, Demand(1.0, *usage.delta(before, totals)), 1)
            before = totals
            most = max(most, decision.desired)
    return most


def expire(simulation: SlotSimulation, worker: Worker) -> None:
    waiting = len(worker.waiting)
    simulation.expire(worker, WAIT_SECONDS)
    for _ in range(waiting - len(worker.waiting)):
        worker.cache.refuse()


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("away_seconds", [0.25, 0.8, 3])
def test_service_is_not_scaled_up_while_its_only_replica_is_away(removed: bool, away_seconds: float) -> None:
    away = (5 * 64, 5 * 64 + round(away_seconds * 64))
    assert most_desired(period=32, away=away, removed=removed) == 1


@pytest.mark.parametrize("removed", [False, True])
def test_overload_is_seen_while_the_only_replica_is_away(removed: bool) -> None:
    """Four replicas would be busy all the time."""
    assert most_desired(period=2, away=(5 * 64, 15 * 64), removed=removed) >= 4
    assert most_desired(period=2, away=(-1, -1)) >= 4
