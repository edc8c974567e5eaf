"""Fuzz one target: `python -m tests.fuzz TARGET [--seconds N]`, or all targets in turn without a name.

The fuzzer is coverage-guided (atheris, libFuzzer). `--keep` stores inputs that reach new code. An input that makes a
target fail is written to the current directory, and the exit code is not 0. `--replay FILE` runs one input.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
MAX_INPUT_BYTES = 4096


def main() -> int:
    """Parse the command line and run. Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz parsers of untrusted input.")
    parser.add_argument("target", nargs="?", help="one of the directories in tests/fuzz/corpus")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", type=Path, help="directory for inputs that reach new code")
    parser.add_argument("--replay", type=Path, help="only run this input once")
    arguments = parser.parse_args()
    if arguments.target is None:
        names = sorted(path.name for path in CORPUS.iterdir())
        command = [sys.executable, "-m", "tests.fuzz"]
        runs = [subprocess.run([*command, name, "--seconds", str(arguments.seconds)], check=False) for name in names]
        return max(run.returncode for run in runs)
    if arguments.replay is not None:
        from tests.fuzz.targets import TARGETS

        TARGETS[arguments.target](arguments.replay.read_bytes())
        return 0
    return fuzz(arguments.target, arguments.seconds, arguments.keep)


def fuzz(name: str, seconds: int, keep: Path | None) -> int:
    """Fuzz one target for `seconds`."""
    import atheris

    logging.disable(logging.WARNING)  # expected for invalid input; errors fail the target
    with atheris.instrument_imports(include=["router"]):
        from tests.fuzz.targets import TARGETS
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-max_len={MAX_INPUT_BYTES}",
            "-rss_limit_mb=2048",
            "-timeout=10",
            "-print_final_stats=1",
            str(keep or scratch),  # libFuzzer writes to the first directory
            str(CORPUS / name),
        ]
        atheris.Setup(command, TARGETS[name])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
