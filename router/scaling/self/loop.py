"""The loop around the self-scaler: collects signals, applies decisions one at a time, and reports their outcomes.

    workers --counters--> PodSignals --PodLoad, 1/s--> LoadWindow --FleetLoad--> SelfScaler --target--> SizeActuator
    other pods --PodLoad-----------------------------------^  (all pods, in the pod that leads)

Decisions are made in `self_scaler`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from router.config.router import RouterSettings
from router.scaling.self.actuator import NoRoomError, Outcome, SizeActuator
from router.scaling.self.balance import share_to_move
from router.scaling.self.load import LoadWindow, PodLoad
from router.scaling.self.policy import pods_policy, workers_policy
from router.scaling.self.readiness_gate import SizeReadinessGate
from router.scaling.self.self_scaler import SelfScaler, Size, SizeAction, SizeDecision
from router.scaling.self.signals import PodSignals
from router.scaling.self.worker_actuator import WorkerActuator
from router.telemetry.catalogue import Sample
from router.telemetry.histogram import LAG_BOUNDS, ROUTE_BOUNDS
from router.telemetry.log import event
from router.workers.cpu import available_cpus, cpu_periods, cpu_quota
from router.workers.pool import WorkerPool

_log = logging.getLogger("router.scaling")

_INTERVAL_SECONDS = 1.0
"""Interval of decisions. The workers' reports of counters have the same interval."""

_ACTION_NAMES = {
    SizeAction.MORE_CPU: "cpu-up",
    SizeAction.LESS_CPU: "cpu-down",
    SizeAction.MORE_PODS: "pods-up",
    SizeAction.FEWER_PODS: "pods-down",
}
"""The names of actions in logs and metrics."""

_WARNINGS = frozenset({Outcome.NO_ROOM, Outcome.FAILED, Outcome.AT_LIMIT})


class PeerBroadcast(Protocol):
    """Sends messages to the other pods of the router. Implemented in `supervisor.peer_events`."""

    def broadcast_load(self, load: PodLoad) -> None:
        """Send the load of this pod."""

    def broadcast_size(self, cpus: float) -> None:
        """Send the CPUs that each pod should have. 0 means those with which it was created."""

    def has_peers(self) -> bool:
        """Return True if there are other pods."""


