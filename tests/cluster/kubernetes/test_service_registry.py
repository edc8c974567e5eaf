"""Which services and replicas follow from Deployments, pods and Secrets."""

import pickle
from dataclasses import replace
from typing import Any

import pytest

from router.admin.problems import group_problems
from router.cluster.kubernetes.objects import Deployment, Pod, Secret
from router.cluster.kubernetes.parsing import PodParser, parse_deployment
from router.cluster.kubernetes.service_registry import ServiceRegistry
from router.model.services import Replica, ReplicaState, Service
from tests.cluster.kubernetes.object_builders import deployment, pod, raw_deployment, raw_pod, secret

KEY = ("iris", "default")
ApiObject = Deployment | Pod | Secret


class Cluster:
    """A registry and the objects in it. `last` is what the last change has changed."""

    def __init__(self, *objects: ApiObject) -> None:
        self.registry = ServiceRegistry()
        self.add(*objects)

    def add(self, *objects: ApiObject) -> None:
        for each in objects:
            self._apply(None, each)
        self.last = self.registry.refresh()

    def change(self, before: ApiObject, after: ApiObject) -> None:
        self._apply(before, after)
        self.last = self.registry.refresh()

    def remove(self, removed: ApiObject) -> None:
        self._apply(removed, None)
        self.last = self.registry.refresh()

    def _apply(self, before: ApiObject | None, after: ApiObject | None) -> None:
        match before, after:
            case (Deployment() | None, Deployment() | None):
                self.registry.on_deployment_changed(before, after)
            case (Pod() | None, Pod() | None):
                self.registry.on_pod_changed(before, after)
            case (Secret() | None, Secret() | None):
                self.registry.on_secret_changed(before, after)

    @property
    def iris(self) -> Service:
        return self.registry.services["iris"]

    @property
    def is_scalable(self) -> bool:
        (version,) = self.registry.resolved["iris"].versions
        return version.is_scalable

    @property
    def problems(self) -> list[str]:
        return [f"{each.deployment.name} {each.reason}: {each.message}" for each in self.registry.problems()]


def ready(name: str, port: int = 5001) -> Replica:
    return Replica(f"uid-{name}", "10.0.0.1", port, ReplicaState.READY)


def test_deployment_becomes_a_service_and_its_pods_become_replicas() -> None:
    cluster = Cluster(
        deployment(port="8000"), pod("iris-abc-1"), pod("iris-abc-2", ip=""), pod("iris-abc-3", ready=False)
    )
    assert cluster.iris.default_version.name == "default"
    starting = [Replica(f"uid-iris-abc-{n}", ip, 8000, ReplicaState.STARTING) for n, ip in ((2, ""), (3, "10.0.0.1"))]
    assert cluster.last.replicas == {KEY: (ready("iris-abc-1", 8000), *starting)}
    assert cluster.last.services


def test_change_without_effect_is_not_reported() -> None:
    cluster = Cluster(deployment(), pod())
    cluster.change(pod(), pod())
    cluster.change(deployment(), replace(deployment(), resource_version="2", replicas=3))
    assert cluster.last == (False, {})


def test_pods_that_no_deployment_selects_are_not_replicas() -> None:
    cluster = Cluster(deployment(), pod("other-1", version="blue"), replace(pod("elsewhere"), namespace="other"))
    assert cluster.last.replicas == {KEY: ()}


def test_pod_being_deleted_drains_and_terminated_pod_is_removed() -> None:
    cluster = Cluster(deployment(), pod())
    cluster.change(pod(), replace(pod(), deleting=True))
    assert cluster.last.replicas == {KEY: (replace(ready("iris-abc-1"), state=ReplicaState.DRAINING),)}
    cluster.change(replace(pod(), deleting=True), replace(pod(), deleting=True, terminated=True))
    assert cluster.last.replicas == {KEY: ()}


