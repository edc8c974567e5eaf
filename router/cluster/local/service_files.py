"""The files that `azureml-fe local` and `azureml-fe check` accept: one local file, or files of Azure ML."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from router.azureml.conversion import convert_files
from router.azureml.files import kind_of, read_file
from router.cluster.local.config_file import LocalConfig, directory_of, parse_local_config
from router.cluster.local.declared_services import local_document
from router.config.dynamic import NO_DYNAMIC_SETTINGS, DynamicSettings
from router.config.schema import ArgumentError

FileIdentity = tuple[tuple[int, int, int] | None, ...]
"""Changes when one of several files changes. An element is None if its file does not exist."""


class ServiceFiles:
    """The files with the services of a router on one machine."""

    def __init__(self, paths: Sequence[Path], name: str | None = None) -> None:
        """`name` is that of the service of Azure ML's files, which may have none."""
        self.paths = tuple(paths)
        self._name = name

    def __str__(self) -> str:
        return ", ".join(map(str, self.paths))

    def load(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        flags: Mapping[str, object] | None = None,
        dynamic: DynamicSettings = NO_DYNAMIC_SETTINGS,
    ) -> LocalConfig:
        """Return the validated content. Raises `SettingsError` for all errors; see `parse_local_config`."""
        given = read_file(self.paths[0]) if len(self.paths) == 1 else None
        if given is not None and kind_of(given) is None:
            if self._name is not None:
                raise ArgumentError("--name", self._name, "allowed only for files of Azure ML")
            directory = directory_of(self.paths[0])
            return parse_local_config(given, directory, environ=environ, flags=flags, dynamic=dynamic)
        conversion = convert_files(self.paths, self._name)
        document = local_document(conversion, str(self.paths[0]))
        config = parse_local_config(document, conversion.directory, environ=environ, flags=flags, dynamic=dynamic)
        return replace(config, losses=tuple(map(str, document.losses)))

    def identity(self) -> FileIdentity:
        """Return a value that changes when a file is written or replaced, or when a symbolic link in its path
        changes."""
        return tuple(map(_identity, self.paths))


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