class SelfScalingLoop:
    """Controls the number of this router's workers or, in a cluster, the size of all pods if this pod leads."""

    def __init__(
        self,
        settings: RouterSettings,
        own_id: str,
        *,
        workers: WorkerPool,
        signals: PodSignals,
        peers: PeerBroadcast,
        in_cluster: bool = False,
        pod_actuator: SizeActuator | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With `in_cluster`, there is one worker per CPU of the quota, and `pod_actuator` (if self-scaling is possible)
        changes the quota and the number of pods."""
        self._settings = settings
        self._clock = clock
        self._own_id = own_id
        self._peers = peers
        self._workers = workers
        self._signals = signals
        self._window = LoadWindow(
            ROUTE_BOUNDS,
            LAG_BOUNDS,
            settings.self_scaling_window_seconds,
            settings.self_scaling_route_time_percentile,
        )
        self._in_cluster = in_cluster
        self._actuator = self._choose_actuator(pod_actuator)
        self._scaler = SelfScaler(self._actuator.policy) if self._actuator is not None else None
        self._leads = False
        self._readiness_gate = SizeReadinessGate(settings.self_scaling_resize_patience_seconds)
        self._interval_start = self._clock()
        self._applying: asyncio.Task[None] | None = None
        self._resizing: asyncio.Task[None] | None = None
        self._actions: Counter[str] = Counter()
        self._was_at_limit = False

    # Start and stop.

    def _choose_actuator(self, pod_actuator: SizeActuator | None) -> SizeActuator | None:
        settings, workers = self._settings, self._workers
        if not settings.self_scaling_enabled:
            return None
        if self._in_cluster:
            return pod_actuator
        if settings.workers is not None:
            return None
        return WorkerActuator(workers_policy(settings, available_cpus()), lambda: len(workers), workers.resize)

    def initial_workers(self) -> int:
        """Return the number of workers to start with."""
        settings = self._settings
        if settings.workers is not None:
            return settings.workers
        if self._in_cluster:
            return available_cpus()
        if not settings.self_scaling_enabled:
            return max(settings.max_workers or available_cpus(), settings.min_workers)
        return settings.min_workers

    def change_settings(self, settings: RouterSettings) -> None:
        """Apply changed settings: those with the mark `dynamic`."""
        self._settings = settings
        self._window.change(settings.self_scaling_window_seconds, settings.self_scaling_route_time_percentile)
        if self._actuator is not None and self._scaler is not None:
            in_pods = self._actuator.covers_all_pods
            self._actuator.policy = pods_policy(settings) if in_pods else workers_policy(settings, available_cpus())
            self._scaler.change_policy(self._actuator.policy)
        elif not self._in_cluster and self._workers.target_size != (count := self.initial_workers()):
            self._resizing = asyncio.ensure_future(self._resize(count))

    async def stop(self) -> None:
        """Begin no further change, and cancel one that is in progress."""
        self._actuator = None
        tasks = [task for task in (self._applying, self._resizing) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Signals.

    def on_load_report(self, pod: str, load: PodLoad) -> None:
        """Record the load that another pod has reported."""
        if self._in_cluster:
            self._window.add(self._clock(), pod, load)

    def on_pod_size(self, cpus: float) -> None:
        """Record the CPUs that each pod should have, as announced by the leader. 0 means those it was created with."""
        self._readiness_gate.on_pod_size(cpus)

    def on_peer_gone(self, pod: str) -> None:
        """Drop the CPUs of a pod that has ended."""
        self._window.remove_pod(pod)

    # Time.

    def tick(self, now: float, *, leads: bool) -> None:
        """Decide once a second. Must be called more often. With `leads`, this pod decides for all pods."""
        seconds = now - self._interval_start
        if seconds < _INTERVAL_SECONDS:
            return
        self._interval_start = now
        periods = cpu_periods() if self._in_cluster else None  # elsewhere more workers do not change the quota
        load = self._signals.take(seconds, self._cpus(), time.process_time(), periods)
        self._window.add(now, self._own_id, load)
        if self._in_cluster:
            self._peers.broadcast_load(load)
            if self._settings.balance_connections:
                self._balance_connections(now)
            if self._settings.workers is None:
                self._follow_quota()
        actuator = self._actuator
        if actuator is None:
            return
        if actuator.covers_all_pods and leads != self._leads:
            self._leads = leads
            self._restart(actuator)
        if leads or not actuator.covers_all_pods:
            self._decide(now, actuator)

    def _balance_connections(self, now: float) -> None:
        """Let workers close some client connections if other pods have less load."""
        utilizations = self._window.utilizations(now)
        share = share_to_move(utilizations.pop(self._own_id, 0.0), utilizations.values())
        if share:
            self._workers.retire_clients(share)

    def _restart(self, actuator: SizeActuator) -> None:
        """Discard the state of decisions, as leadership has changed."""
        self._scaler = SelfScaler(actuator.policy)
        self._was_at_limit = False
        if self._applying is not None:
            self._applying.cancel()

    def unmet_conditions(self) -> Iterator[str]:
        """Yield the condition that a new pod waits for, if any.

        Call this only when all other conditions of readiness are met.
        """
        if self._in_cluster and self._actuator is not None and not self._leads:
            cpus = self._cpus()
            condition = self._readiness_gate.unmet_condition(self._clock(), cpus, has_peers=self._peers.has_peers())
            if condition is not None:
                yield condition

    def _cpus(self) -> float:
        """Return the CPUs that this pod may use. Outside of a cluster this is the number of workers."""
        if not self._in_cluster:
            return float(max(len(self._workers), 1))
        return cpu_quota() or float(available_cpus())

    def _follow_quota(self) -> None:
        """Keep one worker per CPU of the quota, which may change while the pod runs."""
        count, before = available_cpus(), self._workers.target_size
        if count != before and (self._resizing is None or self._resizing.done()):
            event(_log, logging.INFO, "workers follow the CPU quota", workers=count, before=before)
            self._resizing = asyncio.ensure_future(self._resize(count))

    async def _resize(self, count: int) -> None:
        try:
            await self._workers.resize(count)
        except OSError as error:
            event(_log, logging.ERROR, "workers cannot be started", error=str(error))

    def _decide(self, now: float, actuator: SizeActuator) -> None:
        if (cpus := actuator.cpus_of_new_pods()) is not None:
            self._peers.broadcast_size(cpus)
        size = actuator.size()
        if size is None or self._scaler is None:
            return
        decision = self._scaler.observe(now, self._window.fleet_load(now), size)
        if decision.target is not None:
            self._applying = asyncio.ensure_future(self._apply(actuator, self._scaler, decision, decision.target, size))
        elif self._scaler.at_limit and not self._was_at_limit:
            self._report(actuator, decision, size, Outcome.AT_LIMIT)
        self._was_at_limit = self._scaler.at_limit

    async def _apply(
        self, actuator: SizeActuator, scaler: SelfScaler, decision: SizeDecision, target: Size, before: Size
    ) -> None:
        try:
            await actuator.apply(target)
        except asyncio.CancelledError:
            reason = "this router is stopping, or another router leads"
            self._report(actuator, decision, before, Outcome.CANCELLED, reason)
            raise
        except NoRoomError as error:
            scaler.on_no_room(self._clock(), str(error))
            self._report(actuator, decision, before, Outcome.NO_ROOM, str(error))
        except Exception as fault:  # noqa: BLE001  (any failure is retried, and must not stop anything else)
            scaler.on_failed(self._clock())
            self._report(actuator, decision, before, Outcome.FAILED, str(fault) or type(fault).__name__)
        else:
            now = self._clock()
            scaler.on_applied(now)
            self._window.reset_histograms(now)
            self._actions[_ACTION_NAMES[decision.action]] += 1
            self._report(actuator, decision, target, Outcome.DONE)

    @staticmethod
    def _report(actuator: SizeActuator, decision: SizeDecision, size: Size, outcome: Outcome, detail: str = "") -> None:
        """Log an outcome and pass it to the actuator. `size` is the size that is in effect."""
        fields: dict[str, Any] = {
            "action": _ACTION_NAMES.get(decision.action, decision.action.value),
            "outcome": outcome.value,
            actuator.policy.unit.lower(): size.cpus,
            "pods": size.pods,
            "reason": decision.reason,
        }
        if detail:
            fields["why_not"] = detail
        level = logging.WARNING if outcome in _WARNINGS else logging.INFO
        event(_log, level, "self-scaling decision", exception=None, **fields)
        actuator.on_outcome(decision, outcome, detail)

    # Metrics.

    def samples(self) -> Iterator[Sample]:
        """Yield the samples of a scrape."""
        size = self._actuator.size() if self._actuator is not None else None
        if size is not None and self._scaler is not None:
            yield Sample("self_scaling_cpu_cores", size.cpus)
            yield Sample("self_scaling_pods", size.pods)
            yield Sample("self_scaling_at_limit", self._scaler.at_limit)
            load = self._window.fleet_load(self._clock())
            yield Sample("self_scaling_cpu_use_ratio", load.cpu_utilization)
            for metric, value in (
                ("route_time_seconds", load.route_time),
                ("loop_lag_seconds", load.loop_lag),
                ("throttled_ratio", load.throttled),
            ):
                if value is not None:
                    yield Sample(f"self_scaling_{metric}", value)
        for action in _ACTION_NAMES.values():
            yield Sample("self_scaling_actions", self._actions[action], (action,))