def test_replicas_of_a_removed_service_drain() -> None:
    cluster = Cluster(deployment(port="7"), pod())
    cluster.remove(deployment(port="7"))
    assert cluster.registry.services == {}
    assert cluster.last.replicas == {KEY: (Replica("uid-iris-abc-1", "10.0.0.1", 7, ReplicaState.DRAINING),)}
    cluster.remove(pod())
    assert cluster.last.replicas == {KEY: ()}
    cluster.add(pod("late"))
    assert cluster.last == (False, {})


def test_deployments_with_one_service_name_are_its_versions_and_share_the_traffic() -> None:
    cluster = Cluster(
        deployment("iris-blue", "iris", age=2, version="blue"),
        deployment("iris-green", "iris", version="green", traffic_percentile="10"),
        pod("a", version="blue"),
        pod("b", version="green"),
    )
    assert [(version.name, share) for version, share in cluster.iris.traffic_shares()] == [("blue", 90), ("green", 10)]
    assert cluster.last.replicas == {("iris", "blue"): (ready("a"),), ("iris", "green"): (ready("b"),)}
    assert cluster.problems == []


def test_replica_set_decides_between_overlapping_selectors() -> None:
    both = (("azuremlappname", "iris"),)
    cluster = Cluster(
        replace(deployment("iris", version="blue"), match_labels=both),
        replace(deployment("iris-2", "iris", version="green"), match_labels=both),
        pod(),
    )
    assert cluster.last.replicas == {("iris", "blue"): (ready("iris-abc-1"),), ("iris", "green"): ()}


def test_previous_settings_stay_in_effect_after_invalid_annotations() -> None:
    right = deployment(scoring_timeout_ms="100", max_queue_length="5")
    wrong = deployment(scoring_timeout_ms="0", max_queue_length="6")
    cluster = Cluster(right)
    cluster.change(right, wrong)
    assert (cluster.iris.versions[0].scoring_timeout_ms, cluster.iris.versions[0].max_queue_length) == (100, 5)
    (problem,) = cluster.problems
    assert problem == (
        "iris SettingsRefused: azureml-fe/scoring-timeout-ms = '0': must be a whole number from 1 to 300000 (ms); the "
        "previous settings stay in effect"
    )
    cluster.change(wrong, deployment(scoring_timeout_ms="7"))
    assert cluster.iris.versions[0].scoring_timeout_ms == 7
    assert cluster.problems == []


def test_valid_annotations_of_a_new_deployment_apply_next_to_invalid_ones() -> None:
    cluster = Cluster(deployment(scoring_timeout_ms="0", max_queue_length="6"))
    assert cluster.iris.versions[0].scoring_timeout_ms == 60_000
    assert cluster.iris.versions[0].max_queue_length == 6
    assert cluster.is_scalable
    cluster = Cluster(deployment(autoscale_max_replicas="many"))
    assert not cluster.is_scalable
    wrong = deployment(autoscale_max_replicas="many")
    cluster.change(wrong, deployment(autoscale_max_replicas="3"))
    assert cluster.is_scalable
    assert not Cluster(deployment(scaling_paused_until="tomorrow")).is_scalable


def test_service_name_belongs_to_the_oldest_deployment_of_all_namespaces() -> None:
    young = replace(deployment("aaa", "iris"), namespace="another")
    cluster = Cluster(young, deployment(age=2, max_queue_length="7"))
    assert cluster.iris.versions[0].max_queue_length == 7
    (problem,) = cluster.problems
    assert problem == (
        "aaa ServiceNameTaken: the name iris has belonged to namespace models since 2026-01-29T00:00:00Z; this "
        "Deployment gets no requests and is not scaled: give it another azuremlappname"
    )
    cluster.remove(deployment(age=2, max_queue_length="7"))
    assert cluster.iris.versions[0].max_queue_length == 1000
    assert cluster.problems == []


