"""Compiles the hot path, if COMPILE_AZUREML_FE=1. Metadata and dependencies are in pyproject.toml.

mypyc compiles the hot path to C extensions. Without them, Python interprets the same sources. The compilation needs a C
compiler and mypy. pip installs mypy for the build unless --no-build-isolation is given.

Earlier releases of Python must be able to parse this file, to report that they are too old.
"""

import os
import sys

# pip may search all releases of all dependencies for hours before it checks `requires-python`.
if sys.version_info < (3, 11):  # noqa: UP036  (earlier ones run this file)
    raise SystemExit(f"azureml-fe needs Python 3.11 or later; this is {sys.version.split()[0]}")

from setuptools import Distribution, setup
from setuptools.command.build_ext import build_ext

HOT_PATH = (
    "router/auth/keys.py",
    "router/collection/frames.py",
    "router/collection/outbox.py",
    "router/gateway/abandoned.py",
    "router/gateway/accounting.py",
    "router/gateway/admission.py",
    "router/gateway/buffers.py",
    "router/gateway/client_connection.py",
    "router/gateway/context.py",
    "router/gateway/exchange.py",
    "router/gateway/http2_connection.py",
    "router/gateway/http2_request.py",
    "router/gateway/http2_stream.py",
    "router/gateway/ledger_outbox.py",
    "router/gateway/outliers.py",
    "router/gateway/own_headers.py",
    "router/gateway/pool.py",
    "router/gateway/replica_connection.py",
    "router/gateway/replica_health.py",
    "router/gateway/request.py",
    "router/gateway/request_reader.py",
    "router/gateway/routes.py",
    "router/gateway/routing_table.py",
    "router/gateway/timeouts.py",
    "router/gateway/turns.py",
    "router/http/header_rules.py",
    "router/http/http1.py",
    "router/http/http2/codec.py",
    "router/http/http2/frames.py",
    "router/http/ids.py",
    "router/http/streams.py",
    "router/http/target.py",
    "router/slots/idle_leases.py",
    "router/slots/ledger_client.py",
    "router/slots/lease_cache.py",
    "router/slots/replica_leases.py",
    "router/slots/wait_queue.py",
    "router/telemetry/counters.py",
    "router/telemetry/histogram.py",
    "router/telemetry/journal.py",
)
"""The modules that run for an ordinary request in a worker. They have no coroutines."""

# CI has all dependencies and checks types strictly. The build lacks the dependencies, so it must ignore failed imports.
_MYPY_FLAGS = ("--config-file=", "--explicit-package-bases", "--ignore-missing-imports", "--follow-imports=silent")


class _Distribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


class _Build(build_ext):
    """Imports mypyc only for the build, because pip runs this file to get the build requirements before it installs
    mypy."""

    def finalize_options(self) -> None:
        from mypyc.build import mypycify

        self.distribution.ext_modules = mypycify(
            [*_MYPY_FLAGS, *HOT_PATH], opt_level="3", strip_asserts=True, group_name="azureml_fe"
        )
        super().finalize_options()


compiles = os.environ.get("COMPILE_AZUREML_FE", "0")
if compiles == "1":
    setup(distclass=_Distribution, cmdclass={"build_ext": _Build}, setup_requires=["mypy>=2.4"])
elif compiles in ("0", ""):
    setup()
else:
    raise SystemExit(f"COMPILE_AZUREML_FE={compiles}: allowed: 1 (compile the hot path) and 0")
