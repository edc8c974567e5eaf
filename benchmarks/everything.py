"""Run every benchmark one after the other, then write the report. A quarter of an hour; ``--quick``: two minutes.

A quick run stops short of the report, as its figures mean nothing.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.processes import ROOT
from benchmarks.harness.session import DEFAULT_OUT


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="smoke run: no report")
    arguments.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="where the JSON results go")
    parsed = arguments.parse_args()
    names = [
        "throughput",
        "latency",
        "bodies",
        "growth",
        "tokens",
        "tls",
        "profile",
        *([] if parsed.quick else ["report"]),
    ]
    for name in names:
        flags = ["--quick"] if parsed.quick else []
        # Should this script be ended, the benchmark is told so and ends in order what it has started.
        command = [
            "setpriv",
            "--pdeathsig",
            "TERM",
            "--",
            sys.executable,
            "-m",
            f"benchmarks.{name}",
            "--out",
            str(parsed.out.resolve()),
            *flags,
        ]
        if subprocess.run(command, cwd=ROOT).returncode:
            sys.exit(f"benchmarks.{name} failed")


if __name__ == "__main__":
    main()
