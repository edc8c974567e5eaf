"""One replica as a process on this machine: start, wait, stop.

Contains: processes, process groups, signals and ports. Does not contain: when a replica is started or stopped
(`process_replicas`).

Each replica leads a session and a process group of its own. So Ctrl-C in the terminal reaches the router only, and a
signal to the group reaches every process that the replica started (gunicorn's workers). The id of a group is the pid of
its leader. The kernel does not reuse the id while the group has a member. After asyncio has reaped the leader of an
empty group, the kernel may reuse the id, but only after all other pids. So the group may still be signalled, but only
right after that.
"""

import asyncio
import os
import random
import signal
import socket
import sys
from pathlib import Path

from router.cluster.local import exec_wrapper
from router.cluster.local.log_file import LogFile
from router.cluster.local.program import Program

STOP_GRACE_SECONDS = 10.0
"""Time between SIGTERM and SIGKILL. The replica has no more requests, so this only bounds its clean-up."""

_GROUP_POLL_SECONDS = 0.02
"""Interval of the checks whether a process group has ended, which the kernel does not report. It is short because every
stop of a replica waits for such a check."""
_KILL_SECONDS = 2.0
"""Maximum time for a process group to end after SIGKILL."""

_PORT_RANGE = (20_000, 29_999)
"""Ports of replicas. They are below Linux's ports for outgoing connections (32768 to 60999): otherwise a connection of
the router could take a port between its allocation and the start of the replica. They are also below Kubernetes' node
ports (30000 to 32767)."""
_PORT_TRIES = 100


class PortAllocator:
    """Allocates free ports of one host. No port is allocated twice before it is released."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._allocated: set[int] = set()

    def allocate(self) -> int:
        """Return a port without a listener. Raises OSError if none is found."""
        for _ in range(_PORT_TRIES):
            port = random.randint(*_PORT_RANGE)
            if port not in self._allocated and self._is_free(port):
                self._allocated.add(port)
                return port
        raise OSError(f"no free port from {_PORT_RANGE[0]} to {_PORT_RANGE[1]} on {self._host}")

    def release(self, port: int) -> None:
        """Allow the port to be allocated again."""
        self._allocated.discard(port)

    def _is_free(self, port: int) -> bool:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Servers set this option too. Without it, a connection in TIME_WAIT would make the port appear used.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, port))
            except OSError:
                return False
        return True


class ReplicaProcess:
    """One run of a program. Call `start` once, then `wait` until it ends; `stop` and `kill` are allowed at any time."""

    def __init__(self, program: Program, *, host: str, port: int, log: LogFile) -> None:
        self._program = program
        self.host = host
        self.port = port
        self.log = log
        self._process: asyncio.subprocess.Process | None = None
        self._stop_requested = False
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The id of the process and of its group; None before the start."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process, unless `stop` or `kill` was called before.

        Raises OSError if no process can be created. `wait` reports a program that cannot be run.
        """
        if self._stop_requested:
            return
        try:
            output = self.log.create()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._arguments(),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self._program.directory,
                    env=self._program.environment,
                    start_new_session=True,
                )
            finally:
                os.close(output)
        except OSError:
            self._ended.set()
            raise
        if self._stop_requested:
            self.kill()

    async def wait(self) -> str:
        """Wait until the process and its whole group have ended. Return how the process ended: "exit code 1"."""
        if self._process is None:
            self._ended.set()
            return "not started"
        status = await self._process.wait()
        timeout = STOP_GRACE_SECONDS + _KILL_SECONDS
        if not self._stop_requested:
            # The process ended by itself. The rest of its group serves no requests and may keep the port in use.
            self._signal_group(signal.SIGKILL)
            timeout = _KILL_SECONDS
        try:
            # Bounded, because a process can hang in the kernel, where no signal reaches it.
            async with asyncio.timeout(timeout):
                while _group_is_alive(self._process.pid):  # noqa: ASYNC110 (there is no event to wait for)
                    await asyncio.sleep(_GROUP_POLL_SECONDS)
        except TimeoutError:
            pass
        self._ended.set()
        return _exit_reason(status)

    async def stop(self, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """Send SIGTERM to the group, SIGKILL after the grace period, and return when the group has ended.

        `wait` must be running at the same time.
        """
        self._stop_requested = True
        self._signal_group(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                await self._ended.wait()
        except TimeoutError:
            pass
        finally:
            # Also when this is cancelled, so that no process is left.
            self._signal_group(signal.SIGKILL)
        await self._ended.wait()

    def kill(self) -> None:
        """Send SIGKILL to the whole group."""
        self._stop_requested = True
        self._signal_group(signal.SIGKILL)

    def _arguments(self) -> list[str]:
        listen = f"{self.host}:{self.port}" if self._program.inherits_socket else ""
        return [sys.executable, "-I", "-S", exec_wrapper.__file__, str(os.getpid()), listen, *self._program.arguments]

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is None or self._ended.is_set():
            return
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass  # the group has ended, which is the purpose of every signal here
        except PermissionError:
            pass  # macOS raises this for a group of zombies


def _group_is_alive(group: int) -> bool:
    """True if a process of the group is running."""
    try:
        # In a container the router is process 1 and inherits orphans, which it has to reap.
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    # killpg(2) also succeeds for zombies, which remain if process 1 does not reap orphans.
    stats = list(Path("/proc").glob("[0-9]*/stat"))
    return not stats or any(_is_running_in(group, stat) for stat in stats)


def _is_running_in(group: int, stat: Path) -> bool:
    """True if the process of a file /proc/PID/stat (proc_pid_stat(5)) is in the group and is no zombie."""
    try:
        # The process name in parentheses may contain any character.
        state, _, group_of_process, *_ = stat.read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return False  # the process has ended meanwhile
    return int(group_of_process) == group and state not in ("Z", "X")


def _exit_reason(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
