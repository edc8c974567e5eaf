"""What services and replicas follow from Deployments, pods and Secrets."""

from dataclasses import replace

from router.cluster.kubernetes import objects
from router.cluster.kubernetes.models import Models
from router.cluster.kubernetes.objects import Deployment, Pod, Secret
from router.services import Replica, ReplicaState, Service
from tests.cluster.kubernetes.things import deployment, pod, raw_deployment, secret

KEY = ("iris", "default")


class Cluster:
    """Models, and what is there."""

    def __init__(self, *things: Deployment | Pod | Secret) -> None:
        self.models = Models()
        self.put(*things)

    def put(self, *things: Deployment | Pod | Secret) -> None:
        self._change([(None, thing) for thing in things])

    def turn(self, before: Deployment | Pod | Secret, after: Deployment | Pod | Secret) -> None:
        self._change([(before, after)])

    def take(self, *things: Deployment | Pod | Secret) -> None:
        self._change([(thing, None) for thing in things])

    def _change(self, changes: list) -> None:  # type: ignore[type-arg]
        for before, after in changes:
            match after or before:
                case Deployment():
                    self.models.deployment_changed(before, after)
                case Pod():
                    self.models.pod_changed(before, after)
                case Secret():
                    self.models.secret_changed(before, after)
        self.last = self.models.refresh()

    @property
    def iris(self) -> Service:
        return self.models.services["iris"]

    @property
    def said(self) -> list[str]:
        return [f"{problem.deployment[1]} {problem.reason}: {problem.message}" for problem in self.models.problems()]


def ready(name: str, port: int = 5001) -> Replica:
    return Replica(f"uid-{name}", "10.0.0.1", port, ReplicaState.READY)


def test_a_deployment_is_a_service_and_its_pods_are_replicas() -> None:
    cluster = Cluster(
        deployment(port="8000"), pod("iris-abc-1"), pod("iris-abc-2", ip=""), pod("iris-abc-3", ready=False)
    )
    assert cluster.iris.default_version.name == "default"
    starting = [Replica(f"uid-iris-abc-{n}", ip, 8000, ReplicaState.STARTING) for n, ip in ((2, ""), (3, "10.0.0.1"))]
    assert cluster.last.replicas == {KEY: (ready("iris-abc-1", 8000), *starting)}
    assert cluster.last.services


def test_nothing_is_told_twice() -> None:
    cluster = Cluster(deployment(), pod())
    cluster.turn(pod(), pod())
    cluster.turn(deployment(), replace(deployment(), resource_version="2", replicas=3))
    assert cluster.last == (False, {})


def test_pods_of_no_deployment_are_no_replicas() -> None:
    cluster = Cluster(deployment(), pod("other-1", version="blue"), replace(pod("elsewhere"), namespace="other"))
    assert cluster.last.replicas == {KEY: ()}


def test_a_pod_that_is_being_deleted_drains_and_one_that_has_ended_is_none() -> None:
    cluster = Cluster(deployment(), pod())
    cluster.turn(pod(), replace(pod(), deleting=True))
    assert cluster.last.replicas == {KEY: (replace(ready("iris-abc-1"), state=ReplicaState.DRAINING),)}
    cluster.turn(replace(pod(), deleting=True), replace(pod(), deleting=True, ended=True))
    assert cluster.last.replicas == {KEY: ()}


def test_replicas_of_a_service_that_is_gone_drain_until_they_are_gone() -> None:
    cluster = Cluster(deployment(port="7"), pod())
    cluster.take(deployment(port="7"))
    assert cluster.models.services == {}
    assert cluster.last.replicas == {KEY: (Replica("uid-iris-abc-1", "10.0.0.1", 7, ReplicaState.DRAINING),)}
    cluster.take(pod())
    assert cluster.last.replicas == {KEY: ()}
    cluster.put(pod("late"))
    assert cluster.last == (False, {})


