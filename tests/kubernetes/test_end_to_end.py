"""Three routers installed by the chart, models as processes, and clients.

All tests share the routers. Each test has its own models.
"""

import base64
import contextlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router.cli.trial import SAMPLE_REQUEST
from router.cluster.kubernetes.access import ACCESS_RULES, SETTINGS_CONFIG_MAP
from router.cluster.local import example_path
from router.config.kubernetes_settings import RELEASE_CLAIM_NAME
from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.cluster import ROUTER, temporary_cluster, wait_for_event
from tests.kube_standin.controller_manager import running_controller_manager
from tests.kube_standin.echo_model import deploy_echo, echo_container, echo_server_stats
from tests.kube_standin.fault_proxy import RecordedRequest, failure_status, running_fault_proxy
from tests.kubernetes.azureml_model import azureml_container
from tests.kubernetes.converted_service import IMAGE, MODEL, SECRET, converted_objects, entrypoint, write_files
from tests.kubernetes.helm_release import PORT, HelmRelease
from tests.kubernetes.traffic import get
from tests.processes import Response, wait_until

ROUTERS = 3
NO_AUTH = {"auth-enabled": "false"}
PATIENT = {"max-request-wait-time": 25_000}  # less than the clients' timeout, long enough for a busy machine


@pytest.fixture(scope="module")
def release(api_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HelmRelease]:
    """Three routers. Checks at the end that they terminate cleanly."""
    directory = tmp_path_factory.mktemp("release")
    with (
        temporary_cluster(api_server, directory) as cluster,
        running_fault_proxy(cluster.access) as proxy,
        running_controller_manager(cluster, directory) as controller,
    ):
        installed = HelmRelease(cluster, controller, proxy, ROUTERS)
        yield installed
        installed.uninstall()


def new_name(model: str) -> str:
    """Return a name that no other test has used, nor this test in a previous attempt."""
    return f"{model}-{secrets.token_hex(2)}"


def _deploy_model(
    release: HelmRelease, name: str, replicas: int = 1, settings: Object | None = None, **options: object
) -> None:
    """Create a model without authentication and wait for its pods."""
    deploy_echo(release.cluster, name, replicas, {**NO_AUTH, **(settings or {})}, None, **options)
    release.controller.wait_ready(name, replicas)


def _delete_model(release: HelmRelease, name: str) -> None:
    """Delete a model and wait until it is removed."""
    release.cluster.client.delete("deployments", release.namespace, name)
    release.wait_scores(name, status=404)
    wait_until(lambda: not release.controller.pods(name), f"the removal of the pods of {name}")


def test_model_is_added_changed_and_removed(release: HelmRelease) -> None:
    iris = new_name("iris")
    release.wait_scores(iris, status=404)
    deploy_echo(release.cluster, iris, settings={"num-replicas": 1})
    release.controller.wait_ready(iris, 1)
    wait_until(lambda: release.cluster.client.find("secrets", release.namespace, f"azureml-fe-keys-{iris}"), "keys")
    assert release.score(iris).status == 401
    release.cluster.client.patch(
        "secrets",
        release.namespace,
        f"azureml-fe-keys-{iris}",
        {"stringData": {"primaryKey": "first-key-of-the-model-0123456789"}},
    )
    release.wait_scores(iris, key="first-key-of-the-model-0123456789")
    release.cluster.client.patch(
        "secrets",
        release.namespace,
        f"azureml-fe-keys-{iris}",
        {"stringData": {"primaryKey": "second-key-of-the-model-0123456789"}},
    )
    release.wait_scores(iris, key="second-key-of-the-model-0123456789")
    release.wait_scores(iris, key="first-key-of-the-model-0123456789", status=401)
    response = release.score(iris, b'{"data": [1]}', key="second-key-of-the-model-0123456789")
    assert response.body == b'{"data": [1]}'
    _delete_model(release, iris)


