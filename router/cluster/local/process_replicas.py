"""The replicas of one version that the router starts itself.

Contains: carrying out the decisions of `reconcile` and `restart_backoff`, and reporting the results. Does not contain:
starting and stopping a process (`replica_process`), probing it (`probe`).

A replica is READY while its readiness probe succeeds, else STARTING. It becomes DRAINING when there are too many
replicas, when a replica with newer launch settings replaces it, or when its liveness probe fails after it was ready.
Once drained, it is stopped. A replica that exits, or whose liveness probe fails, is replaced as soon as
`RestartBackoff` allows it. Only the liveness probe bounds the time of a start. After each such event `_reconcile` takes
the next step.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from router.cluster.local.context import LocalContext
from router.cluster.local.launch import LaunchSettings
from router.cluster.local.log_file import LogFile, log_path, remove_old_logs
from router.cluster.local.probe import (
    STARTING_INTERVAL,
    ProbeFailure,
    Prober,
    extra_timeout,
    liveness_settings,
    readiness_settings,
)
from router.cluster.local.program import build_program
from router.cluster.local.raised_exception import RaisedException, last_exception
from router.cluster.local.reconcile import Candidate, plan_next_step
from router.cluster.local.replica_process import ReplicaProcess
from router.cluster.local.restart_backoff import RestartBackoff
from router.cluster.local.start_failures import StartFailure, StartFailures, excerpt
from router.model.problems import Problem
from router.model.replica_health import ProbeReport
from router.model.services import Replica, ReplicaState, Version, VersionKey, version_label
from router.net.address import host_port

SLOW_START_SECONDS = 30.0
"""Time after which a replica that has never been ready is reported. Large models take minutes to start; with a wrong
port, a replica never becomes ready."""

WRONG_PATH_SECONDS = 3.0
"""Time after which a replica is reported that has never been ready and responds to probes with an error status. A
server that still loads its model responds with 503 or not at all, so another status suggests a wrong path."""


@dataclass(slots=True, eq=False)
class _ProcessReplica:
    id: str
    launch: LaunchSettings
    process: ReplicaProcess
    started_at: float
    not_ready_since: float
    state: ReplicaState = ReplicaState.STARTING
    ready_at: float | None = None
    """When it was ready for the first time."""
    not_ready_reason: str | None = None
    """The last probe failure of a slow start, or of a replica that is no longer ready."""
    start_failure: str | None = None
    """Why the router stopped the replica before it was ready."""
    has_reported_error: bool = False
    """True once its first response with a status of 500 or more was reported."""
    readiness: Prober | None = None
    probe_tasks: list[asyncio.Task[None]] = field(default_factory=list)
    drain_task: asyncio.Future[bool] | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def cancel_probes(self) -> None:
        for task in self.probe_tasks:
            task.cancel()

    def to_replica(self) -> Replica:
        return Replica(self.id, self.process.host, self.process.port, self.state)

    def ready_for(self, now: float) -> float | None:
        return None if self.ready_at is None else now - self.ready_at


class ProcessReplicas:
    """Keeps the wanted number of processes of one version running."""

    def __init__(
        self,
        key: VersionKey,
        version: Version,
        launch: LaunchSettings,
        context: LocalContext,
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called when `replicas()` has changed, unless a call of a method has changed it. No process is
        started before `set_wanted`."""
        self._key = key
        self._version = version
        self._launch = launch
        self._context = context
        self._on_change = on_change
        self._wanted = 0
        self._replicas: dict[str, _ProcessReplica] = {}
        self._backoff = RestartBackoff()
        self._restart_times: list[float] = []  # of replicas that `_backoff` delays
        self._start_failures = StartFailures()
        self._restart_timer: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> int:
        """Wanted number of replicas."""
        return self._wanted

    def replicas(self) -> tuple[Replica, ...]:
        """All replicas, in the order of their start."""
        return tuple(replica.to_replica() for replica in self._replicas.values())

    def problems(self) -> list[Problem]:
        """Reasons why replicas are not ready."""
        now = self._context.clock()
        failure = self._start_failures.problem(self._key, now) if self._wanted else None
        return ([] if failure is None else [failure]) + [
            Problem(
                f"a replica is not ready: {replica.not_ready_reason}",
                *self._key,
                place=replica.id,
                detail=f"for {now - replica.not_ready_since:.0f} s",
            )
            for replica in self._replicas.values()
            if replica.not_ready_reason is not None and replica.state is ReplicaState.STARTING
        ]

    def probes(self) -> dict[str, ProbeReport]:
        """The last readiness probe of each replica that was probed, by id."""
        return {
            replica.id: ProbeReport(*replica.readiness.last_result, replica.not_ready_reason)
            for replica in self._replicas.values()
            if replica.readiness is not None and replica.readiness.last_result is not None
        }

    def set_wanted(self, replicas: int, remove: Collection[str] = ()) -> None:
        """Start or stop replicas until there are `replicas`. Those in `remove`, which have been drained, are stopped
        first."""
        self._wanted = replicas
        self._reconcile(remove)

    def update(self, version: Version, launch: LaunchSettings) -> None:
        """Apply changed settings. After changed launch settings, call `set_wanted` to replace the replicas."""
        self._version = version
        if launch != self._launch:
            self._launch = launch
            # The new launch settings may work although the previous ones failed.
            self._backoff = RestartBackoff()
            self._restart_times.clear()
            self._start_failures.clear()

    def report_server_error(self, replica_id: str, status: int) -> None:
        """Report the exception in the log of a replica that has responded with a status of 500 or more, once."""
        replica = self._replicas.get(replica_id)
        if replica is None or replica.has_reported_error:
            return
        replica.has_reported_error = True
        log = replica.process.log
        exception = last_exception(log.tail(), replica.launch.directory)
        self._notify(
            logging.WARNING, "replica has responded with an error", replica, status=status,
            text=f"{replica_id} has responded with {status}: {self._describe_exception(exception)}; "
            f"whole output: {log.path}",
            log=str(log.path), **self._exception_fields(exception),
        )  # fmt: skip

    def _describe_exception(self, exception: RaisedException | None) -> str:
        if exception is None:
            return "no exception in its output"
        with_message = self._context.logs_exception_messages
        hint = " (message: log_exception_messages: true)" if exception.message and not with_message else ""
        return exception.describe(with_message=with_message) + hint

    def _exception_fields(self, exception: RaisedException | None) -> dict[str, Any]:
        """Return the log fields of an exception. Its message may have data of a request."""
        if exception is None:
            return {}
        fields: dict[str, Any] = {"error_type": exception.type, "file": exception.file, "line": exception.line}
        return fields | ({"error_message": exception.message} if self._context.logs_exception_messages else {})

    def truncate_logs(self) -> None:
        """Truncate the logs that are too large."""
        for replica in self._replicas.values():
            try:
                replica.process.log.truncate()
            except OSError:
                continue  # there is no log yet, or it was removed: nothing to truncate

    async def stop(self) -> None:
        """Call this after `set_wanted(0)`. Stop draining, and wait until all processes have ended."""
        for replica in self._replicas.values():
            if replica.drain_task is not None:
                replica.drain_task.cancel()
        tasks = [task for replica in self._replicas.values() for task in replica.tasks]
        if tasks:
            await asyncio.wait(tasks)

    def kill(self) -> None:
        """Send SIGKILL to all processes, without waiting for their end."""
        self.set_wanted(0)
        for replica in self._replicas.values():
            replica.process.kill()

    def _reconcile(self, remove: Collection[str] = ()) -> None:
        now = self._context.clock()
        self._restart_times = [time for time in self._restart_times if time > now]
        candidates = [
            Candidate(replica.id, replica.state, replica.launch == self._launch) for replica in self._replicas.values()
        ]
        step = plan_next_step(candidates, self._wanted, remove=remove, held_back=len(self._restart_times))
        for replica_id in step.stop:
            self._begin_removal(self._replicas[replica_id], is_drained=replica_id in remove)
        for _ in range(step.start):
            self._start_replica()
        self._set_restart_timer(now)

    def _reconcile_and_report(self) -> None:
        self._reconcile()
        self._on_change()

    def _set_restart_timer(self, now: float) -> None:
        if self._restart_timer is not None:
            self._restart_timer.cancel()
            self._restart_timer = None
        if self._restart_times and self._wanted:
            delay = min(self._restart_times) - now
            self._restart_timer = asyncio.get_running_loop().call_later(delay, self._reconcile_and_report)

    def _start_replica(self) -> None:
        context, now = self._context, self._context.clock()
        replica_id = context.new_id(self._key)
        service, version = self._key
        model_dir = context.state_dir / "models" / service / version
        log_dir = context.state_dir / "logs" / service / version
        try:
            model_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove_old_logs(log_dir, frozenset(replica.process.log.path for replica in self._replicas.values()))
            port = context.ports.allocate()
        except OSError as error:
            self._report_failed_start(replica_id, StartFailure(str(error)), now)
            return
        program = build_program(
            self._key,
            self._launch,
            host=context.host,
            port=port,
            model_dir=model_dir,
            scoring_prefix=context.scoring_prefix,
            log_environment=context.log_environment(self._key, self._version),
        )
        log = LogFile(log_path(log_dir, replica_id))
        process = ReplicaProcess(program, host=context.host, port=port, log=log)
        replica = _ProcessReplica(replica_id, self._launch, process, started_at=now, not_ready_since=now)
        self._replicas[replica_id] = replica
        replica.tasks.append(context.tasks.start(self._run_process(replica)))

    async def _run_process(self, replica: _ProcessReplica) -> None:
        """Start one process, probe it and wait for its end."""
        process = replica.process
        try:
            await process.start()
        except OSError as error:
            exit_reason = f"no process: {error.strerror}"
        else:
            self._notify(logging.INFO, "replica starts", replica, text=None, pid=process.pid, port=process.port)
            self._start_probes(replica)
            exit_reason = await process.wait()
            replica.cancel_probes()
        self._on_exit(replica, exit_reason)

    def _start_probes(self, replica: _ProcessReplica) -> None:
        if replica.state is ReplicaState.DRAINING:
            return
        readiness = replica.readiness = Prober(
            host=replica.process.host,
            port=replica.process.port,
            path=lambda: replica.launch.readiness_path,
            settings=lambda: readiness_settings(self._version),
            extra_timeout=lambda: self._extra_timeout(replica),
            on_change=lambda ready, reason: self._on_readiness_changed(replica, ready, reason),
            on_failure=lambda failure: self._on_probe_failed(replica, failure),
            starting_interval=STARTING_INTERVAL,
        )
        liveness = Prober(
            host=replica.process.host,
            port=replica.process.port,
            path=lambda: replica.launch.liveness_path,
            settings=lambda: liveness_settings(self._version),
            extra_timeout=lambda: self._extra_timeout(replica),
            on_change=lambda _, reason: self._on_liveness_lost(replica, reason),
            ok=True,
        )
        replica.probe_tasks = [self._context.tasks.start(prober.run()) for prober in (readiness, liveness)]

    def _extra_timeout(self, replica: _ProcessReplica) -> float:
        return extra_timeout(self._version, has_requests=self._context.has_requests(replica.id))

    def _on_readiness_changed(self, replica: _ProcessReplica, ready: bool, reason: str) -> None:
        if replica.state is ReplicaState.DRAINING:
            return
        now = self._context.clock()
        if not ready:
            replica.state = ReplicaState.STARTING
            replica.not_ready_since = now
            replica.not_ready_reason = reason
            self._notify(logging.WARNING, "replica is no longer ready", replica, reason=reason)
        else:
            replica.state = ReplicaState.READY
            replica.not_ready_reason = None
            if replica.launch == self._launch:
                self._start_failures.clear()
            if replica.ready_at is None:
                replica.ready_at = now
                self._notify(
                    logging.INFO, "replica is ready", replica, text=None, seconds=round(now - replica.started_at, 2)
                )
            else:
                seconds = round(now - replica.not_ready_since, 2)
                self._notify(logging.INFO, "replica is ready again", replica, text=None, seconds=seconds)
        self._reconcile_and_report()

    def _on_probe_failed(self, replica: _ProcessReplica, failure: ProbeFailure) -> None:
        if replica.state is not ReplicaState.STARTING:
            return
        if replica.ready_at is not None:
            replica.not_ready_reason = failure.reason
            return
        seconds = self._context.clock() - replica.not_ready_since
        if seconds < (WRONG_PATH_SECONDS if _suggests_wrong_path(failure) else SLOW_START_SECONDS):
            return
        path, process = replica.launch.readiness_path, replica.process
        # Without the port, which differs between replicas, so that problems with one cause are grouped.
        reason = _describe_start(failure, path, "its port")
        if replica.not_ready_reason is None:
            described = _describe_start(failure, path, host_port(process.host, process.port))
            self._notify(
                logging.WARNING, "replica is not ready yet", replica, text=f"{replica.id} is not ready: {described}",
                seconds=round(seconds, 1), reason=reason, port=process.port,
            )  # fmt: skip
        replica.not_ready_reason = reason

    def _on_liveness_lost(self, replica: _ProcessReplica, reason: str) -> None:
        """Replace a replica whose liveness probe has failed.

        A replica that was never ready is stopped before its replacement starts, since both together may not fit into
        memory. A replica that was ready may have requests, so its replacement starts while it drains.
        """
        if replica.state is ReplicaState.DRAINING:
            return
        self._notify(logging.WARNING, "replica fails its liveness probe", replica, reason=reason)
        if replica.ready_at is None:
            replica.start_failure = f"liveness probe failed: {reason}"
            replica.cancel_probes()
            replica.tasks.append(self._context.tasks.start(replica.process.stop()))
            return
        now = self._context.clock()
        self._delay_restart(now, replica.ready_for(now))
        self._begin_removal(replica, is_drained=False)
        self._reconcile_and_report()

    def _begin_removal(self, replica: _ProcessReplica, *, is_drained: bool) -> None:
        """Send no more requests to a replica, and stop it once it has drained."""
        has_no_requests = is_drained or replica.ready_at is None
        replica.state = ReplicaState.DRAINING
        replica.cancel_probes()
        if not has_no_requests:
            timeout = self._version.replica_drain_seconds
            replica.drain_task = asyncio.ensure_future(self._context.drain(replica.id, timeout))
        replica.tasks.append(self._context.tasks.start(self._drain_and_stop(replica)))

    async def _drain_and_stop(self, replica: _ProcessReplica) -> None:
        if replica.drain_task is not None:
            await asyncio.wait((replica.drain_task,))
        await replica.process.stop()
        if replica.drain_task is not None and not replica.drain_task.cancelled():
            replica.drain_task.result()  # raises the exception of a failed drain, now that the process has been stopped

    def _on_exit(self, replica: _ProcessReplica, exit_reason: str) -> None:
        now = self._context.clock()
        del self._replicas[replica.id]
        self._context.ports.release(replica.process.port)
        if replica.drain_task is not None:
            replica.drain_task.cancel()  # the process has exited, so it has no more requests
        if replica.state is ReplicaState.DRAINING:
            self._notify(logging.INFO, "replica stopped", replica, text=None)
        else:
            for other in (replica, *self._replicas.values()):
                self._backoff.on_ready(other.started_at, other.ready_for(now) or 0.0)
            reason = replica.start_failure or exit_reason
            if replica.ready_at is None:
                self._report_failed_start(replica.id, self._start_failure(replica, reason), now)
            else:
                self._report_death(replica, reason, now)
        self._reconcile_and_report()

    def _start_failure(self, replica: _ProcessReplica, reason: str) -> StartFailure:
        log = replica.process.log
        output = log.tail()
        exception = last_exception(output, replica.launch.directory)
        return StartFailure(
            reason,
            exception.describe(with_message=True) if exception is not None else "",
            excerpt(output, exception.traceback if exception is not None else ()),
            str(log.path) if output else "",
        )

    def _report_failed_start(self, replica_id: str, failure: StartFailure, now: float) -> None:
        delay = self._delay_restart(now, None)
        text = self._start_failures.add(failure, now, delay)
        if text is not None:
            self._context.notify(
                self._key, logging.WARNING, "replica cannot start", text=f"{version_label(self._key)} {text}",
                replica=replica_id, how=failure.reason, error=failure.exception, log=failure.log,
                retry_seconds=round(delay, 2), output="\n".join(failure.output),
            )  # fmt: skip

    def _report_death(self, replica: _ProcessReplica, reason: str, now: float) -> None:
        ready_for = replica.ready_for(now) or 0.0
        log = replica.process.log
        self._notify(
            logging.WARNING, "replica died", replica, how=reason, ready_seconds=round(ready_for, 2),
            retry_seconds=round(self._delay_restart(now, ready_for), 2), log=str(log.path),
            **self._exception_fields(last_exception(log.tail(), replica.launch.directory)),
        )  # fmt: skip

    def _delay_restart(self, now: float, ready_for: float | None) -> float:
        """Record that a replica failed, and return the seconds until its replacement may start."""
        delay = self._backoff.on_exit(now, ready_for)
        if delay > 0:
            self._restart_times.append(now + delay)
        return delay

    def _notify(
        self, level: int, message: str, replica: _ProcessReplica, *, text: str | None = "", **fields: object
    ) -> None:
        self._context.notify(self._key, level, message, text=text, replica=replica.id, **fields)


def _suggests_wrong_path(failure: ProbeFailure) -> bool:
    return failure.status is not None and failure.status != HTTPStatus.SERVICE_UNAVAILABLE


def _describe_start(failure: ProbeFailure, path: str, port: str) -> str:
    """Return why a replica has never been ready, with advice where the cause is probably a setting."""
    if failure.is_refused:
        return f"nothing listens on {port}; does the program use {{port}}?"
    if failure.status is None:
        return failure.reason
    text = f"GET {path} responded with {failure.status}"
    advice = "; set readiness_path to a path with a status of 200 to 399"
    return text + advice if _suggests_wrong_path(failure) else text
