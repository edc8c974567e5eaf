"""Plans of adoption, take-over and the way back, without a cluster. `test_adoption.py` performs them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router.auth.exported_keys import ExportedKeys
from router.cluster.kubernetes.adoption.facts import (
    AdoptableService,
    ClusterFacts,
    OtherRouter,
    Stage,
    group_services,
    other_routers,
    parse_model_deployment,
)
from router.cluster.kubernetes.adoption.plan import (
    ServicePlan,
    helm_values,
    needs_of,
    plan_adoption,
    plan_take_over,
    plan_undo,
    secrets_by_name,
)
from router.cluster.kubernetes.adoption.record import RECORD_ANNOTATION, AdoptionRecord, decode_record
from router.cluster.kubernetes.adoption.wanted import AdoptionOptions
from router.cluster.kubernetes.objects import Hpa, NamespacedName, Pod
from router.config.schema import ErrorCollector, SettingsError
from tests.cluster.kubernetes.object_builders import pod, raw_deployment, secret

KEYS = ExportedKeys("primary", "secondary")
ROUTER = OtherRouter("default", "azureml-fe", 3, (("azuremlappname", "azureml-fe"),))


def azureml_service(*ports: int, replicas: int = 2, **annotations: Any) -> AdoptableService:
    raw = raw_deployment(**annotations)
    raw["spec"]["replicas"] = replicas
    containers = [{"ports": [{"containerPort": port} for port in ports]}]
    raw["spec"]["template"] = {"spec": {"containers": containers}}
    (service,) = group_services([parse_model_deployment(raw)])
    return service


def facts_about(*services: AdoptableService, **fields: Any) -> ClusterFacts:
    return ClusterFacts(services, **fields)


def faults_of(errors: ErrorCollector) -> list[str]:
    try:
        errors.raise_errors()
    except SettingsError as error:
        return [str(each) for each in error.errors]
    return []


def adopted(service: AdoptableService, plan: ServicePlan | None) -> AdoptableService:
    """Return the service as it is after a plan."""
    assert plan is not None
    members = []
    for member, patch in zip(service.members, plan.patches, strict=True):
        annotations: dict[str, str | None] = {**member.annotations, **patch.annotations}
        record = annotations.pop(RECORD_ANNOTATION, None)
        own = {name.partition("/")[2]: value for name, value in annotations.items() if value is not None}
        deployment = replace(member.deployment, annotations=tuple(sorted(own.items())))
        members.append(replace(member, deployment=deployment, record=record or ""))
    return replace(service, members=tuple(members))


def test_plan_of_a_usual_service_observes_it_and_creates_its_keys() -> None:
    service, errors = azureml_service(5001), ErrorCollector()
    plan = plan_adoption(service, AdoptionOptions(keys=KEYS), facts_about(service), errors)
    assert plan is not None
    (patch,) = plan.patches
    changes = dict(patch.annotations)
    record = decode_record(str(changes.pop(RECORD_ANNOTATION)))
    assert changes == {"azureml-fe/mode": "observe"}
    assert record == AdoptionRecord({"azureml-fe/mode": None})
    assert (plan.created_secret, plan.stage) == (NamespacedName("models", "azureml-fe-keys-iris"), Stage.OBSERVED)
    assert "primary" not in repr(plan)


@pytest.mark.parametrize(
    ("ports", "annotation"), [((), None), ((5001, 8080), None), ((8080,), "8080"), ((8080, 9000), "8080")]
)
def test_port_is_an_annotation_unless_it_is_the_usual_one(ports: tuple[int, ...], annotation: str | None) -> None:
    service = azureml_service(*ports)
    options = AdoptionOptions(keys=KEYS)
    plan = plan_adoption(service, options, facts_about(service), ErrorCollector())
    assert plan is not None
    assert plan.patches[0].annotations.get("azureml-fe/port") == annotation
    is_ambiguous = len(ports) > 1 and 5001 not in ports
    assert any("has the ports 8080, 9000: --set port=N" in note for note in plan.notes) is is_ambiguous


def test_undo_after_all_steps_restores_the_annotations_and_raises_replicas_that_were_lost() -> None:
    service = azureml_service(5001, replicas=5, max_queue_length="7")
    facts = facts_about(service, secrets=secrets_by_name([secret(primaryKey="a")]))
    observed = adopted(service, plan_adoption(service, AdoptionOptions(), facts, ErrorCollector()))
    assert observed.stage is Stage.OBSERVED
    in_charge = adopted(observed, plan_take_over(observed, facts, ErrorCollector(), force=False))
    assert in_charge.stage is Stage.IN_CHARGE
    (member,) = in_charge.members
    for replicas, restored in ((1, 5), (5, None), (9, None)):
        now = replace(member, deployment=replace(member.deployment, replicas=replicas))
        plan = plan_undo(replace(in_charge, members=(now,)), ErrorCollector(), has_other_router=True)
        assert plan is not None
        assert plan.patches[0].replicas == restored
        assert ("keeps its 9 replicas (5 before)" in "".join(plan.notes)) == (replicas == 9)
        assert adopted(in_charge, plan).members[0].annotations == service.members[0].annotations
    without_router = plan_undo(in_charge, ErrorCollector(), has_other_router=False)
    assert without_router is not None
    mode, no_router = without_router.notes
    assert mode == "unless router.mode is observe, the router stays in charge of it, by default"
    assert "no other router runs" in no_router


def test_take_over_beside_another_router_needs_force() -> None:
    service = azureml_service(5001, mode="observe")
    (member,) = service.members
    service = replace(service, members=(replace(member, record=AdoptionRecord({}).encode()),))
    keys = secrets_by_name([secret(primaryKey="a")])
    facts, errors = facts_about(service, secrets=keys, other_routers=(ROUTER,)), ErrorCollector()
    assert plan_take_over(service, facts, errors, force=False) is None
    assert "kubectl -n default scale deployment/azureml-fe --replicas=0" in faults_of(errors)[0]
    plan = plan_take_over(service, facts, ErrorCollector(), force=True)
    assert plan is not None
    assert "still runs: it must neither scale nor serve this service" in plan.notes[0]


@pytest.mark.parametrize("record", ["{", "[]", '{"annotations": {"a": 1}}', '{"annotations": {}, "replicas": "3"}'])
def test_malformed_record_is_a_fault_of_each_step(record: str) -> None:
    service = azureml_service(5001, mode="observe", auth_enabled="false")
    (member,) = service.members
    service = replace(service, members=(replace(member, record=record),))
    facts = facts_about(service)
    errors = [ErrorCollector() for _ in range(3)]
    assert plan_adoption(service, AdoptionOptions(), facts, errors[0]) is None
    assert plan_take_over(service, facts, errors[1], force=False) is None
    assert plan_undo(service, errors[2], has_other_router=False) is None
    assert all("is malformed: remove the annotations of this router by hand" in faults_of(each)[0] for each in errors)


def test_keys_that_contradict_the_secret_are_faults() -> None:
    service = azureml_service(5001)
    facts = facts_about(service, secrets=secrets_by_name([secret(primaryKey="other", secondaryKey="keys")]))
    for options, fault in (
        (AdoptionOptions(keys=KEYS), "--keys-from: has other keys than Secret azureml-fe-keys-iris"),
        (AdoptionOptions(new_keys=True), "--new-keys: not allowed: Secret azureml-fe-keys-iris exists"),
        (AdoptionOptions(keys_secret="missing"), "keys: Secret missing must exist, with the label isazuremlapp=true"),
    ):
        errors = ErrorCollector()
        assert plan_adoption(service, options, facts, errors) is None
        assert fault in faults_of(errors)[0]
    same = facts_about(service, secrets=secrets_by_name([secret(primaryKey="primary", secondaryKey="secondary")]))
    plan = plan_adoption(service, AdoptionOptions(keys=KEYS), same, ErrorCollector())
    assert plan is not None
    assert plan.created_secret is None


def test_service_without_keys_needs_none() -> None:
    service = azureml_service(5001, auth_enabled="false")
    plan = plan_adoption(service, AdoptionOptions(), facts_about(service), ErrorCollector())
    assert plan is not None
    assert plan.created_secret is None
    errors = ErrorCollector()
    assert plan_adoption(service, AdoptionOptions(keys=KEYS), facts_about(service), errors) is None
    assert "must not be given for a service without auth_enabled" in faults_of(errors)[0]


def test_list_has_what_prevents_adoption_and_what_to_know() -> None:
    service = azureml_service(5001)
    name = NamespacedName("models", "iris")
    facts = facts_about(
        service, hpas={name: Hpa("models", "by-cpu", "iris", "")}, holders={"models": "azureml/azureml-fe"}
    )
    keys, hpa, holder = needs_of(service, facts)
    assert keys.startswith("keys: are missing: --keys-from FILE")
    assert hpa == "HorizontalPodAutoscaler by-cpu scales Deployment iris, so this router will not"
    assert "the release azureml/azureml-fe has claimed namespace models: unless router.mode is observe there" in holder


def test_each_sdk_gets_values_of_its_own() -> None:
    first = azureml_service(5001)
    second = replace(first, namespace="endpoints", members=(replace(first.members[0], endpoint="iris"),))
    assert helm_values([first, second]) == [
        {"namespaces": ["models"], "generateKeys": False, "router": {"mode": "observe"}},
        {"namespaces": ["endpoints"], "generateKeys": False, "router": {"mode": "observe", "compatibility": "v2"}},
    ]


def router_pod(namespace: str, name: str, **labels: str) -> Pod:
    given = {"azuremlappname": "azureml-fe", "pod-template-hash": "abc"} | labels
    names = {key.replace("__", "/"): value for key, value in given.items()}
    return replace(pod(name), namespace=namespace, controller="azureml-fe-abc", labels=tuple(sorted(names.items())))


def test_routers_of_azure_are_told_from_releases_of_this_one() -> None:
    own = NamespacedName("router", "azureml-fe")
    chart = {"helm.sh__chart": "azureml-fe-0.1.0"}
    pods = [
        router_pod("default", "v1-1"),
        router_pod("default", "v1-2"),
        router_pod("azureml", "v2-1", **{"ml.azure.com__infra-app": "azureml-fe"}),
        router_pod("router", "own"),
        router_pod("router", "v2-in-the-same-namespace", azuremlappversion="v2"),
        router_pod("elsewhere", "another-release", **chart),
        replace(router_pod("gone", "deleted"), deleting=True),
    ]
    found = other_routers(pods, [own])
    assert [(each.namespace, each.name, each.pods) for each in found] == [
        ("azureml", "azureml-fe", 1), ("default", "azureml-fe", 2), ("router", "azureml-fe", 1),
    ]  # fmt: skip
    assert str(found[0]) == (
        "Deployment azureml/azureml-fe (1 pod, labels azuremlappname=azureml-fe, ml.azure.com/infra-app=azureml-fe)"
    )
