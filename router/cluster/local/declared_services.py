"""The services of Azure ML's files as the content of a local file.

Contains: how a program runs on one machine. Does not contain: reading Azure ML's files (`azureml`), and checking the
result (`config_file`), which has the locations of the original keys for errors.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.azureml.services import (
    Conversion,
    DeclaredService,
    DeclaredVersion,
    Key,
    Loss,
    Program,
    ProgramKind,
    loss_of,
)
from router.config.schema import SettingKind, SettingsError, parse_value
from router.config.service import SettingPath
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.model.services import DEFAULT_VERSION_NAME
from router.net.address import host_port

_DECLARED = {setting.name: setting for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS)}
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class DeclaredDocument:
    """The content of a local file that was made of other files. Implements `yaml_document.Document`."""

    file: str
    values: Mapping[str, Any]
    locations: Mapping[SettingPath, str]
    losses: tuple[Loss, ...]

    def locate(self, path: SettingPath) -> str:
        """Return the location of the original key of the value at `path`, or of the nearest one that contains it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.locations:
                return self.locations[path[:length]]
        return self.file


def local_document(conversion: Conversion, file: str, directory: Path | None = None) -> DeclaredDocument:
    """Return the content of a local file with these services, and all losses. `file` names it in errors without a key.

    Paths are relative to `directory` if it is given, else absolute.
    """
    writer = _Writer(directory)
    services = {service.name: writer.service(service) for service in conversion.services}
    return DeclaredDocument(file, {"services": services}, writer.locations, (*conversion.losses, *writer.losses))


@dataclass(slots=True)
class _Writer:
    directory: Path | None
    locations: dict[SettingPath, str] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)

    def service(self, service: DeclaredService) -> dict[str, Any]:
        """Return the mapping of a service. The only version of v1 has no name of its own."""
        base = ("services", service.name)
        if service.namespace is not None:
            self.losses.append(loss_of(service.namespace, "there are namespaces in Kubernetes only"))
        values = self._settings(service.settings, base)
        if [version.name for version in service.versions] == [DEFAULT_VERSION_NAME]:
            return values | self._version(service.versions[0], base)
        return values | {
            "versions": {each.name: self._version(each, (*base, "versions", each.name)) for each in service.versions}
        }

    def _settings(self, settings: Mapping[str, Key], path: SettingPath) -> dict[str, Any]:
        self.locations |= {(*path, name): key.location for name, key in settings.items()}
        return {name: _typed(name, key.value) for name, key in settings.items()}

    def _version(self, version: DeclaredVersion, path: SettingPath) -> dict[str, Any]:
        program = version.program
        settings = dict(version.settings)
        match program.kind:
            case ProgramKind.ENTRY_SCRIPT:
                launch = self._entry_script(program)
            case ProgramKind.MLFLOW:
                launch = self._mlflow(program)
            case _:
                launch = self._addresses(program, settings)
        if program.source is not None:
            self.locations |= dict.fromkeys(((*path, name) for name in launch), program.source.location)
        self.locations |= {(*path, "environment", name): key.location for name, key in program.environment.items()}
        # Kubernetes allows more names than a local file, whose errors about `environment` are about its names.
        rejected = [key for name, key in program.environment.items() if not (name.isascii() and name.isidentifier())]
        self.locations |= {(*path, "environment"): key.location for key in rejected[:1]}
        if program.kind is ProgramKind.ENTRY_SCRIPT:
            settings.pop("cancellation")  # entry_script implies it
        return self._settings(settings, path) | launch

    def _entry_script(self, program: Program) -> dict[str, Any]:
        assert program.entry_script is not None, "the kind implies it"
        environment = {name: key.value for name, key in program.environment.items()}
        environment.setdefault("AML_APP_ROOT", self._path(program.source_directory or program.entry_script.parent))
        if program.model_path is not None:
            environment.setdefault("AZUREML_MODEL_DIR", self._path(program.model_path.parent))
        elif program.model is not None:
            self.losses.append(loss_of(program.model, "download the model, and set AZUREML_MODEL_DIR in `environment`"))
        for key in (program.image, program.packages):
            if key is not None:
                reason = "install its packages; `python` is the interpreter that has them"
                self.losses.append(loss_of(key, reason))
        if program.model_mount_path is not None:
            self.losses.append(loss_of(program.model_mount_path, "the model stays where it is: AZUREML_MODEL_DIR"))
        return {"entry_script": self._path(program.entry_script), "environment": environment}

    def _mlflow(self, program: Program) -> dict[str, Any]:
        assert program.model is not None, "the kind implies it"
        if program.model_path is None:
            return self._addresses(program, {})
        command = ["mlflow", "models", "serve", "--model-uri", self._path(program.model_path), "--host", "{host}"]
        command += ["--port", "{port}", "--env-manager", "local"]
        self.losses.append(
            loss_of(program.model, "MLflow's server runs the model, with MLflow's format of requests; install mlflow")
        )
        for key in (program.image, program.packages):
            if key is not None:
                self.losses.append(loss_of(key, "install its packages next to mlflow"))
        return {
            "command": command,
            "environment": {name: key.value for name, key in program.environment.items()},
            **_probe_paths(program),
        }

    def _addresses(self, program: Program, settings: dict[str, Key]) -> dict[str, Any]:
        """Return the launch settings of a version whose replicas the user starts. Removes the settings of scaling."""
        port = program.routes.scoring.port
        where = f"start it yourself, at {host_port(_HOST, port)}"
        if program.image is not None:
            mount = f" -v MODEL:{program.model_mount_path.value}" if program.model_mount_path is not None else ""
            self.losses.append(loss_of(program.image, f"{where}: docker run -p {port}:{port}{mount} IMAGE"))
        for key in (program.packages, program.model, program.model_mount_path, program.script):
            if key is not None:
                self.losses.append(loss_of(key, f"{where}; it is not in the local file"))
        self.losses += [loss_of(key, f"give it to the program: {where}") for key in program.environment.values()]
        for name in [name for name in settings if name == "num_replicas" or name.startswith("autoscale_")]:
            key = settings.pop(name)
            if key.is_given:
                self.losses.append(loss_of(key, f"a program that you start is not scaled; {where}"))
        for name, route in (("readiness_path", program.routes.readiness), ("liveness_path", program.routes.liveness)):
            if route.port != port and program.source is not None:
                reason = f"probes use the port of the scoring route, {port}, instead of {route.port}"
                self.losses.append(loss_of(program.source.holds(name), f"{name}: {reason}"))
        return {"addresses": [host_port(_HOST, port)], **_probe_paths(program)}

    def _path(self, path: Path) -> str:
        return str(path) if self.directory is None else os.path.relpath(path, self.directory)


def _probe_paths(program: Program) -> dict[str, str]:
    return {"readiness_path": program.routes.readiness.path, "liveness_path": program.routes.liveness.path}


def _typed(name: str, value: Any) -> Any:
    """Return a number or a bool instead of its text, as people write it. An invalid value stays, for its error."""
    setting = _DECLARED.get(name)
    if setting is None or setting.kind not in (SettingKind.BOOL, SettingKind.INT, SettingKind.FLOAT):
        return value
    try:
        return parse_value(setting, value)
    except SettingsError:
        return value
