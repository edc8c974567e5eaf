"""The router with its hot path compiled: built as `setup.py` says, once for each state of the sources.

Builds are kept beside the results: the one of the present sources until they change.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.harness.processes import ROOT, BenchmarkError

BUILDS: Final = ROOT / "benchmarks" / "results" / "compiled"
_BUILT_FROM: Final = ("pyproject.toml", "setup.py", "README.md", "router")
_BUILD_SECONDS: Final = 600


def can_compile() -> bool:
    """Whether there is a C compiler and what C extensions of this Python are made with."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    return shutil.which(compiler) is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()


def compiled_package() -> Path:
    """The folder that has the package `router`, compiled. Raises BenchmarkError with what a failed build said."""
    place = BUILDS / _fingerprint()
    if not place.is_dir():
        if not can_compile():
            raise BenchmarkError("the compiled router takes a C compiler (cc, or $CC of this Python) and Python.h")
        BUILDS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILDS.parent) as scratch:
            shutil.move(_build(Path(scratch)), place)
        for former in BUILDS.iterdir():
            if former != place:
                shutil.rmtree(former)
    return place


def _build(scratch: Path) -> Path:
    sources, made = scratch / "sources", scratch / "made"
    sources.mkdir()
    for name in _BUILT_FROM:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, sources / name)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(made), str(sources)],
        env=os.environ | {"COMPILE_AZUREML_FE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BUILD_SECONDS,
    )
    if done.returncode:
        raise BenchmarkError(f"the router could not be compiled:\n{done.stdout[-4000:]}")
    return made


def _fingerprint() -> str:
    """Of the sources, and of the Python that they are compiled for."""
    found = hashlib.sha256(f"{sys.version} {sysconfig.get_config_var('EXT_SUFFIX')}".encode())
    for name in _BUILT_FROM:
        whole = ROOT / name
        for path in sorted(whole.rglob("*.py")) if whole.is_dir() else (whole,):
            content = path.read_bytes()
            found.update(f"\n{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]
