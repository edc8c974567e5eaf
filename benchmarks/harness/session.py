"""One run of a benchmark: command line, CPUs, temporary directory, key, and the stored results with their
conditions."""

import argparse
import json
import os
import platform
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.harness.engines import ENGINES, TEMPLATES, nginx_version, wrk_version
from benchmarks.harness.processes import ROOT, BenchmarkError, Cpus, exit_on_signals, keep_cpus_awake

DEFAULT_OUT: Final = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The parameters of a run. ``directory`` is private and removed at the end."""

    benchmark: str
    quick: bool
    rounds: int
    seconds: int
    engines: tuple[str, ...]
    out: Path
    cpus: Cpus
    awake: bool
    directory: Path
    key: str = field(repr=False)

    def log(self, message: str) -> None:
        """Print a line of progress."""
        print(message, flush=True)

    def cpu_conditions(self) -> str:
        """Return how CPUs were assigned and kept awake."""
        return f"{self.cpus}; idle CPUs {'kept awake' if self.awake else 'may sleep'}"

    def store(self, cells: Sequence[object], **more: object) -> Path:
        """Write ``cells`` and the conditions of the run to ``<out>/<benchmark>.json``. Return the path."""
        document = {
            "benchmark": self.benchmark,
            "command": command_line(),
            "taken": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "quick": self.quick,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "cpus": self.cpu_conditions(),
            "machine": machine(self.cpus),
            "tools": {"back end": nginx_version(), "load": wrk_version()},
            "versions": {name: ENGINES[name].version() for name in self.engines},
            "settings": {name: _settings(name) for name in self.engines},
            **more,
            "cells": cells,
        }
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{self.benchmark}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        self.log(f"results: {path}")
        return path


def _settings(engine: str) -> dict[str, str]:
    return {name: (TEMPLATES / name).read_text() for name in ENGINES[engine].settings}


def command_line() -> str:
    """Return the command line of this run."""
    main = sys.modules["__main__"].__spec__
    return shlex.join(["python", "-m", main.name if main else sys.argv[0], *sys.argv[1:]])


def machine(cpus: Cpus) -> dict[str, str]:
    """Return the properties of the machine that affect the results."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "CPU": f"{model}, {len({*cpus.engine, *cpus.load})} cores used",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }


def parser(description: str, *, engines: Sequence[str], rounds: int, seconds: int) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all benchmarks have."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    result.add_argument("--quick", action="store_true", help="smoke test: one short round, smaller numbers")
    result.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="directory for the JSON results")
    result.add_argument("--rounds", type=int, default=rounds, help="interleaved rounds; the median is reported")
    result.add_argument("--seconds", type=int, default=seconds, help="duration of one measurement")
    result.add_argument("--engines", nargs="+", default=list(engines), choices=list(ENGINES), help="engines to measure")
    result.add_argument("--no-pin", action="store_true", help="do not reserve a CPU for the engine")
    result.add_argument("--let-sleep", action="store_true", help="let idle CPUs sleep, as without root")
    return result


@contextmanager
def session(benchmark: str, arguments: argparse.Namespace) -> Iterator[Session]:
    """Run a benchmark inside the `with` block. A BenchmarkError ends the program with one line and exit code 1."""
    exit_on_signals()
    cpus = Cpus.choose(pin=not arguments.no_pin)
    os.sched_setaffinity(0, cpus.load)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="azureml-fe-benchmark-") as directory,
            nullcontext(False) if arguments.let_sleep else keep_cpus_awake() as awake,
        ):
            current = Session(
                benchmark=benchmark,
                quick=arguments.quick,
                rounds=1 if arguments.quick else arguments.rounds,
                seconds=1 if arguments.quick else arguments.seconds,
                engines=tuple(arguments.engines),
                out=arguments.out,
                cpus=cpus,
                awake=awake,
                directory=Path(directory),
                key=secrets.token_urlsafe(24),
            )
            current.log(f"{benchmark}: {current.cpu_conditions()}")
            yield current
    except BenchmarkError as error:
        sys.exit(f"{benchmark}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
