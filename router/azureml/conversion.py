"""Reads a set of Azure ML's files, and returns the services that they declare.

Files belong together by their content: the deployments of v2 name their endpoint. The two files of v1 make one service,
whose name no file has.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from router.azureml.deployment_config import read_deployment_config
from router.azureml.files import FileKind, read_file, require_kind
from router.azureml.online_endpoint import Endpoint, read_endpoint
from router.azureml.services import Conversion, DeclaredService, DeclaredVersion, Loss
from router.config.schema import ErrorCollector, SettingsError
from router.config.service import Locate, SettingPath, is_service_name, parse_service
from router.config.yaml_document import YamlDocument
from router.model.services import Service


def convert_files(paths: Sequence[Path], name: str | None = None) -> Conversion:
    """Return the services that the files declare, and their losses.

    `name` replaces the name of the service if there is only one. Without it, a service of v1 has the name of the
    directory of its first file. Raises `SettingsError` for all faults: unreadable and unknown files, values of a wrong
    type, and files that contradict each other. If there are any, also for invalid values of settings. Otherwise the
    caller passes the settings to `config.service`, as `check_settings` does.
    """
    errors = ErrorCollector()
    documents: dict[FileKind, list[YamlDocument]] = {kind: [] for kind in FileKind}
    for path in dict.fromkeys(paths):
        with errors.collect():
            document = read_file(path)
            documents[require_kind(document)].append(document)
    has_unread = bool(errors)
    services: list[DeclaredService] = []
    losses: list[Loss] = []
    v1 = _only(documents[FileKind.DEPLOYMENT_CONFIG], errors), _only(documents[FileKind.INFERENCE_CONFIG], errors)
    if any(v1):
        default = Path(next(each.file for each in v1 if each)).absolute().parent.name
        service, readers = read_deployment_config(name or default, *v1, errors)
        services.append(service)
        losses += [loss for reader in readers for loss in reader.losses]
    services += _read_endpoints(documents, name, losses, errors, has_unread=has_unread)
    if name is not None:
        if len(services) > 1:
            problem = f"allowed for one service only; the files declare {', '.join(each.name for each in services)}"
            errors.add(SettingsError("--name", name, problem))
        services = [_renamed(each, name) for each in services]
    services = [_with_valid_names(each, losses, str(paths[0])) for each in services if each.versions or not errors]
    conversion = Conversion(services=tuple(services), losses=tuple(losses), directory=paths[0].absolute().parent)
    if errors:
        with errors.collect():
            check_settings(conversion)
    errors.raise_errors()
    return conversion


def _only(documents: Sequence[YamlDocument], errors: ErrorCollector) -> YamlDocument | None:
    """Return the only document, if there is one. Collects an error for further ones."""
    for other in documents[1:]:
        problem = f"contradicts {documents[0].file}, which is of the same kind; convert the services one by one"
        errors.add(SettingsError("file", None, problem, other.file))
    return documents[0] if documents else None


def _read_endpoints(
    documents: dict[FileKind, list[YamlDocument]],
    name: str | None,
    losses: list[Loss],
    errors: ErrorCollector,
    *,
    has_unread: bool,
) -> list[DeclaredService]:
    """Return the services of v2. With `has_unread`, a missing deployment is no error, because it may be unreadable.

    The CLI accepts deployments without `endpoint_name`: they belong to the only endpoint, or to the one called `name`.
    """
    endpoints: dict[str, Endpoint] = {}
    for document in documents[FileKind.ENDPOINT]:
        endpoint = Endpoint(document, errors)
        losses += endpoint.reader.losses
        if endpoint.name in endpoints:
            problem = "another file has an endpoint of this name"
            errors.add(SettingsError("name", endpoint.name, problem, endpoint.where))
        endpoints[endpoint.name] = endpoint
    by_endpoint: dict[str, list[YamlDocument]] = {name: [] for name in endpoints}
    for document in documents[FileKind.DEPLOYMENT]:
        given = document.values.get("endpoint_name") if isinstance(document.values, dict) else None
        if not isinstance(given, str):
            given = next(iter(endpoints)) if len(endpoints) == 1 else name
        if given is None:
            problem = "is missing; --name gives the endpoint of a deployment"
            errors.add(SettingsError("endpoint_name", None, problem, document.file))
            continue
        by_endpoint.setdefault(given, []).append(document)
    services = []
    for endpoint_name, deployments in by_endpoint.items():
        if endpoints and endpoint_name not in endpoints and not has_unread:
            where = deployments[0].locate(("endpoint_name",))
            problem = f"no file has this endpoint; given: {', '.join(endpoints)}"
            errors.add(SettingsError("endpoint_name", endpoint_name, problem, where))
        if deployments or not has_unread:
            service, lost = read_endpoint(
                endpoints.get(endpoint_name), endpoint_name, deployments, errors, has_unread=has_unread
            )
            services.append(service)
            losses += lost
    return services


def _renamed(service: DeclaredService, name: str) -> DeclaredService:
    return DeclaredService(name=name, settings=service.settings, versions=service.versions, namespace=service.namespace)


def _with_valid_names(service: DeclaredService, losses: list[Loss], file: str) -> DeclaredService:
    """Return the service with names that the router and Kubernetes allow. A changed name is a loss."""

    def valid(name: str, kind: str) -> str:
        if is_service_name(name) and "/" not in name:
            return name
        changed = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63].rstrip("-") or "service"
        losses.append(Loss(file, kind, f"{name} is not a valid name here; it becomes {changed}, also in addresses"))
        return changed

    versions = tuple(
        DeclaredVersion(name=valid(each.name, "name of the deployment"), settings=each.settings, program=each.program)
        for each in service.versions
    )
    return DeclaredService(
        name=valid(service.name, "name of the service"),
        settings=service.settings,
        versions=versions,
        namespace=service.namespace,
    )


def check_settings(conversion: Conversion) -> tuple[Service, ...]:
    """Return the services with the settings that their files declare. Raises `SettingsError` for all invalid values,
    with the locations of their keys."""
    errors = ErrorCollector()
    services = []
    for declared in conversion.services:
        versions = {
            version.name: {name: key.value for name, key in version.settings.items()} for version in declared.versions
        }
        mapping = {name: key.value for name, key in declared.settings.items()} | {"versions": versions}
        with errors.collect():
            services.append(parse_service(declared.name, mapping, locate=_locator(declared)))
    errors.raise_errors()
    return tuple(services)


def _locator(service: DeclaredService) -> Locate:
    locations: dict[SettingPath, str] = {(name,): key.location for name, key in service.settings.items()}
    for version in service.versions:
        locations |= {("versions", version.name, name): key.location for name, key in version.settings.items()}
    return lambda path: locations.get(path, "")
