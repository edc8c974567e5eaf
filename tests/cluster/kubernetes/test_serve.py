"""The router as its pod runs it, against an API server."""

import base64
import time
from pathlib import Path

import pytest

from router.cli import main
from router.cluster.kubernetes.counts import ROUNDS
from router.cluster.kubernetes.leader import LEASE_SECONDS
from tests.cluster.kubernetes.serving import SECRET, Routers, deploy, key, routers_in
from tests.kubernetes.cluster import Cluster, has_event
from tests.kubernetes.proxy import Proxy, status
from tests.processes import until


def test_a_model_is_found_served_and_gone(cluster: Cluster, routers: Routers, model: int) -> None:
    router = routers.start()
    assert router.score("iris").status == 404
    deploy(cluster, model)
    until(lambda: router.score("iris").status == 200, "the new model")
    cluster.pod_runs("iris-abc-1", "127.0.0.1", ready=False)
    until(lambda: router.score("iris").body.startswith(b"No ready replicas"), "a pod that is not ready")
    cluster.pod_runs("iris-abc-1", "127.0.0.1")
    until(lambda: router.score("iris").status == 200, "the pod that is ready again")
    cluster.client.delete("deployments", cluster.namespace, "iris")
    until(lambda: router.score("iris").status == 404, "the end of the model")


def test_keys_are_made_followed_and_renewed(
    cluster: Cluster, routers: Routers, model: int, capsys: pytest.CaptureFixture[str]
) -> None:
    router = routers.start()
    deploy(cluster, model, auth_enabled="true")
    until(lambda: cluster.client.find("secrets", cluster.namespace, SECRET), "keys")
    until(lambda: router.score("iris", Authorization=f"Bearer {key(cluster)}").status == 200, "the key")
    assert router.score("iris").status == 401
    former, kubeconfig = key(cluster), str(cluster.admin)
    where = ["--kubeconfig", kubeconfig, "--namespace", cluster.namespace]
    assert main(["keys", "regenerate", "iris", "--key", "primary", *where]) == 0
    fresh = capsys.readouterr().out.strip()
    assert fresh == key(cluster) != former
    until(lambda: router.score("iris", Authorization=f"Bearer {former}").status == 401, "end of the former key")
    assert router.score("iris", Authorization=f"Bearer {fresh}").status == 200
    second = key(cluster, "secondaryKey")
    assert main(["keys", "show", "iris", *where]) == 0
    assert capsys.readouterr().out == f"primary: {fresh}\nsecondary: {second}\n"
    assert router.score("iris", Authorization=f"Bearer {second}").status == 200
    assert not any(secret in router.said for secret in (former, fresh, second))


