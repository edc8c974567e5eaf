"""A profile of the data plane under wrk's load, sampled by py-spy: the top functions and a flame graph.

py-spy samples the process of the engine that used the most CPU in the warm-up. Own time is the time in the function
itself, including C code and system calls; cumulative time includes the functions that it calls. The kernel's share
comes from the CPU clocks of the process. ``<out>/profile.svg`` is the flame graph.

py-spy reads the memory of the running process (``--nonblocking``). If it paused the process for each sample, the pause
would mostly take effect at the end of a system call, and the profile would show mainly socket writes (measured with the
bare proxy: 73 to 83 % of samples instead of 37 %). The cost is a few inconsistent samples, counted as "(unreadable)".
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Final

import psutil

from benchmarks.harness.backends import nginx_backend
from benchmarks.harness.engines import Running, Target, running_engine
from benchmarks.harness.processes import BenchmarkError, run_json
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import background, measure, script, verify, wrk_argv

ENGINES: Final = ("router",)
CONNECTIONS: Final = 32
SAMPLES_PER_SECOND: Final = 200


def data_plane(engine: Running, target: Target, lua: Path, current: Session) -> int:
    """Return the pid of the process that uses the most CPU under load."""
    if engine.child is None:
        raise BenchmarkError("the direct path has no process to profile")
    before = {process.pid: _cpu(process) for process in engine.child.tree()}
    measure(engine, target, lua=lua, connections=CONNECTIONS, seconds=1, cpus=current.cpus)
    return int(max(engine.child.tree(), key=lambda process: _cpu(process) - before.get(process.pid, 0.0)).pid)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def record(pid: int, path: Path, *, form: str, current: Session) -> None:
    """Sample a process for the duration of a measurement, into ``path``."""
    sampling = ("--nonblocking", "--rate", str(SAMPLES_PER_SECOND), "--duration", str(current.seconds))
    py_spy = str(Path(sys.executable).with_name("py-spy"))
    argv = (py_spy, "record", *sampling, "--format", form, "--function", "--output", str(path), "--pid", str(pid))
    run_json(argv, job="", cpus=current.cpus.load, timeout=current.seconds + 60)


def totals(collapsed: str) -> tuple[Counter[str], Counter[str], int]:
    """Parse py-spy's raw format, lines of ``caller;callee count``. Return own and cumulative samples by function, and
    the total."""
    own: Counter[str] = Counter()
    cumulative: Counter[str] = Counter()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";") if stack else ["(unreadable)"]
        own[frames[-1]] += int(count)
        for frame in set(frames):
            cumulative[frame] += int(count)
    return own, cumulative, sum(own.values())


def sample(engine: Running, target: Target, current: Session) -> tuple[str, float]:
    """Sample the data plane under load. Return py-spy's raw output, and the fraction of CPU time in the kernel."""
    lua = script(current.directory, target, cycle=False)
    pid = data_plane(engine, target, lua, current)
    current.out.mkdir(parents=True, exist_ok=True)
    raw = current.directory / "profile.raw"
    seconds = 2 * current.seconds + 60  # more than both recordings need; wrk is terminated after them
    load = background(wrk_argv(engine, target, lua=lua, connections=CONNECTIONS, seconds=seconds), current.cpus)
    try:
        before = psutil.Process(pid).cpu_times()
        record(pid, raw, form="raw", current=current)
        record(pid, current.out / "profile.svg", form="flamegraph", current=current)
        after = psutil.Process(pid).cpu_times()
    finally:
        load.terminate()
        load.wait()
    kernel, user = after.system - before.system, after.user - before.user
    return raw.read_text(), float(kernel / (kernel + user))


def show(own: Counter[str], cumulative: Counter[str], samples: int, top: int) -> None:
    """Print the top functions by own time, then by cumulative time."""
    for order, counter in (("own", own), ("cumulative", cumulative)):
        print(f"\nby {order} time:\n   own  cumulative  function")
        for function, _ in counter.most_common(top):
            print(f"{own[function] / samples:6.1%}  {cumulative[function] / samples:10.1%}  {function}")


def main() -> None:
    """Run from the command line."""
    arguments = parser(__doc__, engines=ENGINES, rounds=1, seconds=10)
    arguments.add_argument("--top", type=int, default=30, help="number of functions to print")
    parsed = arguments.parse_args()
    with session("profile", parsed) as current, nginx_backend(cpus=current.cpus, directory=current.directory) as port:
        target = Target(backends=(f"127.0.0.1:{port}",), key=current.key)
        with running_engine(current.engines[0], target, cpus=current.cpus, directory=current.directory) as engine:
            verify(engine, target)
            raw, kernel_share = sample(engine, target, current)
        own, cumulative, samples = totals(raw)
        show(own, cumulative, samples, parsed.top)
        current.log(f"\n{samples} samples; {kernel_share:.0%} of the process's CPU time was spent in the kernel")
        current.log(f"flame graph: {current.out / 'profile.svg'}")
        cells = [
            {"function": function, "own": own[function] / samples, "cumulative": count / samples}
            for function, count in cumulative.most_common()
        ]
        current.store(cells, kernel_share=kernel_share, samples=samples)


if __name__ == "__main__":
    main()