def test_version_belongs_to_the_older_deployment() -> None:
    cluster = Cluster(deployment("second", "iris"), deployment(age=2))
    (version,) = cluster.registry.resolved["iris"].versions
    assert version.deployment.name == "iris"
    assert cluster.problems[0].startswith(
        "second VersionTaken: version default of service iris belongs to Deployment iris"
    )


def test_oldest_deployment_decides_settings_of_the_service() -> None:
    cluster = Cluster(
        deployment("blue", "iris", age=2, version="blue", auth_enabled="false"),
        deployment("green", "iris", version="green", auth_enabled="true"),
    )
    assert not cluster.iris.auth_enabled
    (problem,) = cluster.problems
    assert problem.startswith(
        "green SettingsRefused: azureml-fe/auth-enabled = 'true': must be 'false' as in Deployment blue"
    )


def test_changed_setting_that_contradicts_another_version_is_ignored() -> None:
    blue = deployment("blue", "iris", age=2, version="blue", is_default="true")
    green = deployment("green", "iris", version="green", traffic_percentile="10")
    wrong = deployment("green", "iris", version="green", traffic_percentile="10", is_default="true")
    cluster = Cluster(blue, green)
    cluster.change(green, wrong)
    assert cluster.iris.default_version.name == "blue"
    (problem,) = cluster.problems
    assert problem.endswith(
        "azureml-fe/is-default = 'true': only one version may be the default; blue already is; it is ignored"
    )
    greedy = deployment("blue", "iris", age=2, version="blue", traffic_percentile="95")
    cluster = Cluster(greedy, deployment("green", "iris", version="green", is_default="true"))
    third = deployment("red", "iris", age=0, version="red", traffic_percentile="10")
    cluster.add(third)
    assert [(version.name, share) for version, share in cluster.iris.traffic_shares()] == [
        ("blue", 95),
        ("green", 5),
        ("red", 0),
    ]


def test_invalid_service_name_is_refused() -> None:
    cluster = Cluster(deployment("odd", "My_Model"))
    assert cluster.registry.services == {}
    (problem,) = cluster.problems
    assert problem.startswith("odd ServiceNameRefused: label azuremlappname = 'My_Model': must be 1 to 63 of")
    cluster.remove(deployment("odd", "My_Model"))
    assert cluster.problems == []


def test_keys_follow_the_secret() -> None:
    cluster = Cluster(deployment())
    assert cluster.registry.resolved["iris"].lacks_keys
    cluster.add(secret(primaryKey="one\n", secondaryKey="two"))
    assert (cluster.iris.primary_key, cluster.iris.secondary_key) == ("one", "two")
    assert cluster.last.services
    cluster.change(secret(primaryKey="one\n", secondaryKey="two"), secret(primaryKey="three"))
    assert (cluster.iris.primary_key, cluster.iris.secondary_key) == ("three", None)
    cluster.change(secret(primaryKey="three"), secret(primaryKey="not a key"))
    assert cluster.iris.primary_key == "three"
    assert cluster.problems[0].startswith("iris KeysRefused: Secret azureml-fe-keys-iris: must have primaryKey")
    cluster.remove(secret(primaryKey="not a key"))
    assert cluster.iris.primary_key is None


def test_annotation_names_the_secret() -> None:
    cluster = Cluster(secret("mine", primaryKey="one"), deployment(keys_secret="mine"))
    assert cluster.registry.resolved["iris"].secret == ("models", "mine")
    assert cluster.iris.primary_key == "one"
    assert "one" not in repr(secret("mine", primaryKey="one"))


def test_service_without_authentication_gets_no_keys() -> None:
    cluster = Cluster(deployment(auth_enabled="false"), secret(primaryKey="one"))
    assert cluster.iris.primary_key is None
    assert not cluster.registry.resolved["iris"].lacks_keys


def test_deployment_being_deleted_is_no_service() -> None:
    cluster = Cluster(deployment(), pod())
    cluster.change(deployment(), replace(deployment(), deleting=True))
    assert cluster.registry.services == {}
    cluster.change(replace(deployment(), deleting=True), deployment())
    assert cluster.last.replicas == {KEY: (ready("iris-abc-1"),)}


