"""Services as Azure ML's files declare them: settings by the names of this router, and programs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple


class Key(NamedTuple):
    """The value of a key. `name` is its path in its file, with dots, and `where` its file and line."""

    value: Any
    name: str
    where: str
    is_given: bool = True
    """False for a default of Azure ML that the file does not have."""

    @property
    def location(self) -> str:
        """The location for errors: `deployment.yml, line 7: instance_type`."""
        return f"{self.where}: {self.name}"

    def holds(self, value: object) -> "Key":
        """Return the same key with another value, for example in another unit."""
        return Key(value, self.name, self.where)


class Loss(NamedTuple):
    """A key that has no counterpart, or needs work that the converter cannot do. It never shows a value that may be
    secret."""

    where: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.reason}"


def loss_of(key: Key, reason: str) -> Loss:
    """Return the loss of a key."""
    return Loss(key.where, key.name, reason)


class ProgramKind(StrEnum):
    """How a version's program is given."""

    ENTRY_SCRIPT = "entry script"
    """`init()` and `run(data)`, for Azure's inference server."""
    CONTAINER = "container"
    """An HTTP server in an image, with the routes of `inference_config`."""
    MLFLOW = "MLflow model"
    """A model in MLflow's format without a program."""
    UNKNOWN = "unknown"
    """The files do not say what to run."""


class Route(NamedTuple):
    """A path and a port of a program."""

    path: str
    port: int


class Routes(NamedTuple):
    """The routes of a program."""

    scoring: Route
    readiness: Route
    liveness: Route


AZUREML_SCORING_ROUTE = Route("/score", 5001)
AZUREML_ROUTES = Routes(AZUREML_SCORING_ROUTE, Route("/", 5001), Route("/", 5001))
"""The routes of Azure's inference server."""
MLFLOW_ROUTES = Routes(Route("/invocations", 5001), Route("/ping", 5001), Route("/ping", 5001))
"""The routes of MLflow's server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a version runs. Paths are absolute.

    `packages` is the key of an environment whose packages are in no image yet, and `model` that of the model.
    `model_path` is a local file or directory; None if the model is registered in a workspace. `resources` has the
    Kubernetes quantities of `requests` and `limits`. Without a `source_directory` only the entry script is given.
    """

    kind: ProgramKind
    source: Key | None = None
    """The key that declares the program, for errors."""
    script: Key | None = None
    """The key of the entry script, which a container may have, too."""
    entry_script: Path | None = None
    source_directory: Path | None = None
    image: Key | None = None
    packages: Key | None = None
    model: Key | None = None
    model_directory: str = "model/1"
    """Name and version of the model, as its directory below that of all models."""
    model_path: Path | None = None
    model_mount_path: Key | None = None
    environment: Mapping[str, Key] = field(default_factory=dict)
    routes: Routes = AZUREML_ROUTES
    resources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredVersion:
    """A version: its settings by name, as raw values, and its program."""

    name: str
    settings: Mapping[str, Key]
    program: Program


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredService:
    """A service. `namespace` is that of Kubernetes, if the files name one."""

    name: str
    settings: Mapping[str, Key]
    versions: tuple[DeclaredVersion, ...]
    namespace: Key | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The services that a set of files declares, and the keys that no target can have."""

    services: tuple[DeclaredService, ...]
    losses: tuple[Loss, ...]
    directory: Path
    """The directory of the first file."""
