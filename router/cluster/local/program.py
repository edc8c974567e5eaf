"""The command line and the environment of a replica's process, from the launch settings of its version.

Does not contain: how the process is started (`replica_process`).
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from router.cluster.local import inference_server
from router.cluster.local.launch import LaunchSettings
from router.config.listener_settings import SCORING_PREFIXES
from router.config.router import ENVIRONMENT_PREFIX
from router.config.schema import SettingsError
from router.model.services import VersionKey

_SERVER_MODULE = "azureml_inference_server_http"
_INTERPRETER_CHECK_SECONDS = 30.0
"""Timeout of `check_program_runs` for an interpreter to respond."""


_DOES_NOT_COMPILE = 3

# Runs in another interpreter, which may be as old as Python 3.8.
_INTERPRETER_CHECK = f"""\
import importlib.util, sys
if importlib.util.find_spec(sys.argv[1]) is None:
    sys.exit(1)
try:
    with open(sys.argv[2], "rb") as file:
        compile(file.read(), sys.argv[2], "exec")
except (SyntaxError, ValueError) as error:
    print("%s (line %s)" % (getattr(error, "msg", error), getattr(error, "lineno", "?")))
    sys.exit({_DOES_NOT_COMPILE})
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The executable of a replica, its arguments, its working directory and its environment.

    `arguments` begins with the executable. It must contain no secret, since every user of the machine can read it.
    If `inherits_socket`, the process inherits its listening socket, as described in sd_listen_fds(3).
    """

    arguments: tuple[str, ...]
    directory: Path
    environment: Mapping[str, str] = field(repr=False)
    inherits_socket: bool = False


def check_server_installed(key: VersionKey, launch: LaunchSettings) -> None:
    """Check the interpreter of an entry script, without running it.

    Raises `SettingsError` if `python` names no executable, or if the router's own interpreter is used and lacks
    azureml-inference-server-http.
    """
    if launch.entry_script is None:
        return
    if launch.python is not None:
        _find_executable(key, launch, "python", launch.python)
    elif importlib.util.find_spec(_SERVER_MODULE) is None:
        problem = (
            "needs azureml-inference-server-http: in the checkout: pip install '.[example]', "
            "or: pip install azureml-inference-server-http"
        )
        raise _error(key, launch, "entry_script", str(launch.entry_script), problem)


def check_program_runs(key: VersionKey, launch: LaunchSettings) -> None:
    """Check the executable that `command` or `python` names, the script that `command` names, and whether the entry
    script compiles. Runs the interpreter that `python` names.

    Raises `SettingsError` if there is no such executable or script, if the interpreter lacks
    azureml-inference-server-http, or if the entry script does not compile there.
    """
    if launch.command:
        if launch.command[0] != "python":
            _find_executable(key, launch, "command", launch.command[0])
        _check_script_exists(key, launch)
    if launch.python is None:
        if launch.entry_script is not None:
            _check_compiles(key, launch, launch.entry_script)
        return
    python = _find_executable(key, launch, "python", launch.python)
    environment = _inherited_environment() | dict(launch.environment)
    try:
        done = subprocess.run(
            [python, "-c", _INTERPRETER_CHECK, _SERVER_MODULE, str(launch.entry_script)],
            check=False,
            capture_output=True,
            timeout=_INTERPRETER_CHECK_SECONDS,
            env=environment,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired):
        raise _error(key, launch, "python", launch.python, "must be a Python interpreter") from None
    if done.returncode == _DOES_NOT_COMPILE:
        reason = done.stdout.decode(errors="replace").strip()
        raise _error(key, launch, "entry_script", str(launch.entry_script), f"does not compile: {reason}")
    if done.returncode:
        raise _error(
            key, launch, "python", launch.python, "must be a Python interpreter with azureml-inference-server-http"
        )


def _check_compiles(key: VersionKey, launch: LaunchSettings, script: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(script.read_bytes(), str(script), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        reason = f"{getattr(error, 'msg', None) or error}" + (f" (line {line})" if line else "")
        raise _error(key, launch, "entry_script", str(script), f"does not compile: {reason}") from None


def _check_script_exists(key: VersionKey, launch: LaunchSettings) -> None:
    """Check the script in a command such as `[python, serve.py, ...]`."""
    executable, *arguments = launch.command
    script = arguments[0] if arguments else ""
    if Path(executable).name not in ("python", "python3") or not script.endswith(".py") or "{" in script:
        return
    path = launch.directory / script
    if not path.is_file():
        raise _error(key, launch, "command", script, f"must name a script that exists; there is none at {path}")


def _find_executable(key: VersionKey, launch: LaunchSettings, setting: str, name: str) -> str:
    """Return the path of an executable. Raises `SettingsError` if there is none with this name."""
    search_path = launch.environment.get("PATH", os.environ.get("PATH"))
    # As in execvp(3), a name with a slash is a path. It is relative to the directory of the configuration file.
    found = shutil.which(str(launch.directory / name) if "/" in name else name, path=search_path)
    if found is None:
        raise _error(key, launch, setting, name, "must be an executable; there is none with this name")
    return found


def _error(key: VersionKey, launch: LaunchSettings, setting: str, value: str, problem: str) -> SettingsError:
    where = launch.locations.get(setting, f"service {key[0]}, version {key[1]}")
    return SettingsError(setting, value, problem, where)


def build_program(
    key: VersionKey,
    launch: LaunchSettings,
    *,
    host: str,
    port: int,
    model_dir: Path,
    scoring_prefix: str = SCORING_PREFIXES["v1"],
    log_environment: Mapping[str, str] = MappingProxyType({}),
) -> Program:
    """Return the program of one replica of version `key` that listens on `host` and `port`.

    `model_dir` is the `AZUREML_MODEL_DIR` of an entry script, unless the setting `environment` or the router's own
    environment has this variable. `log_environment` has the variables with which an entry script logs data.
    """
    inherited = _inherited_environment()
    # Azure's server puts SERVICE_PATH_PREFIX in front of the paths in its swagger.json; its routes do not depend on it.
    environment = inherited | {"HOST": host, "PORT": str(port), "SERVICE_PATH_PREFIX": scoring_prefix + key[0]}
    environment |= log_environment
    if launch.entry_script is None:
        first, *rest = launch.command_for(host, port)
        # The router's interpreter has the packages that were installed with it. `python` in PATH may be another one.
        arguments = (sys.executable if first == "python" else first, *rest)
    else:
        arguments = _server_arguments(launch.python or sys.executable, launch.entry_script, port)
        environment |= {
            "AML_APP_ROOT": str(launch.directory),  # the entry script imports modules from there
            "AZUREML_MODEL_DIR": inherited.get("AZUREML_MODEL_DIR", str(model_dir)),
            "SERVICE_NAME": key[0],
        }
    return Program(
        arguments=arguments,
        directory=launch.directory,
        environment=environment | launch.environment_for(host, port),
        inherits_socket=launch.entry_script is not None,
    )


def _inherited_environment() -> dict[str, str]:
    """Return the router's environment without the router's settings, which may be secrets."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    # Otherwise the output of a Python program appears in its log only when it exits, and never if it is killed.
    return {"PYTHONUNBUFFERED": "1"} | inherited


def _server_arguments(python: str, script: Path, port: int) -> tuple[str, ...]:
    # The server listens on all addresses, which cannot be configured, unless it inherits a listening socket. It reads
    # the number of its workers from WORKER_COUNT.
    return (python, inference_server.__file__, "--entry_script", str(script), "--port", str(port))
