"""Decides which writes adopt, take over or release a service, and which faults prevent that. No I/O, no clock.

All functions collect faults instead of stopping at the first one. A plan is returned only if the service has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from router.auth.exported_keys import ExportedKeys
from router.cluster.kubernetes.adoption.facts import (
    DEFAULT_PORT,
    AdoptableService,
    ClusterFacts,
    ModelDeployment,
    OtherRouter,
    Stage,
)
from router.cluster.kubernetes.adoption.record import RECORD_ANNOTATION, AdoptionRecord, decode_record
from router.cluster.kubernetes.annotations import annotation_name
from router.cluster.kubernetes.objects import (
    ANNOTATION_PREFIX,
    SERVICE_ANNOTATION,
    Deployment,
    NamespacedName,
    Secret,
    name_of,
)
from router.cluster.kubernetes.service_assembler import SETTINGS_REFUSED, ResolvedService, ServiceAssembler
from router.config.schema import ArgumentError, ErrorCollector, SettingsError
from router.config.service import is_service_name

_MODE = annotation_name("mode")
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


@dataclass(frozen=True, slots=True)
class DeploymentPatch:
    """A change of a Deployment that still has this `uid`. None removes an annotation. `replicas` is None if their
    number stays."""

    deployment: NamespacedName
    uid: str
    annotations: Mapping[str, str | None]
    replicas: int | None = None


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """The writes for one service, in this order: the Secret that is created, the patches, the Secret that is deleted.

    `keys` are those of the new Secret; None generates them. `notes` are lines for operators.
    """

    service: AdoptableService
    stage: Stage
    """The stage after these writes."""
    patches: tuple[DeploymentPatch, ...] = ()
    created_secret: NamespacedName | None = None
    keys: ExportedKeys | None = field(default=None, repr=False)
    deleted_secret: NamespacedName | None = None
    """It is deleted only if an adoption has created it."""
    notes: tuple[str, ...] = ()


class _Faults:
    """Collects the faults of one service."""

    def __init__(self, service: AdoptableService, errors: ErrorCollector) -> None:
        self._where = f"service {service}"
        self._errors = errors
        self.found = False

    def add(self, argument: str, value: object, problem: str) -> None:
        self.found = True
        self._errors.add(ArgumentError(argument, value, problem, self._where))


# Adopt.


def plan_adoption(
    service: AdoptableService, options: AdoptionOptions, facts: ClusterFacts, errors: ErrorCollector
) -> ServicePlan | None:
    """Return the plan that adopts a service, or changes the settings of one that is observed. Collects faults."""
    faults = _Faults(service, errors)
    if service.stage is Stage.IN_CHARGE:
        faults.add("NAME", service.name, "the router is in charge of it; change its annotations, or --undo it first")
        return None
    _check_name(service, facts, faults)
    versions = service.versions()
    wanted = {name_of(member): _own_annotations(service, member, versions) for member in service.members}
    notes = _add_declared(service, versions, options.declared, wanted, faults)
    _add_traffic(service, versions, options.traffic, wanted, faults)
    _add_settings(versions, options.settings, wanted, faults)
    if options.keys_secret is not None:
        for annotations in wanted.values():
            annotations[annotation_name("keys_secret")] = options.keys_secret
    resolved = _assemble(service, wanted, faults)
    created = _choose_keys(resolved, options, facts, faults) if resolved is not None else None
    patches = [_adopting_patch(member, wanted[name_of(member)], faults) for member in service.members]
    if faults.found:
        return None
    return ServicePlan(
        service,
        Stage.OBSERVED,
        patches=tuple(patch for patch in patches if patch is not None),
        created_secret=created,
        keys=options.keys,
        notes=(*notes, *_notes(service, facts)),
    )


def _check_name(service: AdoptableService, facts: ClusterFacts, faults: _Faults) -> None:
    if not is_service_name(service.name):
        faults.add("NAME", service.name, "is not a name that this router can serve: 1 to 63 of a-z, 0-9 and '-'")
    others = [
        each.namespace
        for each in facts.services
        if each.name == service.name and each.namespace != service.namespace and each.stage is not Stage.NOT_ADOPTED
    ]
    claim = facts.claims.get(service.name)
    if claim is not None and claim.namespace != service.namespace:
        others.append(claim.namespace)
    if others:
        problem = (
            f"belongs to namespace {others[0]} already: release it with azureml-fe names release, undo the adoption "
            "there, or install the router with router.service_names=namespace/name"
        )
        faults.add("NAME", service.name, problem)


def _own_annotations(
    service: AdoptableService, member: ModelDeployment, versions: Mapping[NamespacedName, str]
) -> dict[str, str]:
    """Return the annotations that adoption needs for one Deployment, whatever its settings are."""
    annotations = {_MODE: "observe"}
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
    wanted: Mapping[NamespacedName, dict[str, str]],
    faults: _Faults,
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
    wanted: Mapping[NamespacedName, dict[str, str]],
    faults: _Faults,
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
        faults.add("--traffic", sum(traffic.values()), "the percentages must sum up to 100")
    largest = max(traffic, key=lambda name: (traffic[name], name))
    for name, version in versions.items():
        wanted[name][default] = "true" if version == largest else "false"
        wanted[name][percentile] = "0" if version == largest else str(traffic.get(version, 0))


def _add_settings(
    versions: Mapping[NamespacedName, str],
    settings: Sequence[GivenSetting],
    wanted: Mapping[NamespacedName, dict[str, str]],
    faults: _Faults,
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


def _assemble(
    service: AdoptableService, wanted: Mapping[NamespacedName, Mapping[str, str]], faults: _Faults
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


def _choose_keys(
    resolved: ResolvedService, options: AdoptionOptions, facts: ClusterFacts, faults: _Faults
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


def _adopting_patch(member: ModelDeployment, wanted: Mapping[str, str], faults: _Faults) -> DeploymentPatch | None:
    record = decode_record(member.record) if member.record else AdoptionRecord({})
    if record is None:
        _report_record(member, faults)
        return None
    present = member.annotations
    changed: dict[str, str | None] = {name: value for name, value in wanted.items() if present.get(name) != value}
    if member.record and not changed:
        return None
    # What an earlier adoption has recorded is what was there before.
    before = {name: present.get(name) for name in changed} | dict(record.annotations)
    changed[RECORD_ANNOTATION] = replace(record, annotations=before).encode()
    return DeploymentPatch(name_of(member), member.deployment.uid, changed)


def _report_record(member: ModelDeployment, faults: _Faults) -> None:
    problem = f"its annotation {RECORD_ANNOTATION} is malformed: remove the annotations of this router by hand"
    faults.add(f"Deployment {member.name}", None, problem)


def _notes(service: AdoptableService, facts: ClusterFacts) -> Iterable[str]:
    for member in service.members:
        hpa = facts.hpas.get(name_of(member))
        if hpa is not None:
            yield f"{hpa} scales Deployment {member.name}, so this router will not"
        if len(member.ports) > 1 and DEFAULT_PORT not in member.ports:
            ports = ", ".join(map(str, member.ports))
            yield f"Deployment {member.name} has the ports {ports}: --set port=N selects the one of its scoring route"
    holder = facts.holders.get(service.namespace)
    is_adopted_there = any(
        each.stage is Stage.IN_CHARGE for each in facts.services if each.namespace == service.namespace
    )
    if holder is not None and not is_adopted_there:
        yield (
            f"the release {holder} has claimed namespace {service.namespace}: unless router.mode is observe there, it "
            "already serves and scales services that are not adopted"
        )


# Take over.


def plan_take_over(
    service: AdoptableService, facts: ClusterFacts, errors: ErrorCollector, *, force: bool
) -> ServicePlan | None:
    """Return the plan that puts the router in charge of a service that it observes. Collects faults.

    Another router that runs is a fault unless `force`.
    """
    faults = _Faults(service, errors)
    if service.stage in (Stage.NOT_ADOPTED, Stage.ANNOTATED):
        faults.add("NAME", service.name, "must be adopted first: azureml-fe adopt NAME")
        return None
    resolved = _assemble(service, {name_of(member): {} for member in service.members}, faults)
    if resolved is not None and resolved.service.auth_enabled:
        secret = facts.secrets.get(resolved.secret)
        if secret is None or not (secret.primary_key or secret.secondary_key):
            problem = f"are missing: the clients' keys must be in Secret {resolved.secret}; see azureml-fe keys import"
            faults.add("keys", None, problem)
    for router in () if force else facts.other_routers:
        faults.add("--take-over", None, _conflict_with(router))
    patches = []
    for member in reversed(service.members):  # the oldest one decides: its patch is last
        record = decode_record(member.record) if member.record else AdoptionRecord({})
        if record is None:
            _report_record(member, faults)
        elif dict(member.deployment.annotations).get("mode") != "normal":
            before = {_MODE: member.annotations.get(_MODE)} | dict(record.annotations)
            text = AdoptionRecord(before, member.deployment.replicas).encode()
            changes: dict[str, str | None] = {_MODE: "normal", RECORD_ANNOTATION: text}
            patches.append(DeploymentPatch(name_of(member), member.deployment.uid, changes))
    if faults.found:
        return None
    notes = [*_notes(service, facts)]
    notes += [f"{router} still runs: it must neither scale nor serve this service" for router in facts.other_routers]
    return ServicePlan(service, Stage.IN_CHARGE, patches=tuple(patches), notes=tuple(notes))


def _conflict_with(router: OtherRouter) -> str:
    scaled = f"kubectl -n {router.namespace} scale deployment/{router.name} --replicas=0"
    return (
        f"Azure ML's router runs, {router}: both would exceed the limits of replicas and undo each other's replica "
        f"counts. Scale it to zero: {scaled}. "
        "To move services one by one, give this one a fixed number of replicas in Azure ML, move its clients, and add "
        "--force"
    )


# The way back.


def plan_undo(service: AdoptableService, errors: ErrorCollector, *, has_other_router: bool) -> ServicePlan | None:
    """Return the plan that restores what a service had before its adoption. Collects faults."""
    faults = _Faults(service, errors)
    adopted = [member for member in service.members if member.record]
    if not adopted:
        faults.add("NAME", service.name, "is not adopted")
        return None
    resolved = _assemble(service, {name_of(member): {} for member in service.members}, faults)
    patches, notes = [], []
    for member in adopted:
        record = decode_record(member.record)
        if record is None:
            _report_record(member, faults)
            continue
        changes: dict[str, str | None] = {**record.annotations, RECORD_ANNOTATION: None}
        present = member.deployment.replicas
        lowered = record.replicas is not None and present < record.replicas
        if record.replicas is not None and present > record.replicas:
            notes.append(
                f"Deployment {member.name} keeps its {present} replicas ({record.replicas} before): fewer might not "
                "carry the present load"
            )
        patches.append(
            DeploymentPatch(name_of(member), member.deployment.uid, changes, record.replicas if lowered else None)
        )
    if faults.found:
        return None
    if service.stage is Stage.IN_CHARGE and not has_other_router:
        notes.append("no other router runs: the service is unreachable until Azure ML's router does")
    return ServicePlan(
        service,
        Stage.NOT_ADOPTED,
        patches=tuple(patches),
        deleted_secret=resolved.secret if resolved is not None else None,
        notes=tuple(notes),
    )


# Which services.


def select_services(names: Iterable[str], facts: ClusterFacts, errors: ErrorCollector) -> tuple[AdoptableService, ...]:
    """Return the services with these names, `NAME` or `NAMESPACE/NAME`. Collects faults."""
    selected = {}
    for name in names:
        namespace, _, service = name.rpartition("/")
        found = [each for each in facts.services if each.name == service and namespace in ("", each.namespace)]
        if len(found) > 1:
            places = ", ".join(str(each) for each in found)
            errors.add(ArgumentError("NAME", name, f"must be one of {places}"))
        elif not found:
            known = ", ".join(str(each) for each in facts.services) or "none"
            errors.add(ArgumentError("NAME", name, f"must be a service that azureml-fe adopt lists: {known}"))
        else:
            selected[str(found[0])] = found[0]
    return tuple(selected.values())


def needs_of(service: AdoptableService, facts: ClusterFacts) -> list[str]:
    """Return what the adoption of a service needs, as lines for operators."""
    if service.stage in (Stage.OBSERVED, Stage.IN_CHARGE):
        return [*_notes(service, facts)]
    errors = ErrorCollector()
    plan_adoption(service, AdoptionOptions(), facts, errors)
    faults: tuple[SettingsError, ...] = ()
    try:
        errors.raise_errors()
    except SettingsError as error:
        faults = error.errors
    return [*(f"{fault.setting}: {fault.problem}" for fault in faults), *_notes(service, facts)]


def helm_values(services: Iterable[AdoptableService]) -> list[dict[str, object]]:
    """Return the values of the chart for these services: one release for each SDK of Azure ML, whose addresses
    differ."""
    values = []
    by_sdk: dict[str, set[str]] = {}
    for service in services:
        by_sdk.setdefault(service.sdk, set()).add(service.namespace)
    for sdk, namespaces in sorted(by_sdk.items()):
        router = {"mode": "observe"} | ({"compatibility": "v2"} if sdk == "v2" else {})
        values.append({"namespaces": sorted(namespaces), "generateKeys": False, "router": router})
    return values


def secrets_by_name(secrets: Iterable[Secret]) -> dict[NamespacedName, Secret]:
    """Return Secrets by namespace and name."""
    return {name_of(secret): secret for secret in secrets}
