"""Three routers as the chart installs them, models as processes, clients: the whole thing, from outside.

The stories share the routers; each has models of its own.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router.cluster.kubernetes.access import ACCESS
from router.cluster.local import example_request_path
from tests.kubernetes.cluster import ROUTER, cluster_of, has_event
from tests.kubernetes.controller import controlling
from tests.kubernetes.double.resources import Object
from tests.kubernetes.installed import Installed
from tests.kubernetes.models import azureml_container, deploy_echo, echo_container, statistics
from tests.kubernetes.proxy import Record, proxying, status
from tests.processes import Answer, until

ROUTERS = 3
OPEN = {"auth-enabled": "false"}


@pytest.fixture(scope="module")
def stage(api_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Three routers; at the end they leave as they should."""
    folder = tmp_path_factory.mktemp("stage")
    with (
        cluster_of(api_server, folder) as cluster,
        proxying(cluster.access) as proxy,
        controlling(cluster, folder) as controller,
    ):
        installed = Installed(cluster, controller, proxy, ROUTERS)
        yield installed
        installed.end()


def _deploy(stage: Installed, name: str, replicas: int = 1, settings: Object | None = None, **options: object) -> None:
    """A model that asks for no key, and its first pods."""
    deploy_echo(stage.cluster, name, replicas, {**OPEN, **(settings or {})}, None, **options)
    stage.controller.ready(name, replicas)


def _gone(stage: Installed, name: str) -> None:
    """Remove a model and wait for its end."""
    stage.cluster.client.delete("deployments", stage.namespace, name)
    stage.scores(name, status=404)
    until(lambda: not stage.controller.pods(name), f"end of the pods of {name}")


def test_model_comes_changes_and_goes(stage: Installed) -> None:
    stage.scores("iris", status=404)
    deploy_echo(stage.cluster, "iris", settings={"num-replicas": 1})
    stage.controller.ready("iris", 1)
    until(lambda: stage.cluster.client.find("secrets", stage.namespace, "azureml-fe-keys-iris"), "keys")
    assert stage.score("iris").status == 401
    stage.cluster.client.patch(
        "secrets",
        stage.namespace,
        "azureml-fe-keys-iris",
        {"stringData": {"primaryKey": "first-key-of-the-model-0123456789"}},
    )
    stage.scores("iris", key="first-key-of-the-model-0123456789")
    stage.cluster.client.patch(
        "secrets",
        stage.namespace,
        "azureml-fe-keys-iris",
        {"stringData": {"primaryKey": "fresh-key-of-the-model-0123456789"}},
    )
    stage.scores("iris", key="fresh-key-of-the-model-0123456789")
    stage.scores("iris", key="first-key-of-the-model-0123456789", status=401)
    answer = stage.score("iris", b'{"data": [1]}', key="fresh-key-of-the-model-0123456789")
    assert answer.body == b'{"data": [1]}'
    _gone(stage, "iris")


def test_load_scales_one_model_up_and_leaves_the_other_alone(stage: Installed) -> None:
    settings = {"autoscale-max-replicas": 4, "max-request-wait-time": 10_000}
    _deploy(stage, "busy", settings=settings, delay=0.1)
    _deploy(stage, "calm", settings=settings)
    stage.scores("busy")
    stage.scores("calm")
    begin = len(stage.proxy.records)
    with stage.traffic("busy", clients=6) as busy, stage.traffic("calm", clients=1) as calm:
        until(lambda: stage.cluster.replicas("busy") == 4, "more replicas")
        pods = stage.controller.ready("busy", 4)
        until(lambda: all(statistics(pod)["requests"] for pod in pods), "requests at each replica")
        calm.goes_on()
    assert busy.all_well, busy
    assert calm.all_well, calm
    assert max(statistics(pod)["highest"] for pod in pods) == 1  # a slot is never given twice, by all three routers
    assert stage.cluster.replicas("calm") == 1
    writes = [each for each in stage.proxy.records[begin:] if each.method != "GET" and "/deployments" in each.path]
    assert {each.path.rpartition("/deployments/")[2] for each in writes} == {"busy/scale"}
    (entry,) = [
        each
        for each in stage.cluster.client.get("deployments", stage.namespace, "busy")["metadata"]["managedFields"]
        if "f:replicas" in each["fieldsV1"].get("f:spec", {})
    ]
    assert (entry["manager"], entry["subresource"]) == ("azureml-fe", "scale")
    for name in ("busy", "calm"):
        _gone(stage, name)