def test_versions_are_deployments_of_one_name_and_share_the_traffic() -> None:
    cluster = Cluster(
        deployment("iris-blue", "iris", age=2, version="blue"),
        deployment("iris-green", "iris", version="green", traffic_percentile="10"),
        pod("a", version="blue"),
        pod("b", version="green"),
    )
    assert [(version.name, share) for version, share in cluster.iris.shares()] == [("blue", 90), ("green", 10)]
    assert cluster.last.replicas == {("iris", "blue"): (ready("a"),), ("iris", "green"): (ready("b"),)}
    assert cluster.said == []


def test_overlapping_selectors_are_told_apart_by_the_replica_set() -> None:
    both = (("azuremlappname", "iris"),)
    cluster = Cluster(
        replace(deployment("iris", version="blue"), labels=both),
        replace(deployment("iris-2", "iris", version="green"), labels=both),
        pod(),
    )
    assert cluster.last.replicas == {("iris", "blue"): (ready("iris-abc-1"),), ("iris", "green"): ()}


def test_wrong_annotations_leave_the_former_settings_in_force() -> None:
    right = deployment(scoring_timeout_ms="100", max_queue_length="5")
    wrong = deployment(scoring_timeout_ms="0", max_queue_length="6")
    cluster = Cluster(right)
    cluster.turn(right, wrong)
    assert (cluster.iris.versions[0].scoring_timeout_ms, cluster.iris.versions[0].max_queue_length) == (100, 5)
    (said,) = cluster.said
    assert said == (
        "iris SettingsRefused: azureml-fe/scoring-timeout-ms = '0': must be a whole number from 1 to 300000 (ms); the "
        "settings as they were stay in force"
    )
    cluster.turn(wrong, deployment(scoring_timeout_ms="7"))
    assert cluster.iris.versions[0].scoring_timeout_ms == 7
    assert cluster.said == []


def test_annotations_that_never_were_right_count_as_far_as_they_are_and_wrong_scaling_is_none() -> None:
    cluster = Cluster(deployment(scoring_timeout_ms="0", max_queue_length="6"))
    assert cluster.iris.versions[0].scoring_timeout_ms == 60_000
    assert cluster.iris.versions[0].max_queue_length == 6
    assert cluster.models.found["iris"].models[0].is_scalable
    cluster = Cluster(deployment(autoscale_max_replicas="many"))
    assert not cluster.models.found["iris"].models[0].is_scalable
    wrong = deployment(autoscale_max_replicas="many")
    cluster.turn(wrong, deployment(autoscale_max_replicas="3"))
    assert cluster.models.found["iris"].models[0].is_scalable


def test_a_name_is_that_of_the_oldest_deployment_of_all_namespaces() -> None:
    young = replace(deployment("aaa", "iris"), namespace="another")
    cluster = Cluster(young, deployment(age=2, max_queue_length="7"))
    assert cluster.iris.versions[0].max_queue_length == 7
    (said,) = cluster.said
    assert said.startswith("aaa ServiceNameTaken: service iris is that of Deployment iris in namespace models")
    cluster.take(deployment(age=2, max_queue_length="7"))
    assert cluster.iris.versions[0].max_queue_length == 1000
    assert cluster.said == []


def test_a_version_is_that_of_the_older_deployment() -> None:
    cluster = Cluster(deployment("second", "iris"), deployment(age=2))
    (model,) = cluster.models.found["iris"].models
    assert model.deployment.name == "iris"
    assert cluster.said[0].startswith("second VersionTaken: version default of service iris is Deployment iris")


def test_the_oldest_deployment_has_the_word_on_settings_of_the_service() -> None:
    cluster = Cluster(
        deployment("blue", "iris", age=2, version="blue", auth_enabled="false"),
        deployment("green", "iris", version="green", auth_enabled="true"),
    )
    assert not cluster.iris.auth_enabled
    (said,) = cluster.said
    assert said.startswith(
        "green SettingsRefused: azureml-fe/auth-enabled = 'true': must be 'false', as Deployment blue"
    )


