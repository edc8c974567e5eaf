"""`azureml-fe convert`: writes the services of Azure ML's files as a local file, or as objects of Kubernetes.

Does not contain: the meaning of the files (`azureml`), nor the two targets (`cluster.local.declared_services`,
`cluster.kubernetes.manifests`). The written file may have keys and environment variables, so only its owner can read
it, and nothing of them is printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.azureml.conversion import check_settings, convert_files
from router.azureml.services import Conversion, Loss
from router.cluster.local.config_file import parse_local_config
from router.cluster.local.declared_services import local_document
from router.config.schema import ArgumentError
from router.config.yaml_document import dump_yaml

_DEFAULT_FILES = {"local": "services.yaml", "kubernetes": "manifests.yaml"}
_IMAGE = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:/@\[\]-]*", re.ASCII)
"""The characters of a reference to an image, with brackets for an IPv6 address of a registry."""


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What was written, and what could not be converted."""

    file: Path
    target: str
    services: tuple[str, ...]
    losses: tuple[Loss, ...]

    def lines(self) -> list[str]:
        """Return a summary without the losses."""
        command = f"azureml-fe local {self.file}" if self.target == "local" else f"kubectl apply -f {self.file}"
        return [f"{self.file}: {', '.join(self.services)}", f"next: {command}"]

    def as_dict(self) -> dict[str, Any]:
        """Return the report for `--output json`."""
        losses = [{"where": loss.where, "key": loss.key, "reason": loss.reason} for loss in self.losses]
        return {"file": str(self.file), "target": self.target, "services": list(self.services), "losses": losses}


def run_convert(
    paths: Sequence[Path], target: str, *, out: Path | None, name: str | None, image: str | None, overwrite: bool
) -> ConversionReport:
    """Convert the files and write the result. Raises `SettingsError` for all faults of the files."""
    out = out or Path(_DEFAULT_FILES[target])
    if str(out) == "-" or (out.exists() and not out.is_file()):  # a device would be replaced
        raise ArgumentError("--out", str(out), "must be a file; it may have keys, which are never printed")
    if out.exists() and not overwrite:
        raise ArgumentError("--out", str(out), "exists; --force replaces it")
    if image is not None and target != "kubernetes":
        raise ArgumentError("--image", image, "allowed only with --to kubernetes")
    if image is not None and not _IMAGE.fullmatch(image):
        raise ArgumentError("--image", image, "must be the name of an image: REGISTRY/NAME:TAG")
    conversion = convert_files(paths, name)
    text, losses = _to_local(conversion, out) if target == "local" else _to_kubernetes(conversion, image)
    _write_private(out, _comment(losses) + text)
    return ConversionReport(out, target, tuple(service.name for service in conversion.services), losses)


def _to_local(conversion: Conversion, out: Path) -> tuple[str, tuple[Loss, ...]]:
    parse_local_config(local_document(conversion, str(out)), conversion.directory)  # reports errors of the files
    document = local_document(conversion, str(out), out.absolute().parent)
    return dump_yaml(document.values), document.losses


def _to_kubernetes(conversion: Conversion, image: str | None) -> tuple[str, tuple[Loss, ...]]:
    from router.cluster.kubernetes.manifests import make_manifests

    manifests = make_manifests(conversion, check_settings(conversion), image)
    return "---\n".join(map(dump_yaml, manifests.objects)), manifests.losses


def _comment(losses: Sequence[Loss]) -> str:
    """Return a comment that lists the losses."""
    if not losses:
        return ""
    return "".join(f"# {line}\n" for line in ("Not converted:", *(f"- {loss}" for loss in losses)))


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read. A previous one is replaced as a whole. Raises `ArgumentError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "w") as file:
                file.write(text)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:  # which names the temporary file
        raise ArgumentError("--out", str(path), f"cannot be written: {error.strerror}") from error
