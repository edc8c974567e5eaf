"""Claims on names: their form in the ConfigMap, and which Deployments get a claimed name."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from router.cluster.kubernetes.config_map_store import Content
from router.cluster.kubernetes.name_claims import (
    MAX_CLAIMS_BYTES,
    Claim,
    add_claims,
    claimed_name,
    parse_claims,
)
from router.cluster.kubernetes.objects import Deployment
from router.cluster.kubernetes.service_registry import ServiceRegistry
from tests.cluster.kubernetes.object_builders import deployment, pod, secret

NOW = datetime(2026, 11, 29, 10, tzinfo=UTC)
SINCE = "2026-11-29T10:00:00Z"


def in_namespace(namespace: str, service: str = "iris", age: int = 1) -> Deployment:
    made = deployment(service, age=age)
    return replace(made, namespace=namespace, uid=f"{namespace}-{service}-{age}")


# The content of the ConfigMap.


def test_added_claims_are_parsed_again() -> None:
    content = add_claims({}, {"iris": "team-a", "resnet": "team-b"}, NOW)
    assert content == {"iris": f"team-a {SINCE}", "resnet": f"team-b {SINCE}"}
    assert parse_claims(content) == {"iris": Claim("team-a", SINCE), "resnet": Claim("team-b", SINCE)}


def test_claim_is_never_replaced() -> None:
    content = {"iris": "team-a 2026-01-01T00:00:00Z"}
    assert add_claims(content, {"iris": "team-b"}, NOW) == content


@pytest.mark.parametrize("text", ["", "team-a", "team-a 2026-11-29T10:00:00Z team-b", "../team-a 2026-11-29T10:00:00Z"])
def test_malformed_claim_keeps_the_name_from_all(text: str) -> None:
    registry = registry_of(in_namespace("team-a"), content={"iris": text})
    assert registry.services == {}
    assert [problem.reason for problem in registry.problems()] == ["ServiceNameTaken"]


def test_content_is_bounded_and_claims_that_fit_are_added() -> None:
    owners = {f"service-{number:06}".ljust(63, "x"): "n" * 63 for number in range(6000)}
    content = add_claims({}, owners, NOW)
    size = sum(len(name) + len(text) for name, text in content.items())
    assert MAX_CLAIMS_BYTES - 200 < size <= MAX_CLAIMS_BYTES
    assert len(content) > 5000
    assert list(content) == list(owners)[: len(content)]
    assert add_claims(content, {"one-more".ljust(150, "x"): "team-a"}, NOW) == content


@pytest.mark.parametrize(("service", "name"), [("iris", "iris"), ("team-a/iris", "team-a")])
def test_claimed_name_is_the_first_part_of_the_address(service: str, name: str) -> None:
    assert claimed_name(service) == name


# The namespace of a name.


def registry_of(
    *deployments: Deployment, content: Content | None = None, names_have_namespace: bool = False
) -> ServiceRegistry:
    registry = ServiceRegistry(names_have_namespace=names_have_namespace)
    for each in deployments:
        registry.on_deployment_changed(None, each)
    if content is not None:
        registry.set_claims(parse_claims(content))
    registry.refresh()
    return registry


def namespace_of(registry: ServiceRegistry, service: str = "iris") -> str | None:
    resolved = registry.resolved.get(service)
    return resolved.secret.namespace if resolved is not None else None


def claim_all(registry: ServiceRegistry, content: Content) -> Content:
    """Do what the leader does: claim all names, and apply the stored claims."""
    owners = {claimed_name(service): each.namespace for service, each in registry.unclaimed.items()}
    content = add_claims(content, owners, NOW)
    registry.set_claims(parse_claims(content))
    registry.refresh()
    return content


@pytest.mark.parametrize(("age_of_a", "owner"), [(5, "team-a"), (1, "team-b")])
def test_without_claims_the_oldest_deployment_has_the_name_and_gets_the_claim(age_of_a: int, owner: str) -> None:
    registry = registry_of(in_namespace("team-a", age=age_of_a), in_namespace("team-b", age=3))
    assert namespace_of(registry) == owner
    assert claim_all(registry, {}) == {"iris": f"{owner} {SINCE}"}
    assert namespace_of(registry) == owner
    assert registry.unclaimed == {}


def test_name_stays_claimed_when_its_deployment_is_deleted_and_comes_back_younger() -> None:
    ours, theirs = in_namespace("team-a", age=5), in_namespace("team-b", age=3)
    registry = registry_of(ours, theirs)
    claim_all(registry, {})
    registry.on_secret_changed(None, replace(secret(primaryKey="their-key"), namespace="team-b"))
    registry.on_pod_changed(None, replace(pod(), namespace="team-b"))
    registry.on_deployment_changed(ours, None)
    changes = registry.refresh()
    assert changes.services
    assert registry.services == {}
    assert all(replicas == () for replicas in changes.replicas.values())
    (problem,) = registry.problems()
    assert (problem.deployment.namespace, problem.reason) == ("team-b", "ServiceNameTaken")
    assert "release the name with `azureml-fe names release iris`" in problem.message
    registry.on_deployment_changed(None, in_namespace("team-a", age=1))
    registry.refresh()
    assert namespace_of(registry) == "team-a"


def test_older_deployment_of_another_namespace_does_not_get_a_claimed_name() -> None:
    registry = registry_of(in_namespace("team-b", age=9), in_namespace("team-a"), content={"iris": f"team-a {SINCE}"})
    assert namespace_of(registry) == "team-a"
    assert [problem.deployment.namespace for problem in registry.problems()] == ["team-b"]


def test_released_name_is_served_again_once_it_is_claimed() -> None:
    registry = registry_of(in_namespace("team-b"), content={"iris": f"team-a {SINCE}"})
    assert registry.services == {}
    registry.set_claims({})
    registry.refresh()
    assert registry.services == {}
    assert registry.problems() == []
    claim_all(registry, {})
    assert namespace_of(registry) == "team-b"


def test_new_name_is_not_served_before_it_is_claimed() -> None:
    registry = registry_of(in_namespace("team-a"), content={"resnet": f"team-b {SINCE}"})
    assert registry.services == {}
    assert [each.namespace for each in registry.unclaimed.values()] == ["team-a"]
    claim_all(registry, {})
    assert namespace_of(registry) == "team-a"


def test_observing_router_follows_unclaimed_names_and_makes_no_claim() -> None:
    """As one that has made claims before, and observes now."""
    registry = ServiceRegistry(observes=True, claims=parse_claims({"resnet": f"team-b {SINCE}"}))
    registry.on_deployment_changed(None, in_namespace("team-a"))
    registry.on_deployment_changed(None, in_namespace("team-a", "resnet"))
    registry.refresh()
    assert namespace_of(registry) == "team-a"
    assert registry.unclaimed == {}
    assert [problem.reason for problem in registry.problems()] == ["ServiceNameTaken"]


def test_invalid_name_and_deployment_being_deleted_claim_nothing() -> None:
    registry = registry_of(in_namespace("team-a", "Iris_1"), replace(in_namespace("team-b"), deleting=True))
    assert registry.unclaimed == {}
    assert [problem.reason for problem in registry.problems()] == ["ServiceNameRefused"]


def test_name_is_not_claimed_any_more_for_a_deployment_that_was_removed() -> None:
    registry = registry_of(in_namespace("team-a"), content={})
    registry.on_deployment_changed(in_namespace("team-a"), None)
    registry.refresh()
    assert registry.unclaimed == {}


# Names with namespaces.


def test_namespaces_have_services_with_one_label() -> None:
    registry = registry_of(in_namespace("team-a"), in_namespace("team-b"), content={}, names_have_namespace=True)
    assert claim_all(registry, {}) == {"team-a": f"team-a {SINCE}", "team-b": f"team-b {SINCE}"}
    assert sorted(registry.services) == ["team-a/iris", "team-b/iris"]
    assert registry.services["team-a/iris"].name == "team-a/iris"
    resolved = registry.resolved["team-b/iris"]
    assert resolved.secret == ("team-b", "azureml-fe-keys-iris")
    assert [version.key for version in resolved.versions] == [("team-b/iris", "default")]
    assert registry.problems() == []


def test_pods_belong_to_the_service_of_their_namespace() -> None:
    registry = registry_of(in_namespace("team-a"), in_namespace("team-b"), content={}, names_have_namespace=True)
    claim_all(registry, {})
    registry.on_pod_changed(None, replace(pod(), namespace="team-b"))
    assert {key: len(replicas) for key, replicas in registry.refresh().replicas.items()} == {
        ("team-b/iris", "default"): 1
    }


def test_namespace_does_not_get_the_addresses_of_a_name_that_was_claimed_before_the_form_was_changed() -> None:
    """`<prefix>iris/score/...` was service iris of team-a. Now it would be service score in namespace iris."""
    content = {"iris": f"team-a {SINCE}"}
    registry = registry_of(
        in_namespace("iris", "score"), in_namespace("team-a"), content=content, names_have_namespace=True
    )
    content = dict(claim_all(registry, content))
    assert sorted(registry.services) == ["team-a/iris"]
    (problem,) = registry.problems()
    assert problem.message.endswith("and is not scaled: release the name with `azureml-fe names release iris`")
    del content["iris"]
    registry.set_claims(parse_claims(content))
    registry.refresh()
    claim_all(registry, content)
    assert sorted(registry.services) == ["iris/score", "team-a/iris"]


def test_service_does_not_get_the_addresses_of_a_namespace_after_the_form_was_changed_back() -> None:
    content = {"team-a": f"team-a {SINCE}"}
    registry = registry_of(in_namespace("team-b", "team-a"), content=content)
    assert registry.services == {}
    assert namespace_of(registry_of(in_namespace("team-a", "team-a"), content=content), "team-a") == "team-a"


# Two routers, of which one leads at a time.


@pytest.mark.parametrize("seed", range(200))
def test_stored_claim_never_moves_and_routers_agree(seed: int) -> None:
    """Deployments come and go, and leaders change and fail before their write. Each router serves a name for the
    namespace in the claim that it has, and no write changes a claim."""
    rng = random.Random(seed)
    stored: Content = {}
    routers = [ServiceRegistry(claims={}), ServiceRegistry(claims={})]
    delivered: list[Content] = [{}, {}]
    present: dict[str, Deployment] = {}
    for step in range(60):
        namespace = rng.choice(["team-a", "team-b", "team-c"])
        before, after = present.pop(namespace, None), None
        if before is None:
            after = present[namespace] = replace(in_namespace(namespace, age=rng.randrange(1, 29)), uid=f"uid-{step}")
        for router in routers:
            router.on_deployment_changed(before, after)
            router.refresh()
        if rng.random() < 0.6:  # else the leader fails before it writes
            owners = {claimed_name(name): each.namespace for name, each in rng.choice(routers).unclaimed.items()}
            assert stored.items() <= add_claims(stored, owners, NOW).items()
            stored = add_claims(stored, owners, NOW)
        elif rng.random() < 0.1:
            stored = {}  # an operator has released the name
        for number, router in enumerate(routers):
            if rng.random() < 0.7:  # else the watch is late
                delivered[number] = stored
                router.set_claims(parse_claims(stored))
                router.refresh()
            claim = parse_claims(delivered[number]).get("iris")
            expected = claim.namespace if claim is not None and claim.namespace in present else None
            assert namespace_of(router) == expected
