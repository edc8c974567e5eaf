"""Where the data plane's time goes: py-spy samples it under wrk's load; the top functions and a flame graph.

The process sampled is the one of the engine's tree that used the most CPU while warming up. Own time is time in
the function itself, C code and system calls that it makes included; cumulative time has what it calls in it. The
kernel's share of it all comes from the process's CPU clocks. ``<out>/profile.svg`` is the flame graph.

py-spy reads the memory of the running process (``--nonblocking``). When it pauses the process for each sample instead,
the pause takes effect mostly at the end of a system call, and the profile shows little but socket writes (measured on
the bare proxy: 73 to 83 % of samples, against 37 %). The price is a few torn samples, counted as "(unreadable)".
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Final

import psutil

from benchmarks.harness.backends import nginx_backend
from benchmarks.harness.engines import Running, Target, running
from benchmarks.harness.processes import BenchmarkError, run_json
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import background, measure, script, verify, wrk_argv

ENGINES: Final = ("router",)
CONNECTIONS: Final = 32
SAMPLES_PER_SECOND: Final = 200


def data_plane(engine: Running, target: Target, lua: Path, current: Session) -> int:
    """The pid of the process that works hardest under load."""
    if engine.child is None:
        raise BenchmarkError("the direct path has no process to profile")
    before = {process.pid: _cpu(process) for process in engine.child.tree()}
    measure(engine, target, lua=lua, connections=CONNECTIONS, seconds=1, cpus=current.cpus)
    return int(max(engine.child.tree(), key=lambda process: _cpu(process) - before.get(process.pid, 0.0)).pid)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def record(pid: int, path: Path, *, form: str, current: Session) -> None:
    """Sample ``pid`` for the session's seconds into ``path``."""
    sampling = ("--nonblocking", "--rate", str(SAMPLES_PER_SECOND), "--duration", str(current.seconds))
    py_spy = str(Path(sys.executable).with_name("py-spy"))
    argv = (py_spy, "record", *sampling, "--format", form, "--function", "--output", str(path), "--pid", str(pid))
    run_json(argv, job="", cpus=current.cpus.load, timeout=current.seconds + 60)


def totals(collapsed: str) -> tuple[Counter[str], Counter[str], int]:
    """Samples by function (own, cumulative) and in all, of py-spy's raw format: ``caller;callee count`` a line."""
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
    """Sample the data plane under load: py-spy's raw output, and the share of its CPU time spent in the kernel."""
    lua = script(current.directory, target, cycle=False)
    pid = data_plane(engine, target, lua, current)
    current.out.mkdir(parents=True, exist_ok=True)
    raw = current.directory / "profile.raw"
    seconds = 2 * current.seconds + 60  # both recordings, and py-spy's own start; it is ended when they are done
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
    """Print the functions by own time, then by cumulative time."""
    for order, counter in (("own", own), ("cumulative", cumulative)):
        print(f"\nby {order} time:\n   own  cumulative  function")
        for function, _ in counter.most_common(top):
            print(f"{own[function] / samples:6.1%}  {cumulative[function] / samples:10.1%}  {function}")


def main() -> None:
    """Command line."""
    arguments = parser(__doc__, engines=ENGINES, rounds=1, seconds=10)
    arguments.add_argument("--top", type=int, default=30, help="functions to print")
    parsed = arguments.parse_args()
    with session("profile", parsed) as current, nginx_backend(cpus=current.cpus, directory=current.directory) as port:
        target = Target(backends=(f"127.0.0.1:{port}",), key=current.key)
        with running(current.engines[0], target, cpus=current.cpus, directory=current.directory) as engine:
            verify(engine, target)
            raw, kernel_share = sample(engine, target, current)
        own, cumulative, samples = totals(raw)
        show(own, cumulative, samples, parsed.top)
        current.say(f"\n{samples} samples; {kernel_share:.0%} of the process's CPU time was spent in the kernel")
        current.say(f"flame graph: {current.out / 'profile.svg'}")
        cells = [
            {"function": function, "own": own[function] / samples, "cumulative": count / samples}
            for function, count in cumulative.most_common()
        ]
        current.store(cells, kernel_share=kernel_share, samples=samples)


if __name__ == "__main__":
    main()