def test_rolling_update_loses_no_request(stage: Installed) -> None:
    _deploy(stage, "rolled", 2, {"num-replicas": 2, "max-request-wait-time": 10_000}, delay=0.02)
    stage.scores("rolled")
    before = {pod["metadata"]["name"] for pod in stage.controller.pods("rolled")}
    container = {"name": "model", "image": "model:2", **echo_container(delay=0.02)}
    with stage.traffic("rolled") as traffic:
        traffic.goes_on()
        patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
        stage.cluster.client.patch("deployments", stage.namespace, "rolled", patch)
        pods = stage.controller.ready("rolled", 2)
        traffic.goes_on()
    assert traffic.all_well, traffic
    assert before.isdisjoint(pod["metadata"]["name"] for pod in pods)
    assert stage.controller.kubelet.killed == []
    _gone(stage, "rolled")


def test_scale_down_cuts_no_long_request(stage: Installed) -> None:
    settings = {
        "autoscale-max-replicas": 5,
        "autoscale-scale-down-seconds": 1,
        "max-request-wait-time": 20_000,
    }
    # Without `drain`, a pod that is told to end cuts what it works on: only the router can see to it that it is idle.
    _deploy(stage, "long", settings=settings, delay=0.4, drain=None)
    stage.scores("long")
    answers: list[Answer] = []

    def ask_long() -> None:
        answers.extend(stage.score("long") for _ in range(8))

    with stage.traffic("long", clients=4) as load:
        until(lambda: stage.cluster.replicas("long") == 5, "more replicas")
        stage.controller.ready("long", 5)
        load.goes_on(5)
    asking = threading.Thread(target=ask_long)
    asking.start()
    until(lambda: stage.cluster.replicas("long") <= 2, "fewer replicas")
    until(lambda: len(stage.controller.pods("long")) <= 2, "fewer pods")
    asking.join()
    assert load.all_well, load
    assert [answer.status for answer in answers] == [200] * 8
    _gone(stage, "long")


def test_leader_dies_and_another_scales(stage: Installed) -> None:
    _deploy(stage, "led", settings={"autoscale-max-replicas": 3, "max-request-wait-time": 10_000}, delay=0.1)
    stage.scores("led")
    leader = stage.leader()
    name, address = leader["metadata"]["name"], leader["status"]["podIP"]
    others = [each for each in stage.addresses() if each != address]
    with stage.traffic("led", clients=1, routers=lambda: others) as traffic:
        traffic.goes_on()
        stage.controller.pod_of(name).kill_process()
        with stage.traffic("led", clients=4, routers=lambda: others) as more:
            until(lambda: stage.cluster.replicas("led") == 3, "more replicas, by another leader")
            stage.controller.ready("led", 3)
        traffic.goes_on()
    assert traffic.all_well, traffic
    assert more.all_well, more
    assert stage.leader()["metadata"]["name"] != name or "leads" in stage.log(name)
    stage.all_ready(ROUTERS)
    stage.scores("led")
    _gone(stage, "led")


def test_upgrade_of_the_routers_loses_no_request(stage: Installed) -> None:
    _deploy(stage, "steady", 2, {"num-replicas": 2, "max-request-wait-time": 10_000}, delay=0.01)
    stage.scores("steady")
    before = set(stage.addresses())
    with stage.traffic("steady") as traffic:
        traffic.goes_on()
        patch = {"spec": {"template": {"metadata": {"annotations": {"release": "next"}}}}}
        stage.cluster.client.patch("deployments", stage.namespace, ROUTER, patch)
        stage.all_ready(ROUTERS)
        traffic.goes_on()
    assert before.isdisjoint(stage.addresses())
    assert traffic.all_well, traffic
    assert stage.controller.kubelet.killed == []
    _gone(stage, "steady")


def test_requests_go_on_while_the_api_server_is_away(stage: Installed) -> None:
    _deploy(stage, "alone", 2, {"num-replicas": 2})
    stage.scores("alone")
    address = stage.addresses()[0]
    with stage.traffic("alone") as traffic:
        with stage.proxy.away():
            traffic.goes_on()
            until(lambda: b"not heard of" in stage.readiness(address).body, "a word about it")
            assert stage.readiness(address).status == 200
            deploy_echo(stage.cluster, "meanwhile", settings={**OPEN, "num-replicas": 1})
            stage.controller.ready("meanwhile", 1)
            traffic.goes_on()
            assert stage.score("meanwhile").status == 404
        stage.scores("meanwhile")
        traffic.goes_on()
    assert traffic.all_well, traffic
    for name in ("alone", "meanwhile"):
        _gone(stage, name)


