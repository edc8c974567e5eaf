"""The loop around the self-scaler: takes in signals, has decisions carried out one at a time, and tells of them.

    workers --counters--> PodSignals --Load, 1/s--> LoadWindow --Seen--> SelfScaler --target--> Sizer
    other pods --Load--------------------------------^  (of all pods, in the pod that leads)

Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator

from router.cpu import available_cpus, cpu_quota
from router.scaling.load import Load, LoadWindow
from router.scaling.self_scaler import Decision, Kind, SelfScaler, Size
from router.scaling.sizer import NoRoomError, Sizer
from router.settings import RouterSettings
from router.sizing.newcomer import Newcomer
from router.sizing.policy import workers_policy
from router.sizing.signals import PodSignals
from router.sizing.workers_sizer import Fleet, WorkersSizer
from router.telemetry.catalogue import Sample
from router.telemetry.counters import LAG_BOUNDS, ROUTE_BOUNDS, ProcessCounted
from router.telemetry.log import event
from router.workers import Workers

_audit = logging.getLogger("router.scaling")
_log = logging.getLogger("router.sizing")

LOOK_SECONDS = 1.0
"""As often as workers tell what they have counted."""

_ACTIONS = {
    Kind.MORE_CPU: "cpu-up",
    Kind.LESS_CPU: "cpu-down",
    Kind.MORE_PODS: "pods-up",
    Kind.FEWER_PODS: "pods-down",
}


class Sizing:
    """One pod's part in the size of the router. Without `in_cluster` that is the number of its workers."""

    def __init__(
        self,
        settings: RouterSettings,
        own_id: str,
        fleet: Fleet,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._own_id = own_id
        self._fleet = fleet
        self._signals = PodSignals(time.process_time())
        self._window = LoadWindow(
            ROUTE_BOUNDS,
            LAG_BOUNDS,
            settings.self_scaling_window_seconds,
            settings.self_scaling_route_time_percentile,
        )
        self._workers: Workers | None = None
        self._sizer: Sizer | None = None
        self._scaler: SelfScaler | None = None
        self._in_cluster = False
        self._led = False
        self._newcomer = Newcomer(settings.self_scaling_resize_patience_seconds)
        self._looked_at = self._clock()
        self._changing: asyncio.Task[None] | None = None
        self._resizing: asyncio.Task[None] | None = None
        self._actions: Counter[str] = Counter()
        self._was_limited = False
        self.last: Decision | None = None
        """The last decision, of this pod."""

    # Beginning and end.

    def in_cluster(self, sizer: Sizer | None) -> None:
        """The number of workers follows the CPU quota; `sizer` changes that, and the number of pods. Call before
        `first_workers`."""
        self._in_cluster = True
        self._use(sizer)

    def first_workers(self, workers: Workers) -> int:
        """How many workers to begin with. The number of `workers` is this object's to change from now on."""
        self._workers = workers
        if self._settings.workers is not None:
            return self._settings.workers
        if self._in_cluster:
            return available_cpus()
        if not self._settings.self_scaling_enabled:
            return max(self._settings.max_workers or available_cpus(), self._settings.min_workers)
        policy = workers_policy(self._settings, available_cpus())
        self._use(WorkersSizer(policy, lambda: len(workers), workers.resize))
        return self._settings.min_workers

    def _use(self, sizer: Sizer | None) -> None:
        if sizer is not None and self._settings.self_scaling_enabled:
            self._sizer, self._scaler = sizer, SelfScaler(sizer.policy)

    async def stop(self) -> None:
        """Begin no change any more; one under way is given up."""
        self._sizer = None
        tasks = [task for task in (self._changing, self._resizing) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Signals.

    def worker_counted(self, name: str, counted: ProcessCounted) -> None:
        """A worker of this pod reports what it has counted."""
        self._signals.worker_counted(name, counted)

    def worker_ended(self, name: str) -> None:
        """A worker's process is gone."""
        self._signals.worker_ended(name)

    def pod_felt(self, pod: str, load: Load) -> None:
        """Another pod tells of its load."""
        if self._sizer is not None and self._sizer.of_all_pods:
            self._window.add(self._clock(), pod, load)

    def size_told(self, cpus: float) -> None:
        """The pod that leads says how many CPUs each is to have; 0: those that it came with."""
        self._newcomer.told(cpus)

    def pod_gone(self, pod: str) -> None:
        """Another pod is gone."""
        self._window.forget(pod)

    # Time.

    def tick(self, now: float, *, leads: bool) -> None:
        """Look, when it is time; call ten times a second. `leads`: this pod decides for all."""
        seconds = now - self._looked_at
        if seconds < LOOK_SECONDS or self._workers is None:
            return
        self._looked_at = now
        load = self._signals.take(seconds, self._cpus(self._workers), time.process_time())
        self._window.add(now, self._own_id, load)
        if self._in_cluster:
            self._fleet.tell_load(load)
            if self._settings.workers is None:
                self._follow_quota(self._workers)
        sizer = self._sizer
        if sizer is None:
            return
        if sizer.of_all_pods and leads != self._led:
            self._led = leads
            self._begin_anew(sizer)
        if leads or not sizer.of_all_pods:
            self._decide(now, sizer)

    def _begin_anew(self, sizer: Sizer) -> None:
        """Another pod decides from now on, or this one does: what was decided before is not its business."""
        self._scaler = SelfScaler(sizer.policy)
        self._was_limited = False
        if self._changing is not None:
            self._changing.cancel()

    def missing(self) -> Iterator[str]:
        """What a new pod still lacks of the size of the rest. Ask when it lacks nothing else."""
        if self._in_cluster and self._sizer is not None and self._workers is not None and not self._led:
            cpus = self._cpus(self._workers)
            lack = self._newcomer.lacks(self._clock(), cpus, has_peers=self._fleet.has_peers())
            if lack is not None:
                yield lack

    def _cpus(self, workers: Workers) -> float:
        """CPUs that this pod's processes may use: on a machine of other programs, as many as there are workers."""
        if not self._in_cluster:
            return float(max(len(workers), 1))
        return cpu_quota() or float(available_cpus())

    def _follow_quota(self, workers: Workers) -> None:
        """The number of workers is that of the CPUs, also when that changes while they run."""
        wanted = available_cpus()
        if wanted != workers.wanted and (self._resizing is None or self._resizing.done()):
            event(_log, logging.INFO, "workers follow the CPU quota", workers=wanted, before=workers.wanted)
            self._resizing = asyncio.ensure_future(self._resize(workers, wanted))

    @staticmethod
    async def _resize(workers: Workers, count: int) -> None:
        try:
            await workers.resize(count)
        except OSError as error:
            event(_log, logging.ERROR, "workers cannot be started", error=str(error))

    def _decide(self, now: float, sizer: Sizer) -> None:
        if (cpus := sizer.cpus_of_new_pods()) is not None:
            self._fleet.tell_size(cpus)
        size = sizer.size()
        if size is None or self._scaler is None:
            return
        decision = self.last = self._scaler.observe(now, self._window.seen(now), size)
        if decision.target is not None:
            self._changing = asyncio.ensure_future(self._carry_out(sizer, self._scaler, decision, size))
        elif self._scaler.at_limit and not self._was_limited:
            self._report(sizer, decision, size, "not done", "")
        self._was_limited = self._scaler.at_limit

    async def _carry_out(self, sizer: Sizer, scaler: SelfScaler, decision: Decision, before: Size) -> None:
        assert decision.target is not None
        try:
            await sizer.bring_about(decision.target)
        except asyncio.CancelledError:  # whoever decides next goes on from what there is
            self._report(sizer, decision, before, "given up", "this router ends, or another one leads")
            raise
        except NoRoomError as error:
            scaler.no_room(self._clock(), str(error))
            self._report(sizer, decision, before, "no room", str(error))
        except Exception as fault:  # noqa: BLE001  (whatever it was, it is tried again, and nothing else may stop)
            scaler.failed(self._clock())
            self._report(sizer, decision, before, "failed", str(fault) or type(fault).__name__)
        else:
            now = self._clock()
            scaler.done(now)
            self._window.forget_times(now)
            self._actions[_ACTIONS[decision.kind]] += 1
            self._report(sizer, decision, before, "done", "")

    @staticmethod
    def _report(sizer: Sizer, decision: Decision, before: Size, outcome: str, why: str) -> None:
        size = decision.target if decision.target is not None and outcome == "done" else before
        fields = {
            "action": _ACTIONS.get(decision.kind, decision.kind.value),
            "outcome": outcome,
            sizer.policy.unit.lower(): size.cpus,
            "pods": size.pods,
            "reason": decision.reason,
        }
        if why:
            fields["why_not"] = why
        level = logging.WARNING if outcome in ("no room", "failed", "not done") else logging.INFO
        event(_audit, level, "self-scaling decision", exception=None, **fields)
        sizer.decided(decision, outcome, why)

    # What is so.

    def samples(self) -> Iterator[Sample]:
        """For a scrape."""
        size = self._sizer.size() if self._sizer is not None else None
        if size is not None and self._scaler is not None:
            yield Sample("self_scaling_cpu_cores", size.cpus)
            yield Sample("self_scaling_pods", size.pods)
            yield Sample("self_scaling_at_limit", self._scaler.at_limit)
            seen = self._window.seen(self._clock())
            yield Sample("self_scaling_cpu_use_ratio", seen.cpu_use)
            for metric, value in (("route_time", seen.route_time), ("loop_lag", seen.loop_lag)):
                if value is not None:
                    yield Sample(f"self_scaling_{metric}_seconds", value)
        for action in _ACTIONS.values():
            yield Sample("self_scaling_actions", self._actions[action], (action,))
