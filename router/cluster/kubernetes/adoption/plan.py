"""Decides which writes adopt, take over or release a service, and which faults prevent that. No I/O, no clock.

All functions collect faults instead of stopping at the first one. A plan is returned only if the service has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from router.auth.exported_keys import ExportedKeys
from router.cluster.kubernetes.adoption.facts import (
    AdoptableService,
    ClusterFacts,
    ModelDeployment,
    OtherRouter,
    Stage,
)
from router.cluster.kubernetes.adoption.record import RECORD_ANNOTATION, AdoptionRecord, decode_record
from router.cluster.kubernetes.adoption.wanted import (
    MODE_ANNOTATION,
    AdoptionOptions,
    Faults,
    assemble,
    choose_keys,
    wanted_annotations,
)
from router.cluster.kubernetes.annotations import DEFAULT_PORT
from router.cluster.kubernetes.objects import NamespacedName, Secret, name_of
from router.config.schema import ArgumentError, ErrorCollector, SettingsError
from router.config.service import is_service_name


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


# Adopt.


def plan_adoption(
    service: AdoptableService, options: AdoptionOptions, facts: ClusterFacts, errors: ErrorCollector
) -> ServicePlan | None:
    """Return the plan that adopts a service, or changes the settings of one that is observed. Collects faults."""
    faults = Faults(service, errors)
    if service.stage is Stage.IN_CHARGE:
        faults.add("NAME", service.name, "the router is in charge of it; change its annotations, or --undo it first")
        return None
    _check_name(service, facts, faults)
    wanted, notes = wanted_annotations(service, options, faults)
    resolved = assemble(service, wanted, faults)
    created = choose_keys(resolved, options, facts, faults) if resolved is not None else None
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


def _check_name(service: AdoptableService, facts: ClusterFacts, faults: Faults) -> None:
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


def _adopting_patch(member: ModelDeployment, wanted: Mapping[str, str], faults: Faults) -> DeploymentPatch | None:
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


def _report_record(member: ModelDeployment, faults: Faults) -> None:
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
    faults = Faults(service, errors)
    if service.stage in (Stage.NOT_ADOPTED, Stage.ANNOTATED):
        faults.add("NAME", service.name, "must be adopted first: azureml-fe adopt NAME")
        return None
    resolved = assemble(service, {name_of(member): {} for member in service.members}, faults)
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
            before = {MODE_ANNOTATION: member.annotations.get(MODE_ANNOTATION)} | dict(record.annotations)
            text = AdoptionRecord(before, member.deployment.replicas).encode()
            changes: dict[str, str | None] = {MODE_ANNOTATION: "normal", RECORD_ANNOTATION: text}
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
    faults = Faults(service, errors)
    adopted = [member for member in service.members if member.record]
    if not adopted:
        faults.add("NAME", service.name, "is not adopted")
        return None
    resolved = assemble(service, {name_of(member): {} for member in service.members}, faults)
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
    if service.stage is Stage.IN_CHARGE:
        notes.append("unless router.mode is observe, the router stays in charge of it, by default")
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
