"""From a version's launch to the program that one of its replicas runs.

Lives here: command line and environment of a replica. Must not live here: how a process is made of them (`replica`).
"""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from router.cluster.local.file import Launch
from router.services import VersionKey
from router.settings import ENVIRONMENT_PREFIX
from router.values import SettingsError

_SERVER_MODULE = "azureml_inference_server_http"
_NO_CONTROL_SOCKET_SINCE = (25, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run. `arguments` begin with the program and, as all users of the machine can read them, hold no secret.

    With `passes_socket` it is given its listening socket as sd_listen_fds(3) says.
    """

    arguments: tuple[str, ...]
    directory: Path
    environment: Mapping[str, str] = field(repr=False)
    passes_socket: bool = False


def check_can_run(key: VersionKey, launch: Launch) -> None:
    """Raise `SettingsError` when the launch needs a package that is not installed."""
    if launch.entry_script is not None and importlib.util.find_spec(_SERVER_MODULE) is None:
        allowed = "needs azureml-inference-server-http: pip install 'azureml-fe[example]'"
        raise SettingsError("entry_script", str(launch.entry_script), allowed, f"service {key[0]}, version {key[1]}")


def check_program(key: VersionKey, launch: Launch) -> None:
    """Raise `SettingsError` when there is no such program as the launch's command names."""
    if not launch.command or launch.command[0] == "python":
        return
    program = launch.command[0]
    places = launch.environment.get("PATH", os.environ.get("PATH"))
    # As execvp(3) has it: a name with a slash is a path, here from the file's folder.
    found = shutil.which(str(launch.folder / program) if "/" in program else program, path=places)
    if found is None:
        allowed = "must be a program that can be run; there is none of this name"
        raise SettingsError("command", program, allowed, f"service {key[0]}, version {key[1]}")


def program_of(key: VersionKey, launch: Launch, *, host: str, port: int, model_dir: Path) -> Program:
    """The program of one replica of version `key` that is to listen on `host` and `port`.

    `model_dir` is where an entry script finds `AZUREML_MODEL_DIR`, unless the launch or the user's shell sets it.
    """
    inherited = _inherited_environment()
    environment = inherited | {"HOST": host, "PORT": str(port)}
    if launch.entry_script is None:
        first, *rest = launch.filled_command(host, port)
        # The interpreter that runs the router has what it was installed with; the shell's may be another.
        arguments = (sys.executable if first == "python" else first, *rest)
    else:
        arguments = _server_arguments(launch.entry_script, port)
        environment |= _server_environment(key, inherited, launch, model_dir)
    return Program(
        arguments=arguments,
        directory=launch.folder,
        environment=environment | dict(launch.environment),
        passes_socket=launch.entry_script is not None,
    )


def _inherited_environment() -> dict[str, str]:
    """What the router's environment gives to a replica: all but the router's own settings, which may hold secrets."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    # Else what a Python program prints shows only when it ends, and never when it is killed.
    return {"PYTHONUNBUFFERED": "1"} | inherited


def _server_arguments(script: Path, port: int) -> tuple[str, ...]:
    # This is what the console command azmlinfsrv does; -P keeps the file's folder from hiding installed modules.
    # It would listen on all addresses, with no way to change that; the socket passed to it is what restricts it.
    server = (sys.executable, "-P", "-m", _SERVER_MODULE)
    return (*server, "--entry_script", str(script), "--port", str(port), "--worker_count", "1")


def _server_environment(key: VersionKey, inherited: dict[str, str], launch: Launch, model_dir: Path) -> dict[str, str]:
    environment = {
        "AML_APP_ROOT": str(launch.folder),  # where the entry script's neighbours are imported from
        "AZUREML_MODEL_DIR": inherited.get("AZUREML_MODEL_DIR", str(model_dir)),
        "SERVICE_NAME": key[0],
    }
    if _gunicorn_version() >= _NO_CONTROL_SOCKET_SINCE:
        # All gunicorns of one user would share one control socket.
        given = inherited.get("GUNICORN_CMD_ARGS", "")
        environment["GUNICORN_CMD_ARGS"] = f"{given} --no-control-socket".lstrip()
    return environment


def _gunicorn_version() -> tuple[int, ...]:
    parts = importlib.metadata.version("gunicorn").split(".")[:2]
    return tuple(int(part) for part in parts if part.isascii() and part.isdigit())