def test_watches_that_break_expire_or_are_refused_miss_nothing(stage: Installed) -> None:
    stage.proxy.cut(lambda record: record.is_watch)
    _deploy(stage, "cut", settings={"num-replicas": 1})
    stage.scores("cut")
    stage.scores("fresh", status=404)
    with (
        stage.proxy.expired(_watches("deployments"), times=ROUTERS) as expired,
        stage.proxy.fault(_watches("pods"), times=ROUTERS, status=429, headers={"Retry-After": "0"}) as refused,
        stage.proxy.fault(_watches("secrets"), times=ROUTERS, status=500) as failed,
    ):
        stage.proxy.cut(lambda record: record.is_watch)
        stage.cluster.client.delete("deployments", stage.namespace, "cut")
        _deploy(stage, "fresh")
        until(lambda: expired.hit == refused.hit == failed.hit == ROUTERS, "faults")
        stage.scores("cut", status=404)
        stage.scores("fresh")
    _gone(stage, "fresh")


def _watches(plural: str) -> Callable[[Record], bool]:
    return lambda record: record.is_watch and record.path.endswith(f"/{plural}")


def test_wrong_annotations_are_told_and_the_former_stay(stage: Installed) -> None:
    _deploy(stage, "wrong", settings={"num-replicas": 1})
    stage.scores("wrong")
    patch = {"metadata": {"annotations": {"azureml-fe/scoring-timeout-ms": "soon", "azureml-fe/auth-enabled": "true"}}}
    stage.cluster.client.patch("deployments", stage.namespace, "wrong", patch)
    event = has_event(stage.cluster, "wrong", "SettingsRefused")
    for part in ("azureml-fe/scoring-timeout-ms", "soon", "300000"):
        assert part in event["message"]
    assert event["involvedObject"]["kind"] == "Deployment"
    until(lambda: any(stage.metric(each, "deployment_problems") for each in stage.addresses()), "a metric")
    stage.scores("wrong")
    _gone(stage, "wrong")


def test_autoscaler_of_kubernetes_is_left_to_its_work(stage: Installed) -> None:
    _deploy(stage, "hpa", settings={"autoscale-max-replicas": 3, "max-request-wait-time": 10_000}, delay=0.05)
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hpa"}
    thing = {"metadata": {"name": "theirs"}, "spec": {"maxReplicas": 3, "scaleTargetRef": target}}
    stage.cluster.client.create("horizontalpodautoscalers", stage.namespace, thing)
    event = has_event(stage.cluster, "hpa", "ScaledByOther")
    assert "theirs" in event["message"]
    begin = len(stage.proxy.records)
    with stage.traffic("hpa", clients=6) as traffic:
        traffic.goes_on(60)
    assert traffic.all_well, traffic
    assert not [each for each in stage.proxy.records[begin:] if each.path.endswith("/hpa/scale")]
    assert stage.cluster.replicas("hpa") == 1
    stage.cluster.client.delete("horizontalpodautoscalers", stage.namespace, "theirs")
    with stage.traffic("hpa", clients=6):
        until(lambda: stage.cluster.replicas("hpa") == 3, "more replicas")
    _gone(stage, "hpa")


def test_hand_that_scales_is_brought_back_and_named(stage: Installed) -> None:
    _deploy(stage, "hand", settings={"autoscale-max-replicas": 2, "autoscale-scale-down-seconds": 1})
    stage.scores("hand")
    stage.cluster.scale("hand", 4, manager="somebody")
    until(lambda: stage.cluster.replicas("hand") <= 2, "the number within its limits")
    event = has_event(stage.cluster, "hand", "ReplicasSetByOther", "Normal")
    assert "somebody" in event["message"]
    for _ in range(3):
        stage.cluster.scale("hand", 4, manager="somebody")
        if not stage.cluster.events("hand", reason="ScalingContested"):
            with contextlib.suppress(AssertionError):
                until(
                    lambda: (
                        stage.cluster.replicas("hand") <= 2 or stage.cluster.events("hand", reason="ScalingContested")
                    ),
                    "an answer",
                )
    assert "somebody" in has_event(stage.cluster, "hand", "ScalingContested")["message"]
    _gone(stage, "hand")


