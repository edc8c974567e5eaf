"""Child processes of a benchmark: started on given CPUs, measured and stopped with all their descendants."""

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 15.0  # longer than the router needs to close idle connections
LOG_TAIL_BYTES = 4_000


class BenchmarkError(RuntimeError):
    """A program could not be started or measured."""


@dataclass(frozen=True, slots=True)
class Cpus:
    """The CPUs of the measured engine, and those that back end, load generator and harness share."""

    engine: tuple[int, ...]
    load: tuple[int, ...]

    @classmethod
    def choose(cls, pin: bool) -> "Cpus":
        """Return the first usable CPU for the engine and the others for the load. Without `pin` both have all CPUs."""
        usable = tuple(sorted(os.sched_getaffinity(0)))
        return cls(usable[:1], usable[1:]) if pin and len(usable) > 1 else cls(usable, usable)

    def __str__(self) -> str:
        if self.engine == self.load:
            return f"no pinning: everything on CPUs {_join(self.engine)}"
        return (
            f"pinned with taskset: the measured engine (all its processes) on CPU {_join(self.engine)}; "
            f"back end, load generator and harness on CPU {_join(self.load)}"
        )


def _join(cpus: Sequence[int]) -> str:
    return ",".join(map(str, cpus))


@contextmanager
def keep_cpus_awake() -> Iterator[bool]:
    """Let idle CPUs poll instead of sleep inside the `with` block. Yield False if that is not possible without root.

    Waking a sleeping CPU costs the process that writes to a socket a few microseconds, in a virtual machine more than
    ten. A fast engine keeps the load's CPU busy and never has this cost, while a slower one has it for each write. This
    would distort the comparison. See https://docs.kernel.org/power/pm_qos_interface.html.
    """
    try:
        request = os.open("/dev/cpu_dma_latency", os.O_WRONLY)
    except OSError:
        yield False
        return
    try:
        os.write(request, struct.pack("i", 0))  # microseconds; holds for as long as the file is open
        yield True
    finally:
        os.close(request)


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of a process tree in bytes. RSS counts shared pages in each process, PSS counts each page once."""

    rss: int
    pss: int


class Child:
    """A started process with its descendants."""

    def __init__(self, name: str, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self.name = name
        self.popen = popen
        self.log = log
        self.process = psutil.Process(popen.pid)

    def tree(self) -> list[psutil.Process]:
        """Return the process and its running descendants. Raises BenchmarkError if the process has ended."""
        self.check()
        return [self.process, *self.process.children(recursive=True)]

    def check(self) -> None:
        """Raise BenchmarkError with the end of the log if the process has ended."""
        code = self.popen.poll()
        if code is not None:
            tail = self.log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
            raise BenchmarkError(f"{self.name} ended with exit code {code}; its log ends:\n{tail}")

    def memory(self) -> Memory:
        """Return the current memory of the process tree."""
        infos = [process.memory_full_info() for process in self.tree()]
        return Memory(sum(info.rss for info in infos), sum(info.pss for info in infos))

    def reset_peaks(self) -> None:
        """Reset the peak RSS of all processes (clear_refs in proc(5))."""
        for process in self.tree():
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peak_rss(self) -> int:
        """Sum of the processes' peak RSS since the reset, in bytes: never less than the peak of the sum."""
        return sum(_peak(process.pid) for process in self.tree())

    def cpu_seconds(self) -> float:
        """Return the CPU seconds, user and system, of all running processes of the tree."""
        times = [process.cpu_times() for process in self.tree()]
        return float(sum(time.user + time.system for time in times))

    def stop(self) -> None:
        """Send SIGTERM, and after ``STOP_SECONDS`` SIGKILL to all remaining processes of the tree."""
        if self.popen.poll() is None:
            tree = [self.process, *self.process.children(recursive=True)]
            self.popen.terminate()
            try:
                self.popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
            for process in psutil.wait_procs(tree, timeout=2)[1]:
                process.kill()


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def others_cpu_seconds() -> float:
    """CPU seconds since boot that neither this process nor its children have used, including stolen ones.

    Only differences are meaningful, and only while no child but short-lived load tools is started or ended.
    """
    machine = psutil.cpu_times()
    busy = sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(busy - sum(time.user + time.system for time in times) - ended.ru_utime - ended.ru_stime)


@contextmanager
def running_child(
    argv: Sequence[str], *, name: str, cpus: Sequence[int], directory: Path, env: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Run ``argv`` on ``cpus`` inside the `with` block. Its output goes to a file in ``directory``.

    It has its own session, so that it does not get the SIGINT of Ctrl-C. ``setpriv`` terminates it if the harness
    is killed.
    """
    log = directory / f"{name}.log"
    command = ["setpriv", "--pdeathsig", "TERM", "--", "taskset", "-c", _join(cpus), *argv]
    with log.open("ab") as output:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    child = Child(name, popen, log)
    try:
        yield child
    finally:
        child.stop()


def run_json(argv: Sequence[str], *, job: str, cpus: Sequence[int], timeout: float) -> str:
    """Run a load tool with ``job`` as its standard input. Return its output. Raises BenchmarkError if it fails."""
    command = ["setpriv", "--pdeathsig", "TERM", "--", "taskset", "-c", _join(cpus), *argv]
    try:
        done = subprocess.run(command, input=job, capture_output=True, text=True, cwd=ROOT, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{' '.join(argv)}: not done after {timeout:.0f} s") from error
    if done.returncode:
        raise BenchmarkError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def wait_until(ready: Callable[[], bool], *, child: Child, seconds: float) -> float:
    """Wait until ``ready``. Return the seconds. Raises BenchmarkError if ``child`` ends or after a timeout."""
    start = time.monotonic()
    while not ready():
        child.check()
        if time.monotonic() - start > seconds:
            raise BenchmarkError(f"{child.name} is not ready after {seconds:.0f} s; see {child.log}")
        time.sleep(0.02)
    return time.monotonic() - start


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def exit_on_signals() -> None:
    """Raise SystemExit for SIGTERM and SIGHUP, so that all `with` blocks stop their processes."""

    def leave(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, leave)