def test_versions_that_contradict_one_another_leave_what_was_right_in_force() -> None:
    blue = deployment("blue", "iris", age=2, version="blue", is_default="true")
    green = deployment("green", "iris", version="green", traffic_percentile="10")
    wrong = deployment("green", "iris", version="green", traffic_percentile="10", is_default="true")
    cluster = Cluster(blue, green)
    cluster.turn(green, wrong)
    assert cluster.iris.default_version.name == "blue"
    (said,) = cluster.said
    assert said.endswith(
        "azureml-fe/is-default = 'true': only one version may be the default, blue is; it is not in force"
    )
    greedy = deployment("blue", "iris", age=2, version="blue", traffic_percentile="95")
    cluster = Cluster(greedy, deployment("green", "iris", version="green", is_default="true"))
    third = deployment("red", "iris", age=0, version="red", traffic_percentile="10")
    cluster.put(third)
    assert [(version.name, share) for version, share in cluster.iris.shares()] == [
        ("blue", 95),
        ("green", 5),
        ("red", 0),
    ]


def test_a_name_that_is_none_is_refused() -> None:
    cluster = Cluster(deployment("odd", "My_Model"))
    assert cluster.models.services == {}
    (said,) = cluster.said
    assert said.startswith("odd ServiceNameRefused: label azuremlappname = 'My_Model': must be 1 to 63 of")
    cluster.take(deployment("odd", "My_Model"))
    assert cluster.said == []


def test_keys_are_those_of_the_secret_as_it_is() -> None:
    cluster = Cluster(deployment())
    assert cluster.models.found["iris"].lacks_keys
    cluster.put(secret(primaryKey="one\n", secondaryKey="two"))
    assert (cluster.iris.primary_key, cluster.iris.secondary_key) == ("one", "two")
    assert cluster.last.services
    cluster.turn(secret(primaryKey="one\n", secondaryKey="two"), secret(primaryKey="three"))
    assert (cluster.iris.primary_key, cluster.iris.secondary_key) == ("three", None)
    cluster.turn(secret(primaryKey="three"), secret(primaryKey="not a key"))
    assert cluster.iris.primary_key == "three"
    assert cluster.said[0].startswith("iris KeysRefused: Secret azureml-fe-keys-iris: must hold primaryKey")
    cluster.take(secret(primaryKey="not a key"))
    assert cluster.iris.primary_key is None


def test_a_deployment_may_name_the_secret() -> None:
    cluster = Cluster(secret("mine", primaryKey="one"), deployment(keys_secret="mine"))
    assert cluster.models.found["iris"].keys == ("models", "mine")
    assert cluster.iris.primary_key == "one"
    assert "one" not in repr(secret("mine", primaryKey="one"))


def test_a_service_without_keys_gets_none() -> None:
    cluster = Cluster(deployment(auth_enabled="false"), secret(primaryKey="one"))
    assert cluster.iris.primary_key is None
    assert not cluster.models.found["iris"].lacks_keys


def test_a_deployment_that_is_being_deleted_is_gone() -> None:
    cluster = Cluster(deployment(), pod())
    cluster.turn(deployment(), replace(deployment(), deleting=True))
    assert cluster.models.services == {}
    cluster.turn(replace(deployment(), deleting=True), deployment())
    assert cluster.last.replicas == {KEY: (ready("iris-abc-1"),)}


def test_pods_that_cannot_be_had_are_told() -> None:
    raw = raw_deployment()
    raw["status"] = {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: models"}]}
    cluster = Cluster(objects.deployment(raw))
    assert cluster.said == ["iris ReplicasRefused: 1 replicas cannot all be had: exceeded quota: models"]
    assert cluster.iris.versions[0].name == "default"