def test_load_scales_only_the_busy_model(release: HelmRelease) -> None:
    busy = new_name("busy")
    calm = new_name("calm")
    settings = {"autoscale-max-replicas": 4, **PATIENT}
    _deploy_model(release, busy, settings=settings, delay=0.1)
    # One client uses at most a tenth of its slots, however slow the machine is.
    _deploy_model(release, calm, settings={**settings, "replica-max-concurrent-requests": 10})
    release.wait_scores(busy)
    release.wait_scores(calm)
    first_record = len(release.proxy.records)
    with release.traffic(busy, clients=6) as load, release.traffic(calm, clients=1) as requests:
        wait_until(lambda: release.cluster.desired_replicas(busy) == 4, "more replicas")
        pods = release.controller.wait_ready(busy, 4)
        wait_until(lambda: all(echo_server_stats(pod)["requests"] for pod in pods), "requests at each replica")
        requests.wait_responses()
    assert load.all_succeeded, load
    assert requests.all_succeeded, requests
    assert max(echo_server_stats(pod)["peak"] for pod in pods) == 1  # three routers never use a slot twice
    assert release.cluster.desired_replicas(calm) == 1
    writes = [
        each for each in release.proxy.records[first_record:] if each.method != "GET" and "/deployments" in each.path
    ]
    assert {each.path.rpartition("/deployments/")[2] for each in writes} == {f"{busy}/scale"}
    (entry,) = [
        each
        for each in release.cluster.client.get("deployments", release.namespace, busy)["metadata"]["managedFields"]
        if "f:replicas" in each["fieldsV1"].get("f:spec", {})
    ]
    assert (entry["manager"], entry["subresource"]) == (f"azureml-fe/{release.namespace}/{ROUTER}", "scale")
    for name in (busy, calm):
        _delete_model(release, name)


def test_rolling_update_loses_no_request(release: HelmRelease) -> None:
    rolled = new_name("rolled")
    _deploy_model(release, rolled, 2, {"num-replicas": 2, **PATIENT}, delay=0.02)
    release.wait_scores(rolled)
    before = {pod["metadata"]["name"] for pod in release.controller.pods(rolled)}
    container = {"name": "model", "image": "model:2", **echo_container(delay=0.02)}
    with release.traffic(rolled) as traffic:
        traffic.wait_responses()
        patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
        release.cluster.client.patch("deployments", release.namespace, rolled, patch)
        pods = release.controller.wait_ready(rolled, 2)
        traffic.wait_responses()
    assert traffic.all_succeeded, traffic
    assert before.isdisjoint(pod["metadata"]["name"] for pod in pods)
    assert release.controller.kubelet.killed == []
    _delete_model(release, rolled)


def test_scale_down_interrupts_no_long_request(release: HelmRelease) -> None:
    long = new_name("long")
    settings = {
        "autoscale-max-replicas": 5,
        "autoscale-scale-down-seconds": 1,
        **PATIENT,
    }
    # Without `drain` a terminating pod interrupts its request, so the router must have made it idle before.
    _deploy_model(release, long, settings=settings, delay=0.4, drain=None)
    release.wait_scores(long)
    responses: list[Response] = []

    def send_requests() -> None:
        responses.extend(release.score(long) for _ in range(8))

    with release.traffic(long, clients=4) as load:
        wait_until(lambda: release.cluster.desired_replicas(long) == 5, "more replicas")
        release.controller.wait_ready(long, 5)
        load.wait_responses(5)
    sender = threading.Thread(target=send_requests)
    sender.start()
    wait_until(lambda: release.cluster.desired_replicas(long) <= 2, "fewer replicas")
    wait_until(lambda: len(release.controller.pods(long)) <= 2, "fewer pods")
    sender.join()
    assert load.all_succeeded, load
    assert [response.status for response in responses] == [200] * 8
    _delete_model(release, long)


def test_new_leader_scales_after_a_crash(release: HelmRelease) -> None:
    model = new_name("with-leader")
    _deploy_model(release, model, settings={"autoscale-max-replicas": 3, **PATIENT}, delay=0.1)
    release.wait_scores(model)
    leader = release.leader()
    name, address = leader["metadata"]["name"], leader["status"]["podIP"]
    others = [each for each in release.addresses() if each != address]
    with release.traffic(model, clients=1, routers=lambda: others) as traffic:
        traffic.wait_responses()
        release.controller.pod_process(name).crash()
        with release.traffic(model, clients=4, routers=lambda: others) as load:
            wait_until(lambda: release.cluster.desired_replicas(model) == 3, "more replicas from another leader")
            release.controller.wait_ready(model, 3)
        traffic.wait_responses()
    assert traffic.all_succeeded, traffic
    assert load.all_succeeded, load
    assert release.leader()["metadata"]["name"] != name or "leads" in release.log(name)
    release.wait_ready(ROUTERS)
    release.wait_scores(model)
    _delete_model(release, model)


