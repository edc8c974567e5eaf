"""The services of Azure ML's files as objects of Kubernetes: Deployments with annotations, ConfigMaps, Secrets. No API.

Contains: what a Deployment needs so that the router serves and scales it. Does not contain: the meaning of annotations
(`annotations`), and objects of the router itself, which are those of the chart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from router.auth.exported_keys import KEY_FIELDS
from router.azureml.services import (
    Conversion,
    DeclaredService,
    DeclaredVersion,
    Key,
    Loss,
    Program,
    ProgramKind,
    Route,
    loss_of,
)
from router.cluster.kubernetes.annotations import DEFAULT_PORT, annotation_name
from router.cluster.kubernetes.directory_config_map import TooLargeError, config_map_files
from router.cluster.kubernetes.objects import SERVICE_LABEL
from router.cluster.kubernetes.service_assembler import KEYS_SECRET_PREFIX
from router.config.schema import ErrorCollector, SettingsError
from router.config.service_settings import (
    POD_TEMPLATE_SETTINGS,
    SECRET_SETTINGS,
    SERVICE_SETTINGS,
    VERSION_SETTINGS,
)
from router.model.services import DEFAULT_VERSION_NAME, Service, Version

MISSING_IMAGE = "image-is-missing"
"""The image of a container whose files name none. No such image exists."""

_APP_ROOT = PurePosixPath("/var/azureml-app")
_CODE = _APP_ROOT / "code"
_MODELS = _APP_ROOT / "azureml-models"
_SERVICE_NAMES = frozenset(setting.name for setting in SERVICE_SETTINGS)
_DECLARED = {setting.name for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS)}
_SECRET_WORDS = ("key", "token", "secret", "passw", "pwd", "connection", "credential", "sas")
_MIN_GRACE_SECONDS = 30
_SPARE_SECONDS = 15
"""Time of a pod to stop after its last request."""


@dataclass(frozen=True, slots=True)
class Manifests:
    """The objects, and all keys that are not in them."""

    objects: tuple[dict[str, Any], ...]
    losses: tuple[Loss, ...]


def make_manifests(conversion: Conversion, services: Iterable[Service], image: str | None = None) -> Manifests:
    """Return the objects of these services; `services` has their valid settings, in the same order.

    `image` replaces the images of all programs that run an entry script or an MLflow model. Raises `SettingsError` if
    the files of a program cannot be read.
    """
    errors = ErrorCollector()
    losses = list(conversion.losses)
    objects: list[dict[str, Any]] = []
    for declared, service in zip(conversion.services, services, strict=True):
        if (keys := _keys_secret(declared)) is not None:
            objects.append(keys)
        for version, settings in zip(declared.versions, service.versions, strict=True):
            builder = _DeploymentBuilder(declared, version, settings, image, losses, errors)
            objects += builder.build()
    errors.raise_errors()
    return Manifests(tuple(objects), tuple(losses))


def version_annotations(service: DeclaredService, version: DeclaredVersion) -> dict[str, str]:
    """Return the settings of a service and of one of its versions that are annotations of a Deployment."""
    settings = {**service.settings, **version.settings}
    names = [name for name in settings if name not in (*SECRET_SETTINGS, *POD_TEMPLATE_SETTINGS)]
    annotations = {annotation_name(name): _text(settings[name].value) for name in names if name in _DECLARED}
    if version.name != DEFAULT_VERSION_NAME:
        annotations[annotation_name("version")] = version.name
    if (port := version.program.routes.scoring.port) != DEFAULT_PORT:
        annotations[annotation_name("port")] = str(port)
    return annotations


def _metadata(service: DeclaredService, name: str, **fields: Any) -> dict[str, Any]:
    namespace = {} if service.namespace is None else {"namespace": service.namespace.value}
    return {"name": name, **namespace, "labels": _labels(service), **fields}


def _labels(service: DeclaredService) -> dict[str, str]:
    return {"isazuremlapp": "true", SERVICE_LABEL: service.name}


def _keys_secret(service: DeclaredService) -> dict[str, Any] | None:
    """Return the Secret with the keys of a service, if its files have them."""
    data = {
        KEY_FIELDS[name.removesuffix("_key")]: service.settings[name].value
        for name in SECRET_SETTINGS
        if name in service.settings
    }
    if not data:
        return None
    metadata = _metadata(service, KEYS_SECRET_PREFIX + service.name)
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "stringData": data}


@dataclass(slots=True)
class _DeploymentBuilder:
    """Builds the Deployment of one version, and the objects that it mounts."""

    service: DeclaredService
    version: DeclaredVersion
    settings: Version
    image: str | None
    losses: list[Loss]
    errors: ErrorCollector
    _objects: list[dict[str, Any]] = field(default_factory=list)
    _volumes: list[dict[str, Any]] = field(default_factory=list)
    _mounts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the Deployment."""
        return self.service.name if self._has_no_name else f"{self.service.name}-{self.version.name}"

    @property
    def _has_no_name(self) -> bool:
        return [each.name for each in self.service.versions] == [DEFAULT_VERSION_NAME]

    @property
    def _program(self) -> Program:
        return self.version.program

    def build(self) -> list[dict[str, Any]]:
        """Return the objects."""
        environment = self._environment()
        container: dict[str, Any] = {"name": "model", "image": self._image()}
        if self._program.kind is ProgramKind.MLFLOW:
            container["command"] = self._mlflow_command()
        port = self._program.routes.scoring.port
        container |= {"env": environment, "ports": [{"name": "http", "containerPort": port}]}
        container |= {"readinessProbe": self._readiness(), "livenessProbe": self._liveness()}
        container["resources"] = self._resources()
        if self._mounts:
            container["volumeMounts"] = self._mounts
        return [*self._objects, self._deployment(container)]

    def _deployment(self, container: dict[str, Any]) -> dict[str, Any]:
        labels = _labels(self.service)
        selector = {SERVICE_LABEL: self.service.name}
        if not self._has_no_name:
            labels |= {"version": self.version.name}
            selector |= {"version": self.version.name}
        pod: dict[str, Any] = {
            "terminationGracePeriodSeconds": self._grace_seconds(),
            "automountServiceAccountToken": False,
            "containers": [container],
        }
        if self._volumes:
            pod["volumes"] = self._volumes
        metadata = _metadata(self.service, self.name, annotations=version_annotations(self.service, self.version))
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": selector},
                "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }

    def _grace_seconds(self) -> int:
        return max(_MIN_GRACE_SECONDS, math.ceil(self.settings.scoring_timeout_ms / 1000) + _SPARE_SECONDS)

    def _image(self) -> str:
        program = self._program
        if self.image is not None and program.kind is not ProgramKind.CONTAINER:
            return self.image
        if program.packages is not None:
            reason = "its packages are in no image that the files name; build one with them, and give it with --image"
            self.losses.append(loss_of(program.packages, reason))
        elif program.image is None:
            place = program.source or Key("", f"version {self.version.name}", f"service {self.service.name}")
            self.losses.append(loss_of(place, "the files name no image; give it with --image"))
        return program.image.value if program.image is not None else MISSING_IMAGE

    def _environment(self) -> list[dict[str, Any]]:
        """Return the environment variables. Those that may be secrets are in a Secret."""
        given = {name: key.value for name, key in self._program.environment.items()}
        plain = self._paths() | {name: text for name, text in given.items() if not _may_be_secret(name)}
        secret = {name: text for name, text in given.items() if _may_be_secret(name)}
        entries: list[dict[str, Any]] = [
            {"name": name, "value": text.replace("$(", "$$(")} for name, text in plain.items()
        ]
        if secret:
            name = f"{self.name}-environment"
            metadata = _metadata(self.service, name)
            self._objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": secret})
            entries += [{"name": each, "valueFrom": {"secretKeyRef": {"name": name, "key": each}}} for each in secret]
        return entries

    def _paths(self) -> dict[str, str]:
        """Mount the entry script and the model. Return the environment variables with their paths."""
        program = self._program
        paths = {}
        if program.entry_script is not None:
            paths = self._code_paths(program.entry_script, program.source_directory)
        if program.model is None:
            return paths
        given = program.model_mount_path
        directory = PurePosixPath(given.value) if given is not None else _MODELS / program.model_directory
        path = program.model_path
        if path is None:
            self._lose_model(f"the model is in a workspace; download it, and mount a volume with it at {directory}")
        else:
            self._mount("model", path, path.parent, directory, program.model)
        return paths | {"AZUREML_MODEL_DIR": str(directory)}

    def _code_paths(self, script: Path, source_directory: Path | None) -> dict[str, str]:
        """Mount the entry script, and return its environment variables."""
        root = source_directory or script.parent
        key = self._program.script
        assert key is not None, "the path comes from it"
        if not script.resolve().is_relative_to(root.resolve()):
            problem = f"must be a file below the source directory {root}"
            self.errors.add(SettingsError(key.name, key.value, problem, key.where))
            return {}
        paths = {"AZUREML_ENTRY_SCRIPT": script.resolve().relative_to(root.resolve()).as_posix()}
        if self._mount("code", source_directory or script, root, _CODE, key):
            paths["AML_APP_ROOT"] = str(_CODE)
        return paths

    def _lose_model(self, reason: str) -> None:
        assert self._program.model is not None, "otherwise nothing is lost"
        self.losses.append(loss_of(self._program.model, reason))

    def _mount(self, kind: str, files: Path, root: Path, path: PurePosixPath, source: Key | None) -> bool:
        """Mount `files` with their paths relative to `root`. Return False if they are too large, which is a loss."""
        name = f"{self.name}-{kind}"
        assert source is not None, "the path comes from a key"
        try:
            content, items = config_map_files(files, root)
        except TooLargeError as error:
            self.losses.append(loss_of(source, f"{error}; put the files into the image or a volume, at {path}"))
            return False
        except OSError as error:
            problem = f"must be readable: {error.strerror}: {error.filename}"
            self.errors.add(SettingsError(source.name, source.value, problem, source.where))
            return False
        metadata = _metadata(self.service, name)
        self._objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **content})
        self._volumes.append({"name": kind, "configMap": {"name": name, "items": items}})
        self._mounts.append({"name": kind, "mountPath": str(path), "readOnly": True})
        return True

    def _mlflow_command(self) -> list[str]:
        path = self._program.model_path
        directory = _MODELS / self._program.model_directory / (path.name if path is not None else "model")
        words = ["mlflow", "models", "serve", "--model-uri", str(directory), "--host", "0.0.0.0"]
        return [*words, "--port", str(self._program.routes.scoring.port), "--env-manager", "local"]

    def _route(self, route: Route) -> dict[str, Any]:
        port = "http" if route.port == self._program.routes.scoring.port else route.port
        return {"httpGet": {"path": route.path, "port": port}}

    def _readiness(self) -> dict[str, Any]:
        settings = self.settings
        return self._route(self._program.routes.readiness) | {
            "initialDelaySeconds": settings.readiness_initial_delay_seconds,
            "periodSeconds": settings.readiness_period_seconds,
            "timeoutSeconds": settings.readiness_timeout_seconds,
            "successThreshold": settings.readiness_success_threshold,
            "failureThreshold": settings.readiness_failure_threshold,
        }

    def _liveness(self) -> dict[str, Any]:
        settings = self.settings
        threshold = self.version.settings.get("success_threshold")
        if threshold is not None and settings.success_threshold != 1:
            self.losses.append(loss_of(threshold, "Kubernetes allows only 1 for a liveness probe"))
        return self._route(self._program.routes.liveness) | {
            "initialDelaySeconds": settings.initial_delay_seconds,
            "periodSeconds": settings.period_seconds,
            "timeoutSeconds": settings.timeout_seconds,
            "failureThreshold": settings.failure_threshold,
        }

    def _resources(self) -> dict[str, Any]:
        """Return the quantities of v2, or those of the settings of v1. Kubernetes requires equal requests and limits of
        GPUs."""
        settings, given = self.settings, self._program.resources
        if given:
            resources = {part: dict(quantities) for part, quantities in given.items()}
        else:
            resources = {"requests": {"cpu": f"{settings.cpu_cores:g}", "memory": f"{settings.memory_gb:g}Gi"}}
            limits = {}
            if settings.cpu_cores_limit is not None:
                limits["cpu"] = f"{settings.cpu_cores_limit:g}"
            if settings.memory_gb_limit is not None:
                limits["memory"] = f"{settings.memory_gb_limit:g}Gi"
            if limits:
                resources["limits"] = limits
        if settings.gpu_cores:
            resources.setdefault("limits", {})["nvidia.com/gpu"] = str(settings.gpu_cores)
            resources.get("requests", {}).pop("nvidia.com/gpu", None)
        return resources


def _text(value: Any) -> str:
    """Return a setting as the text of an annotation."""
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def _may_be_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET_WORDS)
