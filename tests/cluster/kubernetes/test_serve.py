"""Routers as processes with an API server: models, keys, scaling, the election of the leader, and `check`."""

import base64
import json
import socketserver
import ssl
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from router.cli.main import main
from router.cluster.kubernetes.election import LEASE_SECONDS
from router.cluster.kubernetes.replica_count_state import CONTESTED_WRITES
from tests.certificates import SecretMount, issue
from tests.cluster.kubernetes.router_processes import (
    KEYS_SECRET,
    RouterStarter,
    deploy_model,
    key_of_iris,
    starting_routers,
)
from tests.kube_standin.cluster import Cluster, wait_for_event
from tests.kube_standin.fault_proxy import FaultProxy, failure_status
from tests.processes import free_ports, wait_until


def test_model_is_served_until_its_deployment_is_deleted(
    cluster: Cluster, routers: RouterStarter, model_port: int
) -> None:
    router = routers.start()
    assert router.score("iris").status == 404
    deploy_model(cluster, model_port)
    wait_until(lambda: router.score("iris").status == 200, "a response of the new model")
    cluster.set_pod_running("iris-abc-1", "127.0.0.1", ready=False)
    wait_until(lambda: router.score("iris").body.startswith(b"No ready replicas"), "no ready replica")
    cluster.set_pod_running("iris-abc-1", "127.0.0.1")
    wait_until(lambda: router.score("iris").status == 200, "a response after the pod is ready again")
    cluster.client.delete("deployments", cluster.namespace, "iris")
    wait_until(lambda: router.score("iris").status == 404, "the removal of the model")