def test_router_upgrade_loses_no_request(release: HelmRelease) -> None:
    steady = new_name("steady")
    _deploy_model(release, steady, 2, {"num-replicas": 2, **PATIENT}, delay=0.01)
    release.wait_scores(steady)
    before = set(release.addresses())
    with release.traffic(steady) as traffic:
        traffic.wait_responses()
        patch = {"spec": {"template": {"metadata": {"annotations": {"release": "next"}}}}}
        release.cluster.client.patch("deployments", release.namespace, ROUTER, patch)
        release.wait_ready(ROUTERS)
        traffic.wait_responses()
    assert before.isdisjoint(release.addresses())
    assert traffic.all_succeeded, traffic
    assert release.controller.kubelet.killed == []
    _delete_model(release, steady)


def test_routing_continues_during_an_api_server_outage(release: HelmRelease) -> None:
    alone = new_name("alone")
    created = new_name("created-in-outage")
    _deploy_model(release, alone, 2, {"num-replicas": 2})
    release.wait_scores(alone)
    address = release.addresses()[0]
    with release.traffic(alone) as traffic:
        with release.proxy.outage():
            traffic.wait_responses()
            wait_until(
                lambda: b"no update for" in release.readiness(address).body, "the outage in the readiness response"
            )
            assert release.readiness(address).status == 200
            deploy_echo(release.cluster, created, settings={**NO_AUTH, "num-replicas": 1})
            release.controller.wait_ready(created, 1)
            traffic.wait_responses()
            assert release.score(created).status == 404
        release.wait_scores(created)
        traffic.wait_responses()
    assert traffic.all_succeeded, traffic
    for name in (alone, created):
        _delete_model(release, name)


def test_broken_expired_or_refused_watches_miss_no_change(release: HelmRelease) -> None:
    cut = new_name("cut")
    fresh = new_name("fresh")
    release.proxy.break_connections(lambda record: record.is_watch)
    _deploy_model(release, cut, settings={"num-replicas": 1})
    release.wait_scores(cut)
    release.wait_scores(fresh, status=404)
    with (
        release.proxy.expire_watches(_watches("deployments"), times=ROUTERS) as expired,
        release.proxy.fault(_watches("pods"), times=ROUTERS, status=429, headers={"Retry-After": "0"}) as refused,
        release.proxy.fault(_watches("secrets"), times=ROUTERS, status=500) as failed,
    ):
        release.proxy.break_connections(lambda record: record.is_watch)
        release.cluster.client.delete("deployments", release.namespace, cut)
        _deploy_model(release, fresh)
        wait_until(lambda: expired.hit == refused.hit == failed.hit == ROUTERS, "faults")
        release.wait_scores(cut, status=404)
        release.wait_scores(fresh)
    _delete_model(release, fresh)


def _watches(plural: str) -> Callable[[RecordedRequest], bool]:
    return lambda record: record.is_watch and record.path.endswith(f"/{plural}")


def test_invalid_annotations_are_reported_and_ignored(release: HelmRelease) -> None:
    wrong = new_name("wrong")
    _deploy_model(release, wrong, settings={"num-replicas": 1})
    release.wait_scores(wrong)
    patch = {"metadata": {"annotations": {"azureml-fe/scoring-timeout-ms": "soon", "azureml-fe/auth-enabled": "true"}}}
    release.cluster.client.patch("deployments", release.namespace, wrong, patch)
    event = wait_for_event(release.cluster, wrong, "SettingsRefused")
    for part in ("azureml-fe/scoring-timeout-ms", "soon", "300000"):
        assert part in event["message"]
    assert event["involvedObject"]["kind"] == "Deployment"
    wait_until(lambda: any(release.metric(each, "deployment_problems") for each in release.addresses()), "a metric")
    release.wait_scores(wrong)
    _delete_model(release, wrong)


def test_router_does_not_scale_a_model_with_an_hpa(release: HelmRelease) -> None:
    hpa = new_name("hpa")
    _deploy_model(release, hpa, settings={"autoscale-max-replicas": 3, **PATIENT}, delay=0.05)
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": hpa}
    obj = {"metadata": {"name": "other-hpa"}, "spec": {"maxReplicas": 3, "scaleTargetRef": target}}
    release.cluster.client.create("horizontalpodautoscalers", release.namespace, obj)
    event = wait_for_event(release.cluster, hpa, "ScaledByOther")
    assert "other-hpa" in event["message"]
    first_record = len(release.proxy.records)
    with release.traffic(hpa, clients=6) as traffic:
        traffic.wait_responses(60)
    assert traffic.all_succeeded, traffic
    assert not [each for each in release.proxy.records[first_record:] if each.path.endswith(f"/{hpa}/scale")]
    assert release.cluster.desired_replicas(hpa) == 1
    release.cluster.client.delete("horizontalpodautoscalers", release.namespace, "other-hpa")
    with release.traffic(hpa, clients=6):
        wait_until(lambda: release.cluster.desired_replicas(hpa) == 3, "more replicas")
    _delete_model(release, hpa)


