"""How the package is built; what it is and needs stands in pyproject.toml.

With COMPILE_AZUREML_FE=1 mypyc makes C extensions of the hot path, from the very sources that Python interprets without
it. That takes a C compiler, and mypy, which pip fetches for the build (or which is there, with --no-build-isolation).
"""

import os

from setuptools import Distribution, setup
from setuptools.command.build_ext import build_ext

HOT_PATH = (
    "router/auth/keys.py",
    "router/gateway/admission.py",
    "router/gateway/downstream.py",
    "router/gateway/exchange.py",
    "router/gateway/heads.py",
    "router/gateway/pool.py",
    "router/gateway/reader.py",
    "router/gateway/request.py",
    "router/gateway/table.py",
    "router/gateway/timeouts.py",
    "router/gateway/upstream.py",
    "router/http/headers.py",
    "router/http/ids.py",
    "router/http/target.py",
    "router/slots/correspondence.py",
    "router/slots/holder.py",
    "router/telemetry/counters.py",
    "router/telemetry/journal.py",
)
"""What a request passes on its way through a worker, where nothing is out of the ordinary. Has no coroutines."""

# Types are checked with all that the project needs at hand, and strictly, by its own check of types. Here neither is.
_MYPY_FLAGS = ("--config-file=", "--explicit-package-bases", "--ignore-missing-imports", "--follow-imports=silent")


class _Distribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


class _Build(build_ext):
    """Compiles when there is something to build: pip asks what that takes before it is there."""

    def finalize_options(self) -> None:
        from mypyc.build import mypycify

        self.distribution.ext_modules = mypycify(
            [*_MYPY_FLAGS, *HOT_PATH], opt_level="3", strip_asserts=True, group_name="azureml_fe"
        )
        super().finalize_options()


match os.environ.get("COMPILE_AZUREML_FE", "0"):
    case "1":
        setup(distclass=_Distribution, cmdclass={"build_ext": _Build}, setup_requires=["mypy>=2.4"])
    case "0" | "":
        setup()
    case other:
        raise SystemExit(f"COMPILE_AZUREML_FE={other}: allowed: 1 (compile the hot path) and 0")