def test_keys_are_generated_accepted_and_regenerated(
    cluster: Cluster, routers: RouterStarter, model_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    router = routers.start()
    deploy_model(cluster, model_port, auth_enabled="true")
    wait_until(lambda: cluster.client.find("secrets", cluster.namespace, KEYS_SECRET), "keys")
    wait_until(
        lambda: router.score("iris", Authorization=f"Bearer {key_of_iris(cluster)}").status == 200,
        "the key to be accepted",
    )
    assert router.score("iris").status == 401
    previous, kubeconfig = key_of_iris(cluster), str(cluster.admin)
    flags = ["--kubeconfig", kubeconfig, "--namespace", cluster.namespace]
    assert main(["keys", "regenerate", "iris", "--key", "primary", *flags]) == 0
    new = capsys.readouterr().out.strip()
    assert new == key_of_iris(cluster) != previous
    wait_until(
        lambda: router.score("iris", Authorization=f"Bearer {previous}").status == 401,
        "the previous key to be rejected",
    )
    assert router.score("iris", Authorization=f"Bearer {new}").status == 200
    second = key_of_iris(cluster, "secondaryKey")
    assert main(["keys", "show", "iris", *flags]) == 0
    assert capsys.readouterr().out == f"primary: {new}\nsecondary: {second}\n"
    assert router.score("iris", Authorization=f"Bearer {second}").status == 200
    assert not any(secret in router.log for secret in (previous, new, second))
    (line,) = router.log_lines("keys created")
    assert line["stored_in"] == KEYS_SECRET


def test_keys_command_searches_all_namespaces_for_the_service(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    service = f"iris-{cluster.namespace}"  # unique in the cluster
    cluster.create_deployment(service)
    for attempt in ("create the Secret", "patch the Secret"):
        assert main(["keys", "regenerate", service, "--key", "primary", "--kubeconfig", str(cluster.admin)]) == 0
        new = capsys.readouterr().out.strip()
        data = cluster.client.get("secrets", cluster.namespace, f"azureml-fe-keys-{service}")["data"]
        assert base64.b64decode(data["primaryKey"]).decode() == new, attempt


def test_keys_of_deleted_models_are_pruned(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace]
    for service, annotations in (("iris", {}), ("deleted", {}), ("kept", {"azureml-fe/keys-secret": "mine"})):
        cluster.create_deployment(service, annotations=annotations)
        assert main(["keys", "regenerate", service, "--key", "primary", *flags]) == 0
    by_hand = {"metadata": {"name": "azureml-fe-keys-by-hand", "labels": {"isazuremlapp": "true"}}}
    cluster.client.create("secrets", cluster.namespace, {"apiVersion": "v1", "kind": "Secret", **by_hand})
    capsys.readouterr()
    assert main(["keys", "prune", *flags]) == 0
    assert capsys.readouterr().out == ""
    cluster.client.delete("deployments", cluster.namespace, "deleted")
    unused = "azureml-fe-keys-deleted"
    assert main(["keys", "prune", *flags]) == 0
    assert capsys.readouterr().out == f"{cluster.namespace}/{unused}\n"
    assert cluster.client.find("secrets", cluster.namespace, unused)
    assert main(["keys", "prune", "--delete", *flags]) == 0
    assert capsys.readouterr().out == f"{cluster.namespace}/{unused} deleted\n"
    assert cluster.client.find("secrets", cluster.namespace, unused) is None
    for name in (KEYS_SECRET, "mine", "azureml-fe-keys-by-hand"):
        assert cluster.client.find("secrets", cluster.namespace, name), name
    assert main(["keys", "prune"]) == 2


def test_imported_keys_are_accepted_and_others_stay_until_they_are_replaced(
    cluster: Cluster, routers: RouterStarter, model_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router = routers.start()
    flags = ["--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace]
    exported = tmp_path / "credentials.json"
    exported.touch(0o600)

    def run_import(primary: str, secondary: str, *more: str) -> tuple[int, str, str]:
        exported.write_text(json.dumps({"primaryKey": primary, "secondaryKey": secondary}))
        code = main(["keys", "import", "iris", str(exported), *flags, *more])
        output = capsys.readouterr()
        assert primary not in output.out + output.err
        return code, output.out, output.err

    def accepts(key: str) -> bool:
        return router.score("iris", Authorization=f"Bearer {key}").status == 200

    first, second, third = (f"azure-key-{number}-0123456789" for number in "123")
    stored_in = f"Secret {cluster.namespace}/{KEYS_SECRET}"
    stored = f"iris: keys stored in {stored_in}\n"
    early = "azureml-fe: there is no service iris yet; it will have these keys\n"
    assert run_import(first, second) == (0, stored, early)
    deploy_model(cluster, model_port, auth_enabled="true")
    wait_until(lambda: accepts(first) and accepts(second), "the imported keys to be accepted")
    assert run_import(first, second) == (0, f"iris: {stored_in} has these keys already\n", "")
    code, output, error = run_import(third, second)
    assert (code, output) == (2, "")
    assert error.startswith(f"azureml-fe: {stored_in}: SERVICE = 'iris': has other keys, which its clients may use;")
    assert key_of_iris(cluster) == first
    assert run_import(third, second, "--replace") == (0, stored, "")
    wait_until(lambda: accepts(third) and not accepts(first), "the new key to be accepted")
    assert not router.log_lines("keys created")
    cluster.client.delete("deployments", cluster.namespace, "iris")
    assert main(["keys", "prune", *flags]) == 0
    assert capsys.readouterr().out == ""
    assert not any(key in router.log for key in (first, second, third))


def test_imported_keys_complete_a_secret_and_replace_generated_ones(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace]
    keys = tmp_path / "keys"
    keys.write_text("first-key-0123456789\tsecond-key-0123456789\n")
    cluster.create_deployment("iris", annotations={"azureml-fe/keys-secret": "mine"})
    mine = {"metadata": {"name": "mine"}, "stringData": {"primaryKey": "first-key-0123456789", "other": "kept"}}
    cluster.client.create("secrets", cluster.namespace, mine)
    assert main(["keys", "import", "iris", str(keys), *flags]) == 0
    secret = cluster.client.get("secrets", cluster.namespace, "mine")
    values = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
    assert values == {"primaryKey": "first-key-0123456789", "secondaryKey": "second-key-0123456789", "other": "kept"}
    assert secret["metadata"]["labels"]["isazuremlapp"] == "true"

    cluster.create_deployment("resnet")
    assert main(["keys", "regenerate", "resnet", "--key", "primary", *flags]) == 0
    assert main(["keys", "import", "resnet", str(keys), *flags, "--replace", "--output", "json"]) == 0
    cluster.client.delete("deployments", cluster.namespace, "resnet")
    capsys.readouterr()
    assert main(["keys", "prune", *flags]) == 0
    assert capsys.readouterr().out == ""

    cluster.create_deployment("open", annotations={"azureml-fe/auth-enabled": "false"})
    assert main(["keys", "import", "open", str(keys), *flags]) == 2
    assert "this one has no keys" in capsys.readouterr().err
    assert main(["keys", "import", "mnist", str(keys), *flags[:2]]) == 2
    assert "in all namespaces, or give --namespace NAME once" in capsys.readouterr().err
    assert main(["keys", "import", f"{cluster.namespace}/mnist", str(keys), *flags[:2]]) == 0
    assert capsys.readouterr().out.endswith(f"keys stored in Secret {cluster.namespace}/azureml-fe-keys-mnist\n")


def test_keys_are_imported_with_the_permissions_of_the_user(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key-0123456789\tsecond-key-0123456789\n")
    cluster.create_deployment("iris")
    cluster.create_service_account("reader")
    rules = [("apps", "deployments", "list"), ("", "secrets", "get"), ("", "configmaps", "get")]
    cluster.grant(
        "reader", [{"apiGroups": [group], "resources": [name], "verbs": [verb]} for group, name, verb in rules]
    )
    kubeconfig = str(cluster.write_kubeconfig("reader"))
    assert (
        main(["keys", "import", "iris", str(keys), "--kubeconfig", kubeconfig, "--namespace", cluster.namespace]) == 1
    )
    assert "403" in capsys.readouterr().err
    assert cluster.client.find("secrets", cluster.namespace, KEYS_SECRET) is None


def test_leader_scales_by_the_load_of_another_router_and_writes_only_the_scale(
    cluster: Cluster, proxy: FaultProxy, model_port: int, tmp_path: Path
) -> None:
    with starting_routers(cluster, tmp_path, proxy.access) as routers:
        first, second = routers.start(), routers.start()
        wait_until(lambda: first.metric("leader") + second.metric("leader") == 1, "a leader")
        wait_until(
            lambda: first.metric("peers", standing="live") == second.metric("peers", standing="live") == 1,
            "a link between the routers",
        )
        assert first.metric("peers_unencrypted") == second.metric("peers_unencrypted") == 0
        deploy_model(cluster, model_port, autoscale_max_replicas="4")
        wait_until(lambda: second.score("iris").status == 200, "a response of the new model")
        follower = second if first.leads else first
        with follower.load("iris", clients=8, pause=0.0):
            wait_until(lambda: cluster.desired_replicas("iris") == 4, "more replicas")
    writes = [record for record in proxy.records if record.method == "PATCH" and "deployments" in record.path]
    assert writes
    assert all(record.path.endswith("/deployments/iris/scale") for record in writes)
    assert all(record.status in (200, 409) for record in writes)


def test_another_router_leads_at_once_after_the_leader_stops(cluster: Cluster, routers: RouterStarter) -> None:
    first, second = routers.start(), routers.start()
    wait_until(lambda: first.leads or second.leads, "a leader")
    leader, other = (first, second) if first.leads else (second, first)
    assert leader.stop() == 0
    wait_until(lambda: other.leads, "the other router to lead")
    (line,) = [line for line in other.log_lines("leader") if line["leads"]]
    assert line["term"] == 1


def test_another_router_leads_before_the_lease_of_a_killed_leader_expires(
    cluster: Cluster, routers: RouterStarter
) -> None:
    first, second = routers.start(), routers.start()
    wait_until(lambda: first.leads or second.leads, "a leader")
    leader, other = (first, second) if first.leads else (second, first)
    leader.kill()
    killed_at = time.monotonic()
    wait_until(lambda: other.leads, "the other router to lead")
    assert time.monotonic() - killed_at < LEASE_SECONDS  # its port refuses connections, so it has ended


def test_store_that_hangs_behind_open_watches_is_reported(cluster: Cluster, proxy: FaultProxy, tmp_path: Path) -> None:
    with starting_routers(cluster, tmp_path, proxy.access) as routers:
        router = routers.start()
        wait_until(lambda: router.leads, "a leader")
        assert router.metric("api_staleness_seconds", resource="leases") == 0
        timeout = failure_status(500, "InternalError", "etcdserver: request timed out")
        with proxy.fault(lambda record: record.method == "PUT", status=500, body=timeout):
            wait_until(lambda: b"the Lease cannot be written" in router.readiness().body, "a warning")
            response = router.readiness()
            assert (response.status, b"etcdserver: request timed out" in response.body) == (200, True)
            assert router.metric("api_staleness_seconds", resource="leases") > 0
            assert router.metric("api_staleness_seconds", resource="pods") == 0
        wait_until(lambda: b"Lease" not in router.readiness().body, "the end of the warning")
        assert router.metric("api_staleness_seconds", resource="leases") == 0
        assert len(router.log_lines("the Lease cannot be written")) == 1


def test_refused_scaling_is_reported_and_retried(
    cluster: Cluster, proxy: FaultProxy, model_port: int, tmp_path: Path
) -> None:
    with starting_routers(cluster, tmp_path, proxy.access) as routers:
        router = routers.start()
        deploy_model(cluster, model_port, autoscale_min_replicas="2")
        refused = failure_status(403, "Forbidden", "exceeded quota: models")
        with proxy.fault(lambda record: record.path.endswith("/scale"), status=403, body=refused):
            event = wait_for_event(cluster, "iris", "ScalingRefused")
            assert event["message"] == "cannot change 1 to 2 replicas: 403 Forbidden: exceeded quota: models"
        wait_until(lambda: cluster.desired_replicas("iris") == 2, "more replicas")
        assert router.metric("api_requests_total", verb="patch", code="403") > 0


def test_ejected_pod_is_reported_by_an_event(cluster: Cluster, routers: RouterStarter, model_port: int) -> None:
    class ClosesConnections(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65_536)

    with socketserver.ThreadingTCPServer(("127.0.0.2", model_port), ClosesConnections) as broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        router = routers.start()
        deploy_model(cluster, model_port, num_replicas="2", replicas=2, replica_max_concurrent_requests="0")
        cluster.create_model_pod("iris", "iris-abc-2", "127.0.0.2")
        wait_until(lambda: router.metric("replicas", service="iris", state="ready") == 2, "both pods to be ready")
        with router.load("iris"):
            event = wait_for_event(cluster, "iris", "ReplicaEjected")
            wait_until(lambda: router.metric("replicas_ejected", service="iris") == 1, "ejected pod in the metrics")
        broken.shutdown()
    assert event["message"].startswith("pod iris-abc-2 gets no requests for a while: ")
    assert len(cluster.list_events("iris", reason="ReplicaEjected")) >= 1


def test_pod_with_a_bad_certificate_becomes_ready_without_a_restart(
    cluster: Cluster, routers: RouterStarter, tmp_path: Path
) -> None:
    authority = trustme.CA()
    pair = issue(authority)
    mount = SecretMount(tmp_path / "tls", replace(pair, key=issue(authority).key))
    (https_port,) = free_ports("127.0.0.1", 1)
    router = routers.start(
        ready=False, tls_cert_file=mount.certificate, tls_key_file=mount.key, https_port=https_port,
        allow_insecure_connections="false",
    )  # fmt: skip
    event = wait_for_event(cluster, router.name, "CertificateProblem")
    assert event["involvedObject"]["kind"] == "Pod"
    reason = "no usable server certificate: tls_key_file"
    assert event["message"].startswith(reason)
    wait_until(lambda: router.log_lines("serving"), "the start")
    (line,) = router.log_lines("serving")
    router.admin_port = line["admin_port"]
    assert router.readiness().status == 503
    assert reason in router.readiness().body.decode()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ssl.get_server_certificate(("127.0.0.1", https_port))
    mount.update(pair)
    wait_until(lambda: router.readiness().status == 200, "readiness with the new pair")
    assert ssl.get_server_certificate(("127.0.0.1", https_port)).encode() in pair.chain.replace(b"\r", b"")
    assert router.process.poll() is None


def test_router_backs_off_from_a_competing_controller(
    cluster: Cluster, routers: RouterStarter, model_port: int
) -> None:
    router = routers.start(contested_scaling_pause_seconds=1000)
    deploy_model(cluster, model_port, num_replicas="1", replicas=2)
    for _ in range(CONTESTED_WRITES):
        wait_until(lambda: cluster.desired_replicas("iris") == 1, "the router's number")
        cluster.scale("iris", 3, manager="other-autoscaler")
    event = wait_for_event(cluster, "iris", "ScalingContested")
    assert (
        "other-autoscaler has changed the number of replicas from 1 to 3. 3 writes of the router were undone"
        in (event["message"])
    )
    assert router.metric("autoscaler_conflicts", service="iris") == 1
    assert cluster.desired_replicas("iris") == 3


def test_writes_have_the_field_manager_of_the_release_and_do_not_hide_those_of_others_under_it(
    cluster: Cluster, routers: RouterStarter, model_port: int
) -> None:
    routers.start()
    deploy_model(cluster, model_port, num_replicas="1", replicas=2)
    wait_until(lambda: cluster.desired_replicas("iris") == 1, "the router's number")
    manager = f"azureml-fe/{cluster.namespace}/azureml-fe"
    entries = cluster.client.get("deployments", cluster.namespace, "iris")["metadata"]["managedFields"]
    assert [each["manager"] for each in entries if each.get("subresource") == "scale"] == [manager]
    cluster.scale("iris", 3, manager=manager)
    event = wait_for_event(cluster, "iris", "ReplicasSetByOther")
    assert event["message"].startswith(f"{manager} has changed the number of replicas from 1 to 3.")
    wait_until(lambda: cluster.desired_replicas("iris") == 1, "the router's number again")


def test_scale_to_the_same_number_by_another_manager_is_no_conflict(
    cluster: Cluster, routers: RouterStarter, model_port: int
) -> None:
    router = routers.start()
    deploy_model(cluster, model_port, num_replicas="2")
    wait_until(lambda: cluster.desired_replicas("iris") == 2, "the router's number")
    cluster.scale("iris", 2, manager="someone")
    change = {"metadata": {"annotations": {"azureml-fe/num-replicas": "3"}}}
    cluster.client.patch("deployments", cluster.namespace, "iris", change)
    wait_until(lambda: cluster.desired_replicas("iris") == 3, "the router's next number")
    assert cluster.list_events("iris", reason="ReplicasSetByOther") == []
    assert router.metric("autoscaler_conflicts", service="iris") == 0


def test_scaling_is_paused_until_a_time(cluster: Cluster, routers: RouterStarter, model_port: int) -> None:
    router = routers.start()
    deploy_model(cluster, model_port, autoscale_min_replicas="3", scaling_paused_until="2999-01-01T00:00Z")
    event = wait_for_event(cluster, "iris", "ScalingPaused", kind="Normal")
    assert event["message"] == "the router does not change the number of replicas until 2999-01-01T00:00:00+00:00"
    cluster.scale("iris", 2)
    deploy_model(cluster, model_port, "other", autoscale_min_replicas="2")
    wait_until(lambda: cluster.desired_replicas("other") == 2, "scaling of another model")
    assert cluster.desired_replicas("iris") == 2, "the number that somebody else has set"
    assert router.score("iris").status == 200
    assert router.metric("autoscaler_conflicts", service="iris") == 0
    until = (datetime.now(UTC) + timedelta(seconds=2)).isoformat(timespec="seconds")
    change = {"metadata": {"annotations": {"azureml-fe/scaling-paused-until": until}}}
    cluster.client.patch("deployments", cluster.namespace, "iris", change)
    wait_until(lambda: cluster.desired_replicas("iris") == 3, "scaling after the pause")


def test_check_prints_services_and_problems(
    cluster: Cluster, model_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["check", "--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace]
    deploy_model(cluster, model_port)
    assert main(command) == 0
    assert capsys.readouterr().out == (
        f"service iris: namespace {cluster.namespace}, no authentication\n"
        "  version default: 100 % of traffic; Deployment iris; 1 of 1 replicas ready; 600 s to drain, but 5 s in a "
        "rolling update\n"
    )
    deploy_model(cluster, model_port, "other", scoring_timeout_ms="x", auth_enabled="true")
    assert main(command) == 2
    errors = capsys.readouterr().err
    assert "azureml-fe: service other: Secret azureml-fe-keys-other is missing, so there are no keys yet\n" in errors
    assert "service other: SettingsRefused: azureml-fe/scoring-timeout-ms = 'x': must be" in errors
    assert f" (Deployment {cluster.namespace}/other)\n" in errors
    deploy_model(cluster, model_port, "streams", replica_drain_seconds="90")
    assert main(command) == 2
    assert (
        "service streams: GracePeriodTooShort: terminationGracePeriodSeconds = 5 is below "
        "azureml-fe/replica-drain-seconds = 90"
    ) in capsys.readouterr().err
    cluster.create_service_account("nobody")
    assert (
        main(["check", "--kubeconfig", str(cluster.write_kubeconfig("nobody")), "--namespace", cluster.namespace]) == 1
    )
    assert "API request failed: 403 Forbidden" in capsys.readouterr().err
