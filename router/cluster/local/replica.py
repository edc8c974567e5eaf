"""One replica as a process on this machine: start, wait, stop.

Lives here: what is specific to processes, their groups, signals and ports. Must not live here: when a replica is
started or stopped and what its state means (`processes`).

Each replica leads a session and a process group of its own, so that Ctrl-C in the terminal reaches the router only,
and a signal to the group reaches all that it started (gunicorn's workers). The group's number is that of its leader.
The kernel gives it to nobody else while the group has a member; `asyncio` reaps the leader, after which the group is
signalled only at once, as the number comes round again only after all others.
"""

import asyncio
import os
import random
import signal
import socket
import sys
from pathlib import Path

from router.cluster.local import child
from router.cluster.local.log import LogFile
from router.cluster.local.program import Program

STOP_GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL: the replica has no request any more, so this only bounds its clean-up."""

_GROUP_POLL_SECONDS = 0.02
_KILL_SECONDS = 2.0

# Below the ports that Linux gives to outgoing connections (32768 to 60999), so that none of the router's own takes a
# port between its choice and the replica's start, and below those of Kubernetes node ports (30000 to 32767).
_PORT_RANGE = (20_000, 29_999)
_PORT_TRIES = 100


class Ports:
    """Free ports of one host, none given twice as long as it is in use."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._in_use: set[int] = set()

    def take(self) -> int:
        """A port that nobody listens on now; raises OSError when none is found."""
        for _ in range(_PORT_TRIES):
            port = random.randint(*_PORT_RANGE)
            if port not in self._in_use and self._is_free(port):
                self._in_use.add(port)
                return port
        raise OSError(f"no free port from {_PORT_RANGE[0]} to {_PORT_RANGE[1]} on {self._host}")

    def give_back(self, port: int) -> None:
        """Allow the port to be taken again."""
        self._in_use.discard(port)

    def _is_free(self, port: int) -> bool:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers set it, else a connection in TIME_WAIT would make the port look taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, port))
            except OSError:
                return False
        return True


class ReplicaProcess:
    """One run of a program. `start` once, then `wait` until it ends; `stop` and `kill` may come at any time."""

    def __init__(self, program: Program, *, host: str, port: int, log: LogFile) -> None:
        self._program = program
        self.host = host
        self.port = port
        self.log = log
        self._process: asyncio.subprocess.Process | None = None
        self._unwanted = False
        self._gone = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Number of the process and of its group; None before it is started."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start it, unless `stop` or `kill` came before; raises OSError when no process can be made. That the program
        cannot be run shows in `wait`."""
        if self._unwanted:
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
            self._gone.set()
            raise
        if self._unwanted:
            self.kill()

    async def wait(self) -> str:
        """Wait until the process has ended and all its group with it; says how the process itself ended."""
        if self._process is None:
            self._gone.set()
            return "not started"
        status = await self._process.wait()
        seconds = STOP_GRACE_SECONDS + _KILL_SECONDS
        if not self._unwanted:
            # It ended by itself: what it leaves behind serves nobody and may hold the port.
            self._signal_group(signal.SIGKILL)
            seconds = _KILL_SECONDS
        try:
            # Bounded, as a process may hang in the kernel, where no signal reaches it.
            async with asyncio.timeout(seconds):
                while _group_lives(self._process.pid):  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(_GROUP_POLL_SECONDS)
        except TimeoutError:
            pass
        self._gone.set()
        return _how(status)

    async def stop(self, grace_seconds: float = STOP_GRACE_SECONDS) -> None:
        """Have the whole group end by SIGTERM, after the grace by SIGKILL; returns when it is gone. Somebody waits in
        `wait` meanwhile."""
        self._unwanted = True
        self._signal_group(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                await self._gone.wait()
        except TimeoutError:
            pass
        finally:
            # Also when this is cancelled: nothing may stay.
            self._signal_group(signal.SIGKILL)
        await self._gone.wait()

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        self._unwanted = True
        self._signal_group(signal.SIGKILL)

    def _arguments(self) -> list[str]:
        listen = f"{self.host}:{self.port}" if self._program.passes_socket else ""
        return [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), listen, *self._program.arguments]

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is None or self._gone.is_set():
            return
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass  # the group is gone, which is what any signal is for here
        except PermissionError:
            pass  # macOS says so of a group of zombies


def _group_lives(group: int) -> bool:
    """Whether a process of the group still runs."""
    try:
        # In a container the router is process 1 and inherits orphans; nobody else would reap them.
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    # Zombies count for the kernel, and where process 1 reaps no orphans they stay for good.
    stats = list(Path("/proc").glob("[0-9]*/stat"))
    return not stats or any(_runs_in(group, stat) for stat in stats)


def _runs_in(group: int, stat: Path) -> bool:
    """Whether /proc/PID/stat (proc_pid_stat(5)) is that of a process in the group which is no zombie."""
    try:
        # The name in parentheses may hold anything.
        state, _, its_group, *_ = stat.read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return False  # it has ended meanwhile
    return int(its_group) == group and state not in ("Z", "X")


def _how(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