def test_keys_of_a_service_are_found_in_whatever_namespace_it_is(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    service = f"iris-{cluster.namespace}"  # nobody else's, in all of the cluster
    cluster.deployment(service)
    for word in ("made", "renewed"):
        assert main(["keys", "regenerate", service, "--key", "primary", "--kubeconfig", str(cluster.admin)]) == 0
        fresh = capsys.readouterr().out.strip()
        data = cluster.client.get("secrets", cluster.namespace, f"azureml-fe-keys-{service}")["data"]
        assert base64.b64decode(data["primaryKey"]).decode() == fresh, word


def test_load_is_answered_by_one_router_and_its_rights_are_those_of_the_list(
    cluster: Cluster, proxy: Proxy, model: int, tmp_path: Path
) -> None:
    with routers_in(cluster, tmp_path, proxy.access) as routers:
        first, second = routers.start(), routers.start()
        until(lambda: first.metric("leader") + second.metric("leader") == 1, "a leader")
        until(lambda: first.metric("peers", standing="live") == second.metric("peers", standing="live") == 1, "a link")
        assert first.metric("peers_unencrypted") == second.metric("peers_unencrypted") == 0
        deploy(cluster, model, autoscale_max_replicas="4")
        until(lambda: second.score("iris").status == 200, "the new model")
        follower = second if first.leads else first
        with follower.load("iris", clients=8, pause=0.0):
            until(lambda: cluster.replicas("iris") == 4, "replicas")
    writes = [record for record in proxy.records if record.method == "PATCH" and "deployments" in record.path]
    assert writes
    assert all(record.path.endswith("/deployments/iris/scale") for record in writes)
    assert all(record.status in (200, 409) for record in writes)


def test_a_leader_that_ends_is_followed_at_once(cluster: Cluster, routers: Routers) -> None:
    first, second = routers.start(), routers.start()
    until(lambda: first.leads or second.leads, "a leader")
    leader, other = (first, second) if first.leads else (second, first)
    assert leader.stop() == 0
    until(lambda: other.leads, "the other one leads")
    (line,) = [line for line in other.log("leader") if line["leads"]]
    assert line["term"] == 1


def test_a_leader_that_is_killed_is_not_waited_for(cluster: Cluster, routers: Routers) -> None:
    first, second = routers.start(), routers.start()
    until(lambda: first.leads or second.leads, "a leader")
    leader, other = (first, second) if first.leads else (second, first)
    leader.kill()
    began = time.monotonic()
    until(lambda: other.leads, "the other one leads")
    assert time.monotonic() - began < LEASE_SECONDS, "its port refuses: it has ended"


def test_what_is_refused_is_told_and_tried_again(cluster: Cluster, proxy: Proxy, model: int, tmp_path: Path) -> None:
    with routers_in(cluster, tmp_path, proxy.access) as routers:
        router = routers.start()
        deploy(cluster, model, autoscale_min_replicas="2")
        refused = status(403, "Forbidden", "exceeded quota: models")
        with proxy.fault(lambda record: record.path.endswith("/scale"), status=403, body=refused):
            event = has_event(cluster, "iris", "ScalingRefused")
            assert event["message"] == "1 to 2 replicas: refused (403 Forbidden): exceeded quota: models"
        until(lambda: cluster.replicas("iris") == 2, "replicas")
        assert router.metric("api_requests_total", verb="patch", code="403") > 0


def test_a_rival_is_named_and_after_some_rounds_left_to_it(cluster: Cluster, routers: Routers, model: int) -> None:
    router = routers.start(contested_scaling_pause_seconds=1000)
    deploy(cluster, model, num_replicas="1", replicas=2)
    for _ in range(ROUNDS):
        until(lambda: cluster.replicas("iris") == 1, "the router's number")
        cluster.scale("iris", 3, manager="rival")
    event = has_event(cluster, "iris", "ScalingContested")
    assert "rival has set 1 to 3 replicas, for the 3th time" in event["message"]
    assert router.metric("autoscaler_conflicts", service="iris") == 1
    assert cluster.replicas("iris") == 3


def test_check_tells_what_is_there_and_what_is_wrong(
    cluster: Cluster, model: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", "--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace]
    deploy(cluster, model)
    assert main(words) == 0
    assert capsys.readouterr().out == (
        f"service iris: namespace {cluster.namespace}, no authentication\n"
        "  version default: 100 % of traffic; Deployment iris; 1 of 1 replicas ready\n"
    )
    deploy(cluster, model, "other", scoring_timeout_ms="x", auth_enabled="true")
    assert main(words) == 2
    complaints = capsys.readouterr().err
    assert (
        "azureml-fe: service other: Secret azureml-fe-keys-other is missing, so there are no keys yet\n" in complaints
    )
    assert f"{cluster.namespace}/other: SettingsRefused: azureml-fe/scoring-timeout-ms = 'x': must be" in complaints
    cluster.account("nobody")
    assert main(["check", "--kubeconfig", str(cluster.kubeconfig("nobody")), "--namespace", cluster.namespace]) == 1
    assert "the API server refused: 403 Forbidden" in capsys.readouterr().err
