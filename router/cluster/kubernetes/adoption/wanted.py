"""Decides which annotations and keys adoption gives a service, from the command line and the facts. No I/O, no clock.

Each function adds to the annotations that are wanted, by Deployment, and collects faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from router.auth.exported_keys import ExportedKeys
from router.cluster.kubernetes.adoption.facts import AdoptableService, ClusterFacts, ModelDeployment
from router.cluster.kubernetes.annotations import DEFAULT_PORT, annotation_name
from router.cluster.kubernetes.objects import (
    ANNOTATION_PREFIX,
    SERVICE_ANNOTATION,
    Deployment,
    NamespacedName,
    name_of,
)
from router.cluster.kubernetes.service_assembler import SETTINGS_REFUSED, ResolvedService, ServiceAssembler
from router.config.schema import ArgumentError, ErrorCollector, SettingsError
from router.config.service import is_service_name

MODE_ANNOTATION = annotation_name("mode")
_OWN_SETTINGS = {
    "mode": "is what --take-over and --undo change",
    "service": "is the name of the service in Azure ML, which its clients use",
    "traffic_percentile": "is what --traffic sets",
    "is_default": "is what --traffic sets",
    "keys_secret": "is what --keys-secret sets",
}
"""Settings that `--set` must not have, with the reasons."""


class GivenSetting(NamedTuple):
    """A setting that the command line gives. `version` is "" for all versions of a service."""

    version: str
    name: str
    value: str


class DeclaredAnnotations(NamedTuple):
    """The annotations of each version of a service, as the files of Azure ML declare it, and notes for operators."""

    of_versions: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdoptionOptions:
    """What the command line says about the services to adopt. At most one of the three about keys is given."""

    declared: Mapping[str, DeclaredAnnotations] | None = None
    """By service. None if there are no files."""
    settings: tuple[GivenSetting, ...] = ()
    traffic: Mapping[str, int] | None = None
    """The percentage of each version."""
    keys: ExportedKeys | None = None
    keys_secret: str | None = None
    new_keys: bool = False


class Faults:
    """Collects the faults of one service."""

    def __init__(self, service: AdoptableService, errors: ErrorCollector) -> None:
        self._where = f"service {service}"
        self._errors = errors
        self.found = False

    def add(self, argument: str, value: object, problem: str) -> None:
        self.found = True
        self._errors.add(ArgumentError(argument, value, problem, self._where))


Wanted = Mapping[NamespacedName, dict[str, str]]
"""The annotations that each Deployment gets, by their complete names."""


def wanted_annotations(
    service: AdoptableService, options: AdoptionOptions, faults: Faults
) -> tuple[Wanted, tuple[str, ...]]:
    """Return the annotations of each Deployment, and notes about the files of Azure ML. Collects faults."""
    versions = service.versions()
    wanted = {name_of(member): _own_annotations(service, member, versions) for member in service.members}
    notes = _add_declared(service, versions, options.declared, wanted, faults)
    _add_traffic(service, versions, options.traffic, wanted, faults)
    _add_settings(versions, options.settings, wanted, faults)
    if options.keys_secret is not None:
        for annotations in wanted.values():
            annotations[annotation_name("keys_secret")] = options.keys_secret
    return wanted, notes


def _own_annotations(
    service: AdoptableService, member: ModelDeployment, versions: Mapping[NamespacedName, str]
) -> dict[str, str]:
    """Return the annotations that adoption needs for one Deployment, whatever its settings are."""
    annotations = {MODE_ANNOTATION: "observe"}
    if member.deployment.app != service.name:
        annotations[SERVICE_ANNOTATION] = service.name
    if len(service.members) > 1 or member.endpoint_version:
        annotations[annotation_name("version")] = versions[name_of(member)]
    port = annotation_name("port")
    if member.ports and DEFAULT_PORT not in member.ports and port not in member.annotations:
        annotations[port] = str(member.ports[0])
    return annotations


def _add_declared(
    service: AdoptableService,
    versions: Mapping[NamespacedName, str],
    declared: Mapping[str, DeclaredAnnotations] | None,
    wanted: Wanted,
    faults: Faults,
) -> tuple[str, ...]:
    """Add what the files of Azure ML declare. Return notes about it."""
    if declared is None:
        return ()
    if service.name not in declared:
        faults.add("--from", None, f"the files declare no service {service.name}, but {', '.join(sorted(declared))}")
        return ()
    of_versions, notes = declared[service.name]
    if sorted(of_versions) != sorted(versions.values()):
        names = f"{', '.join(sorted(of_versions))}; the service has {', '.join(sorted(versions.values()))}"
        faults.add("--from", None, f"the files declare the versions {names}")
        return ()
    version_annotation = annotation_name("version")
    for deployment, version in versions.items():
        wanted[deployment] |= {
            name: value for name, value in of_versions[version].items() if name != version_annotation
        }
    return notes


def _add_traffic(
    service: AdoptableService,
    versions: Mapping[NamespacedName, str],
    traffic: Mapping[str, int] | None,
    wanted: Wanted,
    faults: Faults,
) -> None:
    """Add the traffic split. The version with the largest share is the default, which gets the rest."""
    names = sorted(versions.values())
    percentile, default = annotation_name("traffic_percentile"), annotation_name("is_default")
    present = [*wanted.values(), *(member.annotations for member in service.members)]
    has_split = any(name in annotations for annotations in present for name in (percentile, default))
    if traffic is None:
        if len(names) > 1 and not has_split:
            shares = ",".join(f"{name}=PERCENT" for name in names)
            problem = f"is missing: --traffic {shares} as in Azure ML, whose Deployments do not show it, or --from FILE"
            faults.add("--traffic", None, problem)
        return
    unknown = sorted(traffic.keys() - set(names))
    if unknown:
        faults.add("--traffic", ", ".join(unknown), f"must be versions of the service: {', '.join(names)}")
    if sum(traffic.values()) != 100:
        faults.add("--traffic", sum(traffic.values()), "the percentages must add up to 100")
    largest = max(traffic, key=lambda name: (traffic[name], name))
    for name, version in versions.items():
        wanted[name][default] = "true" if version == largest else "false"
        wanted[name][percentile] = "0" if version == largest else str(traffic.get(version, 0))


def _add_settings(
    versions: Mapping[NamespacedName, str],
    settings: Sequence[GivenSetting],
    wanted: Wanted,
    faults: Faults,
) -> None:
    for version, name, value in settings:
        reason = _OWN_SETTINGS.get(name)
        if reason is not None:
            faults.add("--set", name, reason)
        elif version and version not in versions.values():
            names = ", ".join(sorted(versions.values()))
            faults.add("--set", f"{version}:{name}", f"must name a version of the service: {names}")
        else:
            for deployment, of_deployment in versions.items():
                if version in ("", of_deployment):
                    wanted[deployment][annotation_name(name)] = value


def assemble(
    service: AdoptableService, wanted: Mapping[NamespacedName, Mapping[str, str]], faults: Faults
) -> ResolvedService | None:
    """Return the service as the router will assemble it, or None if its name is invalid."""
    if not is_service_name(service.name):
        return None
    changed = [
        _with_annotations(member.deployment, service.name, wanted[name_of(member)]) for member in service.members
    ]
    try:
        resolved = ServiceAssembler(service.name, changed, {}, {}).assemble()
    except SettingsError as error:
        faults.add(error.setting, error.value, error.problem)
        return None
    for problem in resolved.problems:
        if problem.reason in (SETTINGS_REFUSED, "VersionTaken"):
            faults.add(f"Deployment {problem.deployment.name}", None, problem.message.rpartition("; ")[0])
    return resolved


def _with_annotations(deployment: Deployment, service: str, annotations: Mapping[str, str]) -> Deployment:
    own = {name.removeprefix(ANNOTATION_PREFIX): value for name, value in annotations.items()}
    return replace(deployment, service=service, annotations=tuple(sorted((dict(deployment.annotations) | own).items())))


def choose_keys(
    resolved: ResolvedService, options: AdoptionOptions, facts: ClusterFacts, faults: Faults
) -> NamespacedName | None:
    """Return the Secret to create, None if none is needed. Collects faults: keys that are missing or differ."""
    secret = facts.secrets.get(resolved.secret)
    has_keys = secret is not None and bool(secret.primary_key or secret.secondary_key)
    if not resolved.service.auth_enabled:
        given = options.keys is not None or options.new_keys
        if given:
            faults.add("keys", None, "must not be given for a service without auth_enabled, whose clients send none")
        return None
    if options.keys is not None:
        if secret is None:
            return resolved.secret
        if (secret.primary_key, secret.secondary_key) != options.keys:
            problem = f"has other keys than Secret {secret.name}; azureml-fe keys import --replace replaces those"
            faults.add("--keys-from", None, problem)
    elif options.new_keys:
        if secret is None:
            return resolved.secret
        faults.add("--new-keys", None, f"not allowed: Secret {secret.name} exists; omit the flag to use its keys")
    elif not has_keys:
        faults.add("keys", None, _missing_keys(resolved.secret, options.keys_secret))
    return None


def _missing_keys(secret: NamespacedName, given: str | None) -> str:
    if given is not None:
        return f"Secret {secret.name} must exist, with the label isazuremlapp=true, primaryKey and secondaryKey"
    return (
        "are missing: --keys-from FILE has those of the clients, as az ml online-endpoint get-credentials or "
        "service.get_keys() print them; or --keys-secret NAME, or --new-keys, or --set auth_enabled=false"
    )