def test_manual_scaling_is_corrected_and_reported(release: HelmRelease) -> None:
    manual = new_name("manual")
    _deploy_model(release, manual, settings={"autoscale-max-replicas": 2, "autoscale-scale-down-seconds": 1})
    release.wait_scores(manual)
    release.cluster.scale(manual, 4, manager="someone")
    wait_until(lambda: release.cluster.desired_replicas(manual) <= 2, "a count within its limits")
    event = wait_for_event(release.cluster, manual, "ReplicasSetByOther", "Normal")
    assert "someone" in event["message"]
    for _ in range(3):
        release.cluster.scale(manual, 4, manager="someone")
        if not release.cluster.list_events(manual, reason="ScalingContested"):
            with contextlib.suppress(AssertionError):
                wait_until(
                    lambda: (
                        release.cluster.desired_replicas(manual) <= 2
                        or release.cluster.list_events(manual, reason="ScalingContested")
                    ),
                    "a correction or an Event",
                )
    assert "someone" in wait_for_event(release.cluster, manual, "ScalingContested")["message"]
    _delete_model(release, manual)


def test_request_is_queued_until_the_first_replica_is_ready(release: HelmRelease) -> None:
    zero = new_name("zero")
    settings = {"autoscale-min-replicas": 0, "autoscale-scale-down-seconds": 1, **PATIENT}
    deploy_echo(release.cluster, zero, 0, {**NO_AUTH, **settings})
    responses: list[Response] = []
    wait_until(lambda: responses.append(release.score(zero)) or responses[-1].status != 404, "the new model")  # type: ignore[func-returns-value]
    assert responses[-1].status == 200
    wait_until(lambda: release.cluster.desired_replicas(zero) == 0, "no replica")
    _delete_model(release, zero)


