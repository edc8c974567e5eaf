"""Run all benchmarks one after the other, then write the report. Takes 35 minutes, or four with ``--quick``.

A quick run writes no report, because its results are meaningless.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.processes import ROOT
from benchmarks.harness.session import DEFAULT_OUT


def main() -> None:
    """Run from the command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="smoke test without a report")
    arguments.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="directory for the JSON results"
    )
    parsed = arguments.parse_args()
    names = [
        "throughput",
        "latency",
        "bodies",
        "growth",
        "slow_clients",
        "failing_replicas",
        "tokens",
        "tls",
        "floods",
        "profile",
        *([] if parsed.quick else ["report"]),
    ]
    for name in names:
        flags = ["--quick"] if parsed.quick else []
        # If this script is killed, the benchmark gets SIGTERM and stops its child processes.
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