def test_request_waits_for_the_first_replica(stage: Installed) -> None:
    settings = {"autoscale-min-replicas": 0, "autoscale-scale-down-seconds": 1, "max-request-wait-time": 15_000}
    deploy_echo(stage.cluster, "zero", 0, {**OPEN, **settings})
    answers: list[Answer] = []
    until(lambda: answers.append(stage.score("zero")) or answers[-1].status != 404, "the new model")  # type: ignore[func-returns-value]
    assert answers[-1].status == 200
    until(lambda: stage.cluster.replicas("zero") == 0, "no replica")
    _gone(stage, "zero")


def test_pending_pods_cause_no_runaway(stage: Installed) -> None:
    stage.controller.capacity = len(stage.controller.pods(ROUTER)) + 1
    settings = {"autoscale-max-replicas": 50, "max-request-wait-time": 10_000}
    _deploy(stage, "full", settings=settings, delay=0.05)
    stage.scores("full")
    begin = len(stage.proxy.records)
    with stage.traffic("full", clients=4) as traffic:
        until(lambda: stage.cluster.replicas("full") > 1, "more replicas")
        traffic.goes_on(100)
        assert stage.cluster.replicas("full") <= 7  # ceil(4 / 0.7), and one for a request counted twice
    assert traffic.all_well, traffic
    assert len([each for each in stage.proxy.records[begin:] if each.path.endswith("/full/scale")]) <= 8
    stage.controller.capacity = 100
    _gone(stage, "full")


def test_example_behind_the_model_server_of_azure_ml(stage: Installed, tmp_path: Path) -> None:
    annotations = {f"azureml-fe/{name}": value for name, value in OPEN.items()}
    container = azureml_container(tmp_path)
    stage.cluster.deployment("example", 1, annotations, **container)
    stage.controller.ready("example", 1)
    body = example_request_path().read_bytes()
    stage.scores("example", body=body)
    assert json.loads(stage.score("example", body).body) == {"predictions": ["setosa", "virginica"]}
    _gone(stage, "example")
    assert stage.controller.kubelet.killed == []


def test_every_right_is_used_and_none_is_missing(stage: Installed) -> None:
    settings = {"autoscale-max-replicas": 2, "autoscale-scale-down-seconds": 1, "max-request-wait-time": 10_000}
    _deploy(stage, "rights", settings={**settings, "no-such": 1}, delay=0.05)
    deploy_echo(stage.cluster, "keyed")
    # Where the Secret is there, and holds nothing yet, it is updated and not made.
    stage.cluster.secret("azureml-fe-token-keys", {})
    deploy_echo(stage.cluster, "tokens", settings={**OPEN, "token-auth-enabled": "true"})
    stage.scores("rights")
    has_event(stage.cluster, "rights", "SettingsRefused")
    until(lambda: stage.cluster.client.find("secrets", stage.namespace, "azureml-fe-keys-keyed"), "keys")

    def scales(record: Record) -> bool:
        return record.method == "PATCH" and record.path.endswith("/rights/scale")

    with (
        stage.proxy.fault(scales, times=1, status=409, body=status(409, "Conflict")),
        stage.traffic("rights", clients=4) as traffic,
    ):
        until(lambda: stage.cluster.replicas("rights") == 2, "more replicas in spite of a conflict")
    assert traffic.all_well, traffic
    until(lambda: stage.cluster.replicas("rights") == 1, "fewer replicas")
    # The next leader has the same to say of the wrong annotation, and adds to the Event that there is.
    leader = stage.leader()["metadata"]["name"]
    stage.cluster.client.delete("pods", stage.namespace, leader)
    until(lambda: stage.leader()["metadata"]["name"] != leader, "another leader")
    expected = {(each.group, each.resource, verb) for each in ACCESS for verb in each.verbs}
    unused = expected.copy()

    def all_used() -> bool:
        unused.difference_update(map(_right, stage.proxy.records))
        return not unused

    with contextlib.suppress(AssertionError):
        until(all_used)
    assert unused == set()
    assert {_right(record) for record in stage.proxy.records} == expected
    assert [record for record in stage.proxy.records if record.status in (401, 403)] == []
    stage.all_ready(ROUTERS)
    for name in ("rights", "keyed", "tokens"):
        _gone(stage, name)


def _right(record: Record) -> tuple[str, str, str]:
    """Group, resource and verb of a request, as rules name them."""
    words = record.path.strip("/").split("/")
    group, words = ("", words[2:]) if words[0] == "api" else (words[1], words[3:])
    if words[0] == "namespaces":
        words = words[2:]
    resource = "/".join([words[0], *words[2:]])
    verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    reads = "watch" if record.is_watch else "get" if len(words) > 1 else "list"
    return group, resource, verbs.get(record.method, reads)
