"""Fuzz one target: `python -m tests.fuzz TARGET [--seconds N]`, or without a name each in turn.

Guided by coverage (atheris, libFuzzer). What is new on the way goes to the folder of `--keep`, else nowhere; what
breaks a target is written to the folder where this is run, and the exit code is not 0. `--replay FILE` runs one file.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
LONGEST_INPUT_BYTES = 4096


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads strangers' bytes.")
    parser.add_argument("target", nargs="?", help="one of the folders in tests/fuzz/corpus")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", type=Path, help="folder for inputs that reach something new")
    parser.add_argument("--replay", type=Path, help="run this input once, and nothing else")
    arguments = parser.parse_args()
    if arguments.target is None:
        names = sorted(path.name for path in CORPUS.iterdir())
        words = [sys.executable, "-m", "tests.fuzz"]
        runs = [subprocess.run([*words, name, "--seconds", str(arguments.seconds)], check=False) for name in names]
        return max(run.returncode for run in runs)
    if arguments.replay is not None:
        from tests.fuzz.targets import TARGETS

        TARGETS[arguments.target](arguments.replay.read_bytes())
        return 0
    return fuzz(arguments.target, arguments.seconds, arguments.keep)


def fuzz(name: str, seconds: int, keep: Path | None) -> int:
    """Fuzz one target for so long."""
    import atheris

    with atheris.instrument_imports(include=["router"]):
        from tests.fuzz.targets import TARGETS
    with tempfile.TemporaryDirectory() as scratch:
        words = [
            sys.argv[0],
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST_INPUT_BYTES}",
            "-rss_limit_mb=2048",
            "-timeout=10",
            "-print_final_stats=1",
            str(keep or scratch),  # libFuzzer writes to the first folder
            str(CORPUS / name),
        ]
        atheris.Setup(words, TARGETS[name])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