def test_pods_that_cannot_be_created_are_a_problem() -> None:
    raw = raw_deployment()
    raw["status"] = {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: models"}]}
    cluster = Cluster(parse_deployment(raw))
    assert cluster.problems == ["iris ReplicasRefused: replicas cannot be created (1 desired): exceeded quota: models"]
    assert cluster.iris.versions[0].name == "default"


@pytest.mark.parametrize(
    ("kind", "statuses", "failure"),
    [
        ("containerStatuses", [{"waiting": {"reason": "CrashLoopBackOff"}}], "CrashLoopBackOff (exit code 1)"),
        ("containerStatuses", [{"waiting": {"reason": "ImagePullBackOff"}}], "ImagePullBackOff (exit code 1)"),
        ("containerStatuses", [{"running": {}}, {"waiting": {"reason": "ErrImagePull"}}], "ErrImagePull"),
        ("initContainerStatuses", [{"waiting": {"reason": "CrashLoopBackOff"}}], "CrashLoopBackOff (exit code 1)"),
        ("containerStatuses", [{"waiting": {"reason": "ContainerCreating"}}], ""),
        ("containerStatuses", [{"waiting": {}}], ""),
        ("containerStatuses", [{"running": {}}], ""),
        ("containerStatuses", [{"terminated": {"exitCode": 1}}], ""),
    ],
)
def test_containers_that_cannot_start_are_one_problem(kind: str, statuses: list[Any], failure: str) -> None:
    cluster = Cluster(deployment())
    for name in ("iris-abc-1", "iris-abc-2"):
        raw = raw_pod(name, ready=False)
        raw["status"][kind] = [
            {"state": state, "lastState": {"terminated": {"exitCode": 1}} if number == 0 else {}}
            for number, state in enumerate(statuses)
        ]
        cluster.add(PodParser()(raw))
    text = f"iris PodsCannotStart: a container of its pods cannot start: {failure}; the log of the pod has the reason"
    assert cluster.problems == ([text] if failure else [])


# Grace periods.


def with_grace(seconds: object = None, **annotations: str) -> Deployment:
    raw = raw_deployment(age=1, **annotations)
    spec = {} if seconds is None else {"terminationGracePeriodSeconds": seconds}
    raw["spec"]["template"] = {"spec": spec}
    return parse_deployment(raw)


def test_grace_period_shorter_than_a_drain_or_a_request_is_a_problem() -> None:
    (problem,) = Cluster(with_grace(60, replica_drain_seconds="90.5")).problems
    assert problem == (
        "iris GracePeriodTooShort: terminationGracePeriodSeconds = 60 is below azureml-fe/replica-drain-seconds = "
        "90.5: if a rolling update or a node drain removes a pod, its requests are aborted after 60 s; it must be "
        "at least 91"
    )
    for grace, annotations in (
        (None, {"replica_drain_seconds": "60"}),  # Kubernetes' default is 30
        (0, {"scoring_timeout_ms": "1"}),
        (30, {"scoring_timeout_ms": "30001"}),
        (90, {"scoring_timeout_ms": "60000", "replica_drain_seconds": "100"}),
    ):
        (problem,) = Cluster(with_grace(grace, **annotations)).problems
        assert "GracePeriodTooShort" in problem
    for grace, annotations in (
        (None, {}),
        (5, {}),
        (60, {"scoring_timeout_ms": "60000", "replica_drain_seconds": "60"}),
        (600, {"replica_drain_seconds": "600"}),
    ):
        assert Cluster(with_grace(grace, **annotations)).problems == []


def test_grace_period_that_is_too_short_keeps_the_settings_valid() -> None:
    cluster = Cluster(with_grace(10, replica_drain_seconds="100", scoring_timeout_ms="7000"))
    cluster.change(
        with_grace(10, replica_drain_seconds="100", scoring_timeout_ms="7000"),
        with_grace(10, replica_drain_seconds="100", scoring_timeout_ms="x"),
    )
    assert cluster.iris.default_version.scoring_timeout_ms == 7000  # the previous one


def test_services_of_a_namespace_that_another_release_serves_are_on_standby() -> None:
    elsewhere = replace(deployment("other"), namespace="elsewhere")
    cluster = Cluster(deployment(), elsewhere, pod())
    cluster.registry.set_other_holders({"models": "team-a/azureml-fe"})
    assert cluster.registry.refresh().services
    assert cluster.iris.standby
    assert not cluster.registry.services["other"].standby
    cluster.registry.set_other_holders({"models": "team-a/azureml-fe"})
    assert not cluster.registry.refresh().services
    cluster.registry.set_other_holders({})
    assert cluster.registry.refresh().services
    assert not cluster.iris.standby


def test_service_whose_namespace_another_release_serves_does_not_move_to_a_younger_namesake() -> None:
    younger = replace(deployment("namesake", "iris", age=0), namespace="elsewhere")
    cluster = Cluster(deployment(age=5), younger)
    cluster.registry.set_other_holders({"models": "team-a/azureml-fe"})
    cluster.registry.refresh()
    assert cluster.registry.resolved["iris"].secret.namespace == "models"
    assert cluster.iris.standby


def test_all_services_of_an_observing_router_are_on_standby() -> None:
    registry = ServiceRegistry(observes=True)
    registry.on_deployment_changed(None, deployment())
    registry.refresh()
    assert registry.services["iris"].standby


def standby_of(*deployments: Deployment, observes: bool) -> bool:
    registry = ServiceRegistry(observes=observes)
    for each in deployments:
        registry.on_deployment_changed(None, each)
    registry.refresh()
    return registry.services["iris"].standby


def test_annotation_overrides_the_mode_of_the_router() -> None:
    assert standby_of(deployment(mode="observe"), observes=False)
    assert not standby_of(deployment(mode="normal"), observes=True)


@pytest.mark.parametrize("older_mode", ["normal", "observe"])
def test_oldest_deployment_with_a_mode_decides_for_its_service(older_mode: str) -> None:
    """A new version without an annotation must not take the service away from its clients."""
    blue = deployment("iris-blue", "iris", age=3, version="blue")
    green = deployment("iris-green", "iris", age=2, version="green", mode=older_mode)
    red = deployment("iris-red", "iris", age=1, version="red", mode="normal" if older_mode == "observe" else "observe")
    assert standby_of(blue, green, red, observes=older_mode == "normal") is (older_mode == "observe")


def test_mode_that_was_never_valid_is_observe_and_another_one_keeps_the_last_valid_mode() -> None:
    assert standby_of(deployment(mode="obsreve"), observes=False)
    cluster = Cluster(deployment(mode="normal"))
    cluster.registry._observes = True
    cluster.change(deployment(mode="normal"), deployment(mode="nrmal"))
    assert not cluster.iris.standby
    (problem,) = cluster.problems
    assert "azureml-fe/mode = 'nrmal': must be one of normal, observe; the previous settings stay in effect" in problem


def test_observed_service_claims_no_name_and_wants_no_namespace() -> None:
    registry = ServiceRegistry(observes=True, claims={})
    registry.on_deployment_changed(None, deployment(mode="normal"))
    registry.on_deployment_changed(None, deployment("resnet"))
    registry.refresh()
    assert (set(registry.unclaimed), registry.wanted_namespaces()) == ({"iris"}, {"models"})
    assert set(registry.services) == {"resnet"}  # iris is served when its claim is stored
    registry.on_deployment_changed(deployment(mode="normal"), deployment(mode="observe"))
    registry.refresh()
    assert (set(registry.unclaimed), registry.wanted_namespaces()) == (set(), set())
    assert set(registry.services) == {"iris", "resnet"}


def test_annotation_names_the_service_of_deployments_with_other_labels() -> None:
    """As in v2 of Azure ML, where each Deployment of an endpoint has another `azuremlappname`."""
    blue = deployment("blue-iris", age=2, service="iris", version="blue")
    green = deployment("green-iris", service="iris", version="green")
    cluster = Cluster(
        blue, green, pod("blue-1", "blue-iris", version="blue"), pod("green-1", "green-iris", version="green")
    )
    assert [version.name for version in cluster.iris.versions] == ["blue", "green"]
    blue_pods, green_pods = ("iris", "blue"), ("iris", "green")
    assert cluster.last.replicas == {blue_pods: (ready("blue-1"),), green_pods: (ready("green-1"),)}
    second = pod("green-2", "green-iris", version="green")
    cluster.add(second)
    assert cluster.last.replicas == {green_pods: (ready("green-1"), ready("green-2"))}
    assert [each.name for each in cluster.registry.pods_of(cluster.registry.resolved["iris"].versions[1])] == [
        "green-1", "green-2",
    ]  # fmt: skip
    # Without the annotation it is a service of its own again.
    cluster.change(green, deployment("green-iris", version="green"))
    assert set(cluster.registry.services) == {"iris", "green-iris"}
    assert cluster.last.replicas == {green_pods: (), ("green-iris", "green"): (ready("green-1"), ready("green-2"))}


def test_invalid_name_in_the_annotation_is_reported() -> None:
    cluster = Cluster(deployment(service="Iris"))
    assert cluster.registry.services == {}
    assert "iris ServiceNameRefused: azureml-fe/service = 'Iris': must be 1 to 63 of a-z" in cluster.problems[0]


def test_nothing_is_kept_of_services_that_were_removed() -> None:
    registry = ServiceRegistry()
    sizes = set()
    for number in range(1000, 1010):
        service = f"iris-{number}"
        made, replica = deployment(service), replace(pod(), app=service)
        registry.on_deployment_changed(None, made)
        registry.on_pod_changed(None, replica)
        registry.refresh()
        registry.on_pod_changed(replica, None)
        registry.on_deployment_changed(made, None)
        registry.refresh()
        sizes.add(len(pickle.dumps(registry)))
    assert len(sizes) == 1


def test_problems_of_many_deployments_are_grouped_by_cause_and_name_their_services() -> None:
    """The messages of Events have names and numbers, which the causes have not."""
    faulty = []
    for number in range(50):
        grace = raw_deployment(f"grace-{number}", f"grace-{number}", replica_drain_seconds=f"{60 + number}")
        grace["spec"]["template"] = {"spec": {"terminationGracePeriodSeconds": number}}
        faulty.append(parse_deployment(grace))
        faulty.append(deployment(f"typo-{number}", f"typo-{number}", scoring_timeout_ms="ten"))
        faulty.append(deployment(f"old-{number}", f"twice-{number}", age=2))
        faulty.append(deployment(f"new-{number}", f"twice-{number}"))
    groups = group_problems(problem.to_problem() for problem in Cluster(*faulty).registry.problems())
    assert {group.cause.partition(":")[0]: group.problems for group in groups} == {
        "GracePeriodTooShort": 50,
        "SettingsRefused": 50,
        "VersionTaken": 50,
    }
    for group, prefix in zip(sorted(groups), ("grace-", "typo-", "twice-"), strict=True):
        assert len(group.services) + group.more_services == 50
        assert all(name.startswith(prefix) for name in group.services)


def test_single_problem_names_its_deployment_and_has_the_whole_message() -> None:
    cluster = Cluster(deployment("iris-a", "iris", age=2), deployment("iris-b", "iris"))
    (problem,) = (each.to_problem() for each in cluster.registry.problems())
    assert (problem.service, problem.place) == ("iris", "Deployment models/iris-b")
    assert "version default of service iris belongs to Deployment iris-a" in problem.output
