"""The loop around the self-scaler: one change at a time, each told; who leads decides. The test plays all others."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from router.scaling.load import Load
from router.scaling.self_scaler import Decision, Policy, Size
from router.scaling.sizer import NoRoomError
from router.settings import load_settings
from router.sizing.policy import pods_policy, workers_policy
from router.sizing.sizing import Sizing
from router.telemetry.catalogue import checked
from router.telemetry.counters import LAG_BOUNDS, ROUTE_BOUNDS
from router.workers import Workers

SETTINGS = replace(
    load_settings(environ={}),
    self_scaling_min_pods=2,
    self_scaling_max_pods=3,
    self_scaling_cpu_steps=(1.0, 2.0),
    workers=1,
)


class Fleet:
    """The other pods."""

    def __init__(self) -> None:
        self.loads: list[Load] = []
        self.sizes: list[float] = []

    def tell_load(self, load: Load) -> None:
        self.loads.append(load)

    def tell_size(self, cpus: float) -> None:
        self.sizes.append(cpus)

    def has_peers(self) -> bool:
        return True


class Cluster:
    """A sizer whose changes end as the test says."""

    of_all_pods = True

    def __init__(self) -> None:
        self.policy: Policy = pods_policy(SETTINGS)
        self.now: Size | None = Size(1, 2)
        self.cpus: float | None = 1
        self.asked: list[Size] = []
        self.said: list[tuple[str, str]] = []
        self.ends: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def size(self) -> Size | None:
        return self.now

    def cpus_of_new_pods(self) -> float | None:
        return self.cpus

    async def bring_about(self, target: Size) -> None:
        self.asked.append(target)
        await self.ends
        self.now = target

    def decided(self, decision: Decision, outcome: str, why: str) -> None:
        self.said.append((outcome, why))


class SomeWorkers(Workers):
    """As many as there are wanted."""

    def __init__(self) -> None:
        self._wanted = 1

    def __len__(self) -> int:
        return 1


class Story:
    """One pod, its seconds, and what it and another one feel in each."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fleet = Fleet()
        self.cluster = Cluster()
        self.sizing = Sizing(SETTINGS, "pod-1", self.fleet, clock=lambda: self.now)
        self.sizing.in_cluster(self.cluster)
        assert self.sizing.first_workers(SomeWorkers()) == 1

    async def second(self, *, leads: bool = True, slow: bool = True) -> None:
        self.now += 1.0
        place = -1 if slow else 0
        route_time, lag = [0] * (len(ROUTE_BOUNDS) + 1), [0] * (len(LAG_BOUNDS) + 1)
        route_time[place] = 100
        self.sizing._window.add(self.now, "pod-2", Load(1.0, 1.0, 0.9, route_time, lag))
        self.sizing.tick(self.now, leads=leads)
        await asyncio.sleep(0)

    async def seconds(self, count: int, **facts: bool) -> None:
        for _ in range(count):
            await self.second(**facts)


def story(tell: Callable[[Story], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        async def told() -> None:
            its = Story()
            await tell(its)
            await its.sizing.stop()

        asyncio.run(told())

    run.__name__ = tell.__name__
    return run


@story
async def test_who_leads_decides_and_one_change_at_a_time(its: Story) -> None:
    await its.seconds(10, leads=False)
    assert its.cluster.asked == []
    await its.seconds(10)
    assert its.cluster.asked == [Size(2, 2)]
    its.cluster.ends.set_result(None)
    await its.seconds(2)
    assert its.cluster.said == [("done", "")]
    samples = {(each.metric, each.labels): each.value for each in map(checked, its.sizing.samples())}
    assert samples["self_scaling_actions", ("cpu-up",)] == 1
    assert samples["self_scaling_cpu_cores", ()] == 2
    assert samples["self_scaling_pods", ()] == 2


@story
async def test_other_pods_are_told_load_and_size(its: Story) -> None:
    await its.seconds(3, leads=False, slow=False)
    assert (len(its.fleet.loads), its.fleet.sizes) == (3, [])
    await its.seconds(3, slow=False)
    assert (len(its.fleet.loads), its.fleet.sizes) == (6, [1, 1, 1])
    its.cluster.now, its.cluster.cpus = None, None
    await its.second(slow=False)
    assert its.fleet.sizes == [1, 1, 1]
    its.cluster.cpus = 0
    await its.second(slow=False)
    assert its.fleet.sizes == [1, 1, 1, 0]


@story
async def test_no_room_is_told_and_pods_are_asked_for_next(its: Story) -> None:
    await its.seconds(5)
    its.cluster.ends.set_exception(NoRoomError("Infeasible"))
    await its.seconds(1)
    its.cluster.ends = asyncio.get_running_loop().create_future()
    await its.seconds(3)
    assert its.cluster.said == [("no room", "Infeasible")]
    assert its.cluster.asked == [Size(2, 2), Size(1, 3)]


@story
async def test_a_failure_is_told_and_tried_again(its: Story) -> None:
    await its.seconds(5)
    its.cluster.ends.set_exception(RuntimeError("refused"))
    await its.seconds(1)
    assert its.cluster.said == [("failed", "refused")]
    its.cluster.ends = asyncio.get_running_loop().create_future()
    await its.seconds(3)
    assert its.cluster.asked == [Size(2, 2)]  # not at once


@story
async def test_another_leader_goes_on_from_what_there_is(its: Story) -> None:
    await its.seconds(5)
    await its.seconds(2, leads=False)
    assert its.cluster.said == [("given up", "this router ends, or another one leads")]
    assert its.cluster.now == Size(1, 2)


@story
async def test_an_unknown_size_is_left_alone(its: Story) -> None:
    its.cluster.now = None
    await its.seconds(10)
    assert its.cluster.asked == []


def test_the_limit_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def tell(its: Story) -> None:
        its.cluster.now = Size(2, 3)
        with caplog.at_level(logging.INFO, "router.scaling"):
            await its.seconds(10)
        assert its.cluster.said == [("not done", "")]

    story(tell)()
    assert [record.message for record in caplog.records] == ["self-scaling decision"]


def test_the_workers_of_a_machine_are_its_cpus_unless_set() -> None:
    settings = load_settings(environ={})
    assert workers_policy(settings, 4).steps == (1, 2, 3, 4)
    assert workers_policy(replace(settings, min_workers=2, max_workers=3), 8).steps == (2, 3)
    assert workers_policy(replace(settings, min_workers=3), 2).steps == (3,)
