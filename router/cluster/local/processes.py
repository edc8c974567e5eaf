"""The replicas of one version that the router starts itself.

Lives here: acting on the decisions of `health` and telling what came of it. Must not live here: the decisions, how a
process is made or ended (`replica`), how it is probed (`probe`).

A replica's life: STARTING from its start until probes succeed; READY; DRAINING when it is no longer wanted, replaced
by one of a newer launch, or no longer answers. It is stopped when it has drained. One that ends by itself is replaced
when `Backoff` allows it. After each such event `_reconcile` looks at all of them and takes the next step.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from router.cluster.local.around import Around
from router.cluster.local.file import Launch
from router.cluster.local.health import Backoff, Candidate, plan
from router.cluster.local.log import LogFile, forget_old_logs
from router.cluster.local.probe import Watch
from router.cluster.local.program import program_of
from router.cluster.local.replica import ReplicaProcess
from router.services import Replica, ReplicaState, Version, VersionKey

SLOW_START_SECONDS = 30.0
"""After which it is told that a replica is not ready yet: large models do take minutes, a wrong port takes for ever."""


@dataclass(slots=True, eq=False)
class _Member:
    id: str
    launch: Launch
    process: ReplicaProcess
    started_at: float
    state: ReplicaState = ReplicaState.STARTING
    ready_at: float | None = None
    too_slow: bool = False
    silence: str | None = None
    """Why a slow start is none yet."""
    watching: asyncio.Task[None] | None = None
    draining: asyncio.Future[bool] | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def facts(self) -> Replica:
        return Replica(self.id, self.process.host, self.process.port, self.state)

    def ready_for(self, now: float) -> float | None:
        return None if self.ready_at is None else now - self.ready_at


class Processes:
    """Keeps as many processes of one version as are wanted."""

    def __init__(
        self, key: VersionKey, version: Version, launch: Launch, around: Around, changed: Callable[[], None]
    ) -> None:
        """`changed` is called when `replicas()` has become another by itself, not by a method. None is started before
        `want`."""
        self._key = key
        self._version = version
        self._launch = launch
        self._around = around
        self._changed = changed
        self._wanted = 0
        self._members: dict[str, _Member] = {}
        self._backoff = Backoff()
        self._held_until: list[float] = []
        self._cannot_start: str | None = None  # how the last start ended that came to nothing
        self._timer: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> int:
        """How many there are to be."""
        return self._wanted

    def replicas(self) -> tuple[Replica, ...]:
        """All there are, in the order of their start."""
        return tuple(member.facts() for member in self._members.values())

    def problems(self) -> list[str]:
        """What keeps replicas from being ready, in a line each."""
        failed = [f"replicas cannot start: {self._cannot_start}"] if self._cannot_start and self._wanted else []
        now = self._around.clock()
        return failed + [
            f"{member.id} is not ready after {now - member.started_at:.0f} s: {member.silence}"
            for member in self._members.values()
            if member.silence is not None and member.state is ReplicaState.STARTING
        ]

    def want(self, replicas: int, remove: Collection[str] = ()) -> None:
        """Start or stop some, so that there are `replicas`; when some must go, those in `remove` (already drained)
        first."""
        self._wanted = replicas
        self._reconcile(remove)

    def update(self, version: Version, launch: Launch) -> None:
        """Go by other settings from now on. A changed launch replaces replicas with the next `want`."""
        self._version = version
        if launch != self._launch:
            self._launch = launch
            # What kept the former program from starting says nothing of this one.
            self._backoff = Backoff()
            self._held_until.clear()
            self._cannot_start = None

    def cut_logs(self) -> None:
        """Bound the log of each replica."""
        for member in self._members.values():
            try:
                member.process.log.cut()
            except OSError:
                continue  # no log yet, or somebody removed it; it then takes no space that could be given back

    async def stop(self) -> None:
        """Wait until all are gone, after `want(0)`; without waiting for their requests."""
        for member in self._members.values():
            if member.draining is not None:
                member.draining.cancel()
        tasks = [task for member in self._members.values() for task in member.tasks]
        if tasks:
            await asyncio.wait(tasks)

    def kill(self) -> None:
        """End all with no grace, and do not wait for it."""
        self.want(0)
        for member in self._members.values():
            member.process.kill()

    def _reconcile(self, remove: Collection[str] = ()) -> None:
        now = self._around.clock()
        self._held_until = [due for due in self._held_until if due > now]
        candidates = [Candidate(m.id, m.state, m.launch == self._launch) for m in self._members.values()]
        step = plan(candidates, self._wanted, remove=remove, held_back=len(self._held_until))
        for replica_id in step.stop:
            self._let_go(self._members[replica_id], drained=replica_id in remove)
        for _ in range(step.start):
            self._start_one()
        self._set_timer(now)

    def _go_on(self) -> None:
        """Something has happened: take the next step, and tell what is new."""
        self._reconcile()
        self._changed()

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._held_until and self._wanted:
            delay = min(self._held_until) - now
            self._timer = asyncio.get_running_loop().call_later(delay, self._go_on)

    def _start_one(self) -> None:
        around, now = self._around, self._around.clock()
        replica_id = around.new_id(self._key)
        service, version = self._key
        model_dir = around.state_dir / "models" / service / version
        log_dir = around.state_dir / "logs" / service / version
        try:
            model_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            forget_old_logs(log_dir, frozenset(member.process.log.path for member in self._members.values()))
            port = around.ports.take()
        except OSError as error:
            self._replace_later(replica_id, now, None, str(error), "")
            return
        program = program_of(self._key, self._launch, host=around.host, port=port, model_dir=model_dir)
        log = LogFile(log_dir / f"{replica_id}.log")
        process = ReplicaProcess(program, host=around.host, port=port, log=log)
        member = _Member(replica_id, self._launch, process, now)
        self._members[replica_id] = member
        member.tasks.append(around.tasks.begin(self._run(member)))

    async def _run(self, member: _Member) -> None:
        """The whole life of one process."""
        process = member.process
        seconds = self._version.initial_delay_seconds
        deadline = asyncio.get_running_loop().call_later(seconds, self._give_up_start, member)
        try:
            await process.start()
        except OSError as error:
            how = f"no process: {error.strerror}"
        else:
            self._tell(logging.INFO, "replica starts", member, pid=process.pid, port=process.port)
            member.watching = self._around.tasks.begin(self._watch(member).run())
            how = await process.wait()
            member.watching.cancel()
        deadline.cancel()
        self._ended(member, how)

    def _watch(self, member: _Member) -> Watch:
        return Watch(
            host=member.process.host,
            port=member.process.port,
            path=lambda: member.launch.readiness_path,
            version=lambda: self._version,
            busy=lambda: self._around.busy(member.id),
            turned=lambda ready, reason: self._turned(member, ready, reason),
            silent=lambda reason: self._is_silent(member, reason),
        )

    def _turned(self, member: _Member, ready: bool, reason: str) -> None:
        if member.state is ReplicaState.DRAINING:
            return
        now = self._around.clock()
        if ready:
            member.state = ReplicaState.READY
            member.ready_at = now
            if member.launch == self._launch:
                self._cannot_start = None
            self._tell(logging.INFO, "replica is ready", member, seconds=round(now - member.started_at, 2))
        else:
            self._tell(logging.WARNING, "replica no longer answers", member, reason=reason)
            self._let_go(member, drained=False)
        self._go_on()

    def _is_silent(self, member: _Member, reason: str) -> None:
        seconds = self._around.clock() - member.started_at
        if member.state is not ReplicaState.STARTING or seconds < SLOW_START_SECONDS:
            return
        if member.silence is None:
            self._tell(
                logging.WARNING, "replica is not ready yet", member, seconds=round(seconds, 1), reason=reason,
                port=member.process.port,
            )  # fmt: skip
        member.silence = reason

    def _give_up_start(self, member: _Member) -> None:
        if member.state is ReplicaState.STARTING:
            member.too_slow = True
            member.process.kill()

    def _let_go(self, member: _Member, *, drained: bool) -> None:
        """Send it nothing more, and stop it once it has drained."""
        unused = drained or member.ready_at is None
        member.state = ReplicaState.DRAINING
        if member.watching is not None:
            member.watching.cancel()
        if not unused:
            seconds = self._version.scoring_timeout_ms / 1000
            member.draining = asyncio.ensure_future(self._around.drain(member.id, seconds))
        member.tasks.append(self._around.tasks.begin(self._leave(member)))

    async def _leave(self, member: _Member) -> None:
        if member.draining is not None:
            await asyncio.wait((member.draining,))
        await member.process.stop()
        if member.draining is not None and not member.draining.cancelled():
            member.draining.result()  # raises what went wrong in there, after the replica is gone all the same

    def _ended(self, member: _Member, how: str) -> None:
        now = self._around.clock()
        del self._members[member.id]
        self._around.ports.give_back(member.process.port)
        if member.draining is not None:
            member.draining.cancel()  # died while it drained: nothing is left to wait for
        if member.state is ReplicaState.DRAINING:
            self._tell(logging.INFO, "replica stopped", member)
        else:
            for other in (member, *self._members.values()):
                self._backoff.thrives(other.started_at, other.ready_for(now) or 0.0)
            if member.too_slow:
                how = f"not ready within {self._version.initial_delay_seconds} s"
            self._replace_later(member.id, now, member.ready_for(now), how, member.process.log.tail())
        self._go_on()

    def _replace_later(self, replica_id: str, now: float, ready_for: float | None, how: str, output: str) -> None:
        delay = self._backoff.died(now, ready_for)
        if delay > 0:
            self._held_until.append(now + delay)
        fields = {"replica": replica_id, "how": how, "retry_seconds": round(delay, 2)}
        if ready_for is None:
            self._cannot_start = how
            self._around.notice(self._key, logging.WARNING, "replica cannot start", **fields, output=output)
        else:
            self._around.notice(self._key, logging.WARNING, "replica died", **fields, ready_seconds=round(ready_for, 2))

    def _tell(self, level: int, message: str, member: _Member, **fields: object) -> None:
        self._around.notice(self._key, level, message, replica=member.id, **fields)
