"""The loop around the self-scaler: one change at a time, outcomes, leadership. Actuator and peers are fakes."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from router.config.router import load_settings
from router.scaling.self.actuator import NoRoomError, Outcome
from router.scaling.self.balance import MOVE_SECONDS
from router.scaling.self.load import PodLoad
from router.scaling.self.loop import SelfScalingLoop
from router.scaling.self.policy import pods_policy, workers_policy
from router.scaling.self.self_scaler import Size, SizeDecision, SizePolicy
from router.scaling.self.signals import PodSignals
from router.telemetry.catalogue import validate_sample
from router.telemetry.histogram import LAG_BOUNDS, ROUTE_BOUNDS
from router.workers.cpu import CpuPeriods
from router.workers.pool import WorkerPool

SETTINGS = replace(
    load_settings(environ={}),
    self_scaling_min_pods=2,
    self_scaling_max_pods=3,
    self_scaling_cpu_steps=(1.0, 2.0),
    workers=1,
)


class RecordingPeers:
    """A `PeerBroadcast` that records what was sent."""

    def __init__(self) -> None:
        self.loads: list[PodLoad] = []
        self.sizes: list[float] = []

    def broadcast_load(self, load: PodLoad) -> None:
        self.loads.append(load)

    def broadcast_size(self, cpus: float) -> None:
        self.sizes.append(cpus)

    def has_peers(self) -> bool:
        return True


class ManualActuator:
    """An actuator whose changes finish when the test sets `done`."""

    covers_all_pods = True

    def __init__(self) -> None:
        self.policy: SizePolicy = pods_policy(SETTINGS)
        self.current: Size | None = Size(1, 2)
        self.cpus: float | None = 1
        self.requested: list[Size] = []
        self.outcomes: list[tuple[str, str]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def size(self) -> Size | None:
        return self.current

    def cpus_of_new_pods(self) -> float | None:
        return self.cpus

    async def apply(self, target: Size) -> None:
        self.requested.append(target)
        await self.done
        self.current = target

    def on_outcome(self, decision: SizeDecision, outcome: Outcome, detail: str) -> None:
        self.outcomes.append((outcome.value, detail))


class OneWorker(WorkerPool):
    """A pool of one worker that starts no process."""

    def __init__(self) -> None:
        self._target_size = 1
        self.retired_shares: list[float] = []

    def retire_clients(self, share: float) -> None:
        self.retired_shares.append(share)

    def __len__(self) -> int:
        return 1


class FixedUse(PodSignals):
    """Signals of a pod that uses half of its CPUs, unless the test changes `use`."""

    use = 0.5

    def take(
        self, seconds: float, cpus: float, supervisor_cpu_seconds: float, periods: CpuPeriods | None = None
    ) -> PodLoad:
        load = super().take(seconds, cpus, supervisor_cpu_seconds, periods)
        return replace(load, cpu_seconds=self.use * cpus * seconds)


class Harness:
    """The loop of one pod, driven second by second, with load reports of another pod."""

    def __init__(self, **settings: Any) -> None:
        self.now = 1000.0
        self.other_use = 0.9
        self.peers = RecordingPeers()
        self.actuator = ManualActuator()
        self.signals = FixedUse()
        self.workers = OneWorker()
        self.loop = SelfScalingLoop(
            replace(SETTINGS, **settings), "pod-1", workers=self.workers, signals=self.signals, peers=self.peers,
            in_cluster=True, pod_actuator=self.actuator, clock=lambda: self.now,
        )  # fmt: skip
        assert self.loop.initial_workers() == 1

    async def second(self, *, leads: bool = True, slow: bool = True) -> None:
        """Tick one second later; `slow`: all requests of the other pod had the highest route time."""
        self.now += 1.0
        bucket = -1 if slow else 0
        route_time, lag = [0] * (len(ROUTE_BOUNDS) + 1), [0] * (len(LAG_BOUNDS) + 1)
        route_time[bucket] = 100
        self.loop.on_load_report("pod-2", PodLoad(1.0, 1.0, self.other_use, route_time, lag))
        self.loop.tick(self.now, leads=leads)
        await asyncio.sleep(0)

    async def seconds(self, count: int, **options: bool) -> None:
        for _ in range(count):
            await self.second(**options)


@asynccontextmanager
async def running_harness(**settings: Any) -> AsyncIterator[Harness]:
    harness = Harness(**settings)
    yield harness
    await harness.loop.stop()


async def test_leader_applies_one_change_at_a_time() -> None:
    async with running_harness() as harness:
        await harness.seconds(10, leads=False)
        assert harness.actuator.requested == []
        await harness.seconds(10)
        assert harness.actuator.requested == [Size(2, 2)]
        harness.actuator.done.set_result(None)
        await harness.seconds(2)
        assert harness.actuator.outcomes == [("done", "")]
        samples = {(each.metric, each.labels): each.value for each in map(validate_sample, harness.loop.samples())}
        assert samples["self_scaling_actions", ("cpu-up",)] == 1
        assert samples["self_scaling_cpu_cores", ()] == 2
        assert samples["self_scaling_pods", ()] == 2


async def test_peers_get_load_and_size() -> None:
    async with running_harness() as harness:
        await harness.seconds(3, leads=False, slow=False)
        assert (len(harness.peers.loads), harness.peers.sizes) == (3, [])
        await harness.seconds(3, slow=False)
        assert (len(harness.peers.loads), harness.peers.sizes) == (6, [1, 1, 1])
        harness.actuator.current, harness.actuator.cpus = None, None
        await harness.second(slow=False)
        assert harness.peers.sizes == [1, 1, 1]
        harness.actuator.cpus = 0
        await harness.second(slow=False)
        assert harness.peers.sizes == [1, 1, 1, 0]


async def test_throttled_periods_are_reported_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    periods = (CpuPeriods(1000 + 10 * second, 500 + second) for second in itertools.count())
    monkeypatch.setattr("router.scaling.self.loop.cpu_periods", lambda: next(periods))
    async with running_harness() as harness:
        await harness.seconds(4, slow=False)
        reported = [(load.periods, load.throttled_periods) for load in harness.peers.loads]
        assert reported == [(0, 0), (10, 1), (10, 1), (10, 1)]
        samples = {each.metric: each.value for each in map(validate_sample, harness.loop.samples())}
        assert samples["self_scaling_throttled_ratio"] == pytest.approx(0.1)


@pytest.mark.parametrize("enabled", [True, False])
async def test_pod_with_more_load_than_the_others_closes_connections(enabled: bool) -> None:
    async with running_harness(balance_connections=enabled) as harness:
        await harness.seconds(3, leads=False, slow=False)  # the other pod uses 90 %
        assert harness.workers.retired_shares == []
        harness.signals.use = 1.0
        harness.other_use = 0.0
        await harness.seconds(30, leads=False, slow=False)
        shares = harness.workers.retired_shares
        assert bool(shares) is enabled
        assert not shares or shares[-1] == pytest.approx(0.5 / MOVE_SECONDS)
        harness.loop.on_peer_gone("pod-2")
        harness.other_use = 1.0
        await harness.seconds(20, leads=False, slow=False)
        count = len(shares)
        await harness.seconds(5, leads=False, slow=False)
        assert len(shares) == count


async def test_no_room_is_reported_and_pods_are_requested_next() -> None:
    async with running_harness() as harness:
        await harness.seconds(5)
        harness.actuator.done.set_exception(NoRoomError("Infeasible"))
        await harness.seconds(1)
        harness.actuator.done = asyncio.get_running_loop().create_future()
        await harness.seconds(3)
        assert harness.actuator.outcomes == [("no room", "Infeasible")]
        assert harness.actuator.requested == [Size(2, 2), Size(1, 3)]


async def test_failure_is_reported_and_not_retried_at_once() -> None:
    async with running_harness() as harness:
        await harness.seconds(5)
        harness.actuator.done.set_exception(RuntimeError("refused"))
        await harness.seconds(1)
        assert harness.actuator.outcomes == [("failed", "refused")]
        harness.actuator.done = asyncio.get_running_loop().create_future()
        await harness.seconds(3)
        assert harness.actuator.requested == [Size(2, 2)]  # not immediately


async def test_change_is_cancelled_when_another_pod_leads() -> None:
    async with running_harness() as harness:
        await harness.seconds(5)
        await harness.seconds(2, leads=False)
        assert harness.actuator.outcomes == [("given up", "this router is stopping, or another router leads")]
        assert harness.actuator.current == Size(1, 2)


async def test_unknown_size_is_not_changed() -> None:
    async with running_harness() as harness:
        harness.actuator.current = None
        await harness.seconds(10)
        assert harness.actuator.requested == []


async def test_limit_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async with running_harness() as harness:
        harness.actuator.current = Size(2, 3)
        with caplog.at_level(logging.INFO, "router.scaling"):
            await harness.seconds(10)
        assert harness.actuator.outcomes == [("not done", "")]
    assert [record.message for record in caplog.records] == ["self-scaling decision"]


def test_worker_steps_follow_the_cpus_and_the_settings() -> None:
    settings = load_settings(environ={})
    assert workers_policy(settings, 4).steps == (1, 2, 3, 4)
    assert workers_policy(replace(settings, min_workers=2, max_workers=3), 8).steps == (2, 3)
    assert workers_policy(replace(settings, min_workers=3), 2).steps == (3,)


async def test_changed_settings_apply_to_the_next_decision() -> None:
    async with running_harness() as harness:
        harness.actuator.done.set_result(None)
        await harness.seconds(5, slow=False)
        assert harness.actuator.requested == []
        harness.loop.change_settings(replace(SETTINGS, self_scaling_min_pods=3))
        await harness.seconds(2, slow=False)
        assert harness.actuator.requested == [Size(1, 3)]  # within the new limits
        harness.loop.change_settings(replace(SETTINGS, self_scaling_route_time_threshold_ms=1e6))
        harness.actuator.current = Size(1, 2)
        await harness.seconds(40)
        assert harness.actuator.requested == [Size(1, 3)]  # not slow by the new threshold
        harness.loop.change_settings(SETTINGS)
        await harness.seconds(20)
        assert harness.actuator.requested[1:2] == [Size(2, 2)]