def test_pending_pods_cause_no_further_scaling(release: HelmRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    full = new_name("full")
    monkeypatch.setattr(release.controller, "capacity", len(release.cluster.client.list("pods", release.namespace)) + 1)
    settings = {"autoscale-max-replicas": 50, **PATIENT}
    _deploy_model(release, full, settings=settings, delay=0.05)
    release.wait_scores(full)
    first_record = len(release.proxy.records)
    with release.traffic(full, clients=4) as traffic:
        wait_until(lambda: release.cluster.desired_replicas(full) > 1, "more replicas")
        traffic.wait_responses(100)
    assert traffic.all_succeeded, traffic
    # 4 clients need ceil(4 / 0.7). While a request moves between routers, two of them may count it.
    desired = release.cluster.desired_replicas(full)
    assert desired <= 2 * 6
    records = [each for each in release.proxy.records[first_record:] if each.path.endswith(f"/{full}/scale")]
    assert sum(each.method == "PATCH" and each.status == 200 for each in records) < desired  # each added a replica
    _delete_model(release, full)


def test_example_with_the_azureml_inference_server(release: HelmRelease, tmp_path: Path) -> None:
    example = new_name("example")
    annotations = {f"azureml-fe/{name}": value for name, value in NO_AUTH.items()}
    container = azureml_container(tmp_path)
    release.cluster.create_deployment(example, 1, annotations, grace_seconds=30, **container)
    release.controller.wait_ready(example, 1)
    body = example_path().with_name(SAMPLE_REQUEST).read_bytes()
    release.wait_scores(example, body=body)
    assert json.loads(release.score(example, body).body) == {"predictions": ["setosa", "virginica"]}
    _delete_model(release, example)
    assert release.controller.kubelet.killed == []


def test_converted_endpoint_is_served(release: HelmRelease, tmp_path: Path) -> None:
    """The API server accepts what `azureml-fe convert` has made of an endpoint with two deployments."""
    name = new_name("converted")
    release.controller.kubelet.entrypoints[IMAGE] = entrypoint()
    release.cluster.apply(converted_objects(write_files(tmp_path, name), release.namespace))
    for version in ("blue", "green"):
        release.controller.wait_ready(f"{name}-{version}", 1)
    secret = f"azureml-fe-keys-{name}"
    wait_until(lambda: release.cluster.client.find("secrets", release.namespace, secret), "keys")
    assert release.score(name).status == 401
    data = release.cluster.client.get("secrets", release.namespace, secret)["data"]
    key = base64.b64decode(data["primaryKey"]).decode()
    release.wait_scores(name, key=key)
    address = release.addresses()[0]
    for version in ("blue", "green"):
        headers = {"Authorization": f"Bearer {key}", "azureml-model-deployment": version}
        response = get(address, PORT, f"/api/v1/service/{name}/score", b"{}", headers)
        assert json.loads(response.body) == {"version": version, "model": len(MODEL), "token": SECRET}
    (service,) = [each for each in release.status(address)["services"] if each["name"] == name]
    shown = {each["name"]: (each["traffic_percent"], each["tags"]) for each in service["versions"]}
    assert shown == {"blue": (90, {"team": "blue"}), "green": (10, {"team": "green"})}
    for version in ("blue", "green"):
        release.cluster.client.delete("deployments", release.namespace, f"{name}-{version}")
    release.wait_scores(name, status=404)


def test_access_rules_are_all_used_and_sufficient(release: HelmRelease) -> None:
    limited = new_name("all-rules")
    keyed = new_name("keyed")
    tokens = new_name("tokens")
    settings = {"autoscale-max-replicas": 2, "autoscale-scale-down-seconds": 1, **PATIENT}
    _deploy_model(release, limited, settings={**settings, "no-such": 1}, delay=0.05)
    deploy_echo(release.cluster, keyed)
    # An existing, empty Secret is updated instead of created.
    release.cluster.client.delete("secrets", release.namespace, "azureml-fe-token-keys")
    release.cluster.create_secret("azureml-fe-token-keys", {})
    deploy_echo(release.cluster, tokens, settings={**NO_AUTH, "token-auth-enabled": "true"})
    release.wait_scores(limited)
    wait_for_event(release.cluster, limited, "SettingsRefused")
    wait_until(lambda: release.cluster.client.find("secrets", release.namespace, f"azureml-fe-keys-{keyed}"), "keys")

    def scales(record: RecordedRequest) -> bool:
        return record.method == "PATCH" and record.path.endswith(f"/{limited}/scale")

    with (
        release.proxy.fault(scales, times=1, status=409, body=failure_status(409, "Conflict")),
        release.traffic(limited, clients=4) as traffic,
    ):
        wait_until(lambda: release.cluster.desired_replicas(limited) == 2, "more replicas despite a conflict")
    assert traffic.all_succeeded, traffic
    wait_until(lambda: release.cluster.desired_replicas(limited) == 1, "fewer replicas")
    # The next leader reports the same invalid annotation and updates the existing Event.
    leader = release.leader()["metadata"]["name"]
    release.cluster.client.delete("pods", release.namespace, leader)
    wait_until(lambda: release.leader()["metadata"]["name"] != leader, "another leader")
    # The settings before an invalid change are kept in a ConfigMap.
    invalid = {"metadata": {"annotations": {"azureml-fe/scoring-timeout-ms": "soon"}}}
    release.cluster.client.patch("deployments", release.namespace, keyed, invalid)
    wait_until(lambda: release.cluster.client.find("configmaps", release.namespace, SETTINGS_CONFIG_MAP), "settings")
    release.cluster.client.patch("deployments", release.namespace, tokens, invalid)
    # If another release holds the models' claim, this one adds itself to those that wait.
    claim = {"spec": {"holderIdentity": "elsewhere/azureml-fe"}}
    release.cluster.client.patch("leases", release.namespace, RELEASE_CLAIM_NAME, claim)
    expected = {(each.group, each.resource, verb) for each in ACCESS_RULES for verb in each.verbs}
    unused = expected.copy()

    def all_used() -> bool:
        unused.difference_update(map(_access_rule, release.proxy.records))
        return not unused

    with contextlib.suppress(AssertionError):
        wait_until(all_used)
    assert unused == set()
    release.cluster.client.delete("leases", release.namespace, RELEASE_CLAIM_NAME)
    assert {_access_rule(record) for record in release.proxy.records} == expected
    assert [record for record in release.proxy.records if record.status in (401, 403)] == []
    release.wait_ready(ROUTERS)
    for name in (limited, keyed, tokens):
        _delete_model(release, name)


def _access_rule(record: RecordedRequest) -> tuple[str, str, str]:
    """Return the API group, resource and verb of a request, as in RBAC rules."""
    parts = record.path.strip("/").split("/")
    group, parts = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    if parts[0] == "namespaces":
        parts = parts[2:]
    resource = "/".join([parts[0], *parts[2:]])
    verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    read_verb = "watch" if record.is_watch else "get" if len(parts) > 1 else "list"
    return group, resource, verbs.get(record.method, read_verb)
