"""The router with its hot path compiled by `setup.py`, built once for each state of the sources.

The build of the current sources is kept in the results directory until they change.
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
_BUILT_FROM: Final = ("LICENSE", "README.md", "pyproject.toml", "router", "setup.py")
_BUILD_SECONDS: Final = 600


def can_compile() -> bool:
    """True if there are a C compiler and the headers of this Python."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    return shutil.which(compiler) is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()


def compiled_package() -> Path:
    """Return the directory of the compiled package `router`. Raises BenchmarkError if the build fails."""
    directory = BUILDS / _fingerprint()
    if not directory.is_dir():
        if not can_compile():
            raise BenchmarkError("the compiled router needs a C compiler (cc, or $CC of this Python) and Python.h")
        BUILDS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILDS.parent) as scratch:
            shutil.move(_build(Path(scratch)), directory)
        for build in BUILDS.iterdir():
            if build != directory:
                shutil.rmtree(build)
    return directory


def _build(scratch: Path) -> Path:
    sources, target = scratch / "sources", scratch / "target"
    sources.mkdir()
    for name in _BUILT_FROM:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, sources / name)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(sources)],
        env=os.environ | {"COMPILE_AZUREML_FE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BUILD_SECONDS,
    )
    if done.returncode:
        raise BenchmarkError(f"the router could not be compiled:\n{done.stdout[-4000:]}")
    return target


def _fingerprint() -> str:
    """Return a hash of the sources and of the Python that they are compiled for."""
    digest = hashlib.sha256(f"{sys.version} {sysconfig.get_config_var('EXT_SUFFIX')}".encode())
    for name in _BUILT_FROM:
        source = ROOT / name
        for path in sorted(source.rglob("*.py")) if source.is_dir() else (source,):
            content = path.read_bytes()
            digest.update(f"\n{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
