"""`azureml-fe adopt`: its arguments, and its output as text and JSON.

Does not contain: how services are adopted (`cluster.kubernetes.adoption`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from router.auth.exported_keys import ExportedKeys, parse_exported_keys
from router.azureml.conversion import check_settings, convert_files
from router.cluster.kubernetes.adoption.commands import perform_plans, read_facts, try_plans
from router.cluster.kubernetes.adoption.facts import AdoptableService, ClusterFacts, Stage
from router.cluster.kubernetes.adoption.plan import (
    ServicePlan,
    helm_values,
    needs_of,
    plan_adoption,
    plan_take_over,
    plan_undo,
    select_services,
)
from router.cluster.kubernetes.adoption.record import RECORD_ANNOTATION
from router.cluster.kubernetes.adoption.wanted import AdoptionOptions, DeclaredAnnotations, GivenSetting
from router.cluster.kubernetes.manifests import version_annotations
from router.cluster.kubernetes.objects import name_of
from router.config.schema import ArgumentError, ErrorCollector, SettingsError

if TYPE_CHECKING:
    from router.cluster.kubernetes.commands import ClusterArguments

_ADOPTING_FLAGS = {
    "keys_from": "--keys-from", "keys_secret": "--keys-secret", "new_keys": "--new-keys", "traffic": "--traffic",
    "settings": "--set", "files": "--from",
}  # fmt: skip

ReadKeys = Callable[[str], tuple[bytes, str]]
"""Returns the content of a file, and its name for errors. Raises OSError."""


def run_adopt(
    arguments: argparse.Namespace, cluster: ClusterArguments, read_keys: ReadKeys, write: Callable[[str], None]
) -> None:
    """List services, or write a plan and perform it. `write` writes a line at once. Raises `SettingsError` for all
    faults, and OSError."""
    as_json = arguments.output == "json"
    errors = ErrorCollector()
    _check_flags(arguments, errors)
    options = _options(arguments, read_keys, errors)
    if not arguments.names:
        errors.raise_errors()
        facts = read_facts(cluster)
        write(json.dumps(_list_document(facts)) if as_json else "\n".join(_list_lines(facts)))
        return
    facts = _read_facts(cluster, errors)
    plans = _plans(arguments, options, facts, errors)
    errors.raise_errors()
    if as_json:
        try_plans(plans, cluster)
        if not arguments.dry_run:
            perform_plans(plans, cluster)
        write(json.dumps(_plans_document(arguments, plans)))
        return
    for plan in plans:
        write("\n".join(_plan_lines(plan, arguments.keys_from)))
    try_plans(plans, cluster)
    if arguments.dry_run:
        write("--dry-run: nothing was changed")
        return
    perform_plans(plans, cluster, lambda plan: write(f"{plan.service}: {plan.stage}"))
    for line in _next_steps(plans):
        write(line)


def _read_facts(cluster: ClusterArguments, errors: ErrorCollector) -> ClusterFacts:
    """Return the facts of the cluster. If it cannot be read, the faults of the arguments are raised nevertheless."""
    try:
        return read_facts(cluster)
    except (SettingsError, OSError) as error:
        if isinstance(error, SettingsError):
            errors.add(error)
        errors.raise_errors()
        raise


# Arguments.


def _check_flags(arguments: argparse.Namespace, errors: ErrorCollector) -> None:
    given = [flag for name, flag in _ADOPTING_FLAGS.items() if getattr(arguments, name)]
    if arguments.take_over or arguments.undo:
        action = "--take-over" if arguments.take_over else "--undo"
        for flag in given:
            errors.add(ArgumentError(flag, None, f"not allowed with {action}"))
    if arguments.take_over and arguments.undo:
        errors.add(ArgumentError("--take-over", None, "not allowed with --undo"))
    if arguments.force and not arguments.take_over:
        errors.add(ArgumentError("--force", None, "only allowed with --take-over"))
    about_keys = [flag for flag in given if "keys" in flag]
    if len(about_keys) > 1:
        errors.add(ArgumentError(about_keys[0], None, f"not allowed with {', '.join(about_keys[1:])}"))
    if arguments.keys_from and len(arguments.names) > 1:
        errors.add(ArgumentError("--keys-from", None, "allowed with one NAME only: each service has keys of its own"))
    others = {"take_over": "--take-over", "undo": "--undo", "dry_run": "--dry-run"}
    actions = given + [flag for name, flag in others.items() if getattr(arguments, name)]
    if actions and not arguments.names:
        errors.add(ArgumentError("NAME", None, f"is missing: {', '.join(actions)} needs services"))


def _options(arguments: argparse.Namespace, read_keys: ReadKeys, errors: ErrorCollector) -> AdoptionOptions:
    keys: ExportedKeys | None = None
    if arguments.keys_from and arguments.names:
        with errors.collect():
            try:
                content, where = read_keys(arguments.keys_from)
            except OSError as error:
                problem = f"must be a readable file: {error.strerror or error}"
                raise ArgumentError("--keys-from", arguments.keys_from, problem) from None
            keys = parse_exported_keys(content, arguments.names[0].rpartition("/")[2], where)
    return AdoptionOptions(
        declared=_declared(arguments, errors) if arguments.files and arguments.names else None,
        settings=tuple(_settings(arguments.settings, errors)),
        traffic=_traffic(arguments.traffic, errors) if arguments.traffic else None,
        keys=keys,
        keys_secret=arguments.keys_secret,
        new_keys=arguments.new_keys,
    )


def _declared(arguments: argparse.Namespace, errors: ErrorCollector) -> dict[str, DeclaredAnnotations] | None:
    """Return what the files of Azure ML declare, None if they have faults. Their programs, keys and pods are not used:
    those of the cluster are more recent."""
    name = arguments.names[0].rpartition("/")[2] if len(arguments.names) == 1 else None
    with errors.collect():
        conversion = convert_files(arguments.files, name)
        check_settings(conversion)
        notes = tuple(f"not converted: {loss}" for loss in conversion.losses)
        return {
            service.name: DeclaredAnnotations(
                {version.name: version_annotations(service, version) for version in service.versions}, notes
            )
            for service in conversion.services
        }
    return None


def _settings(texts: Iterable[str], errors: ErrorCollector) -> Iterable[GivenSetting]:
    for text in texts:
        left, equals, value = text.partition("=")
        version, _, name = left.rpartition(":")
        if name and equals:
            yield GivenSetting(version, name.replace("-", "_"), value)
        else:  # the text may contain a secret
            errors.add(ArgumentError("--set", None, "must be NAME=VALUE, or VERSION:NAME=VALUE for one version"))


def _traffic(text: str, errors: ErrorCollector) -> dict[str, int] | None:
    traffic: dict[str, int] = {}
    for part in text.split(","):
        version, _, percent = part.strip().partition("=")
        is_number = percent.isascii() and percent.isdigit() and int(percent) <= 100
        if not version or not is_number or version in traffic:
            problem = "must be VERSION=PERCENT,... with each version once and whole percentages from 0 to 100"
            errors.add(ArgumentError("--traffic", text, problem))
            return None
        traffic[version] = int(percent)
    return traffic


def _plans(
    arguments: argparse.Namespace, options: AdoptionOptions, facts: ClusterFacts, errors: ErrorCollector
) -> list[ServicePlan]:
    plans = []
    for service in select_services(arguments.names, facts, errors):
        if arguments.take_over:
            plan = plan_take_over(service, facts, errors, force=arguments.force)
        elif arguments.undo:
            plan = plan_undo(service, errors, has_other_router=bool(facts.other_routers))
        else:
            plan = plan_adoption(service, options, facts, errors)
        if plan is not None:
            plans.append(plan)
    return plans


# Lists.


def _list_lines(facts: ClusterFacts) -> Iterable[str]:
    if not facts.services:
        yield "no Deployment has the label isazuremlapp=true"
    for service in facts.services:
        yield f"{service}: Azure ML {service.sdk}, {service.stage}"
        for member in service.members:
            version = service.versions()[name_of(member)]
            replicas, manager = member.deployment.replicas, member.deployment.replicas_manager or "unknown"
            yield f"  Deployment {member.name}: version {version}, {replicas} replicas, last set by {manager}"
        for line in needs_of(service, facts):
            yield f"  {line}"
    for router in facts.other_routers:
        yield f"Azure ML's router runs: {router}"
    yield from _helm_lines(facts.services)


def _helm_lines(services: Iterable[AdoptableService]) -> Iterable[str]:
    """Yield the values of the chart in YAML."""
    for values in helm_values(services):
        yield f"Values of the chart azureml-fe for {', '.join(_namespaces(values))}:"
        for name, value in values.items():
            yield f"  {name}: {json.dumps(value)}"


def _namespaces(values: Mapping[str, Any]) -> Sequence[str]:
    namespaces: Sequence[str] = values["namespaces"]
    return namespaces


def _list_document(facts: ClusterFacts) -> dict[str, Any]:
    return {
        "services": [
            {
                "namespace": service.namespace,
                "name": service.name,
                "sdk": service.sdk,
                "stage": service.stage,
                "deployments": [
                    {
                        "name": member.name,
                        "version": service.versions()[name_of(member)],
                        "replicas": member.deployment.replicas,
                        "replicas_set_by": member.deployment.replicas_manager,
                        "ports": list(member.ports),
                    }
                    for member in service.members
                ],
                "needs": needs_of(service, facts),
            }
            for service in facts.services
        ],
        "other_routers": [
            {"namespace": each.namespace, "name": each.name, "pods": each.pods, "labels": dict(each.labels)}
            for each in facts.other_routers
        ],
        "helm_values": helm_values(facts.services),
    }


# Plans. Keys are never printed.


def _plan_lines(plan: ServicePlan, keys_from: str | None) -> Iterable[str]:
    yield f"service {plan.service}: {plan.service.stage} -> {plan.stage}"
    if plan.created_secret is not None:
        keys = "new keys" if plan.keys is None else f"the keys in {'standard input' if keys_from == '-' else keys_from}"
        yield f"  Secret {plan.created_secret.name}: created with {keys}"
    for patch in plan.patches:
        changes = [
            f"{name} removed" if value is None else f"{name}: {value}"
            for name, value in sorted(patch.annotations.items())
            if name != RECORD_ANNOTATION
        ]
        changes += [f"{patch.replicas} replicas"] if patch.replicas is not None else []
        yield f"  Deployment {patch.deployment.name}: {', '.join(changes) or 'no changes'}"
    if not plan.patches:
        yield "  nothing to change"
    if plan.deleted_secret is not None:
        yield f"  Secret {plan.deleted_secret.name}: deleted if the adoption has created it"
    for note in plan.notes:
        yield f"  note: {note}"


def _plans_document(arguments: argparse.Namespace, plans: Iterable[ServicePlan]) -> dict[str, Any]:
    return {
        "action": "take-over" if arguments.take_over else "undo" if arguments.undo else "adopt",
        "dry_run": arguments.dry_run,
        "services": [
            {
                "namespace": plan.service.namespace,
                "name": plan.service.name,
                "stage_before": plan.service.stage,
                "stage": plan.stage,
                "deployments": [
                    {
                        "name": patch.deployment.name,
                        "annotations": {
                            name: value for name, value in patch.annotations.items() if name != RECORD_ANNOTATION
                        },
                        "replicas": patch.replicas,
                    }
                    for patch in plan.patches
                ],
                "created_secret": plan.created_secret and plan.created_secret.name,
                "deleted_secret": plan.deleted_secret and plan.deleted_secret.name,
                "notes": list(plan.notes),
            }
            for plan in plans
        ],
        "helm_values": helm_values(plan.service for plan in plans),
        "way_back": _way_back(plans),
    }


def _next_steps(plans: Sequence[ServicePlan]) -> Iterable[str]:
    names = " ".join(str(plan.service) for plan in plans)
    stages = {plan.stage for plan in plans}
    if Stage.OBSERVED in stages:
        yield from _helm_lines(plan.service for plan in plans)
        yield "Test:      send a request with the header azureml-fe-test: true and a key"
        yield f"Take over: azureml-fe adopt {names} --take-over"
    if stages != {Stage.NOT_ADOPTED}:
        yield f"Way back:  {_way_back(plans)}"


def _way_back(plans: Iterable[ServicePlan]) -> str | None:
    names = [str(plan.service) for plan in plans if plan.stage is not Stage.NOT_ADOPTED]
    return f"azureml-fe adopt {' '.join(names)} --undo" if names else None
