"""Adoption of services of Azure ML, with two router pods, Azure ML's router, and a user who has no more permissions
than the documented ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from router.cli.main import main
from router.cluster.kubernetes.adoption.record import KEYS_ANNOTATION, RECORD_ANNOTATION
from tests.cluster.kubernetes.azureml import (
    AZURE_MANAGER,
    azure_router,
    deploy_azureml_deployment,
    deploy_azureml_service,
)
from tests.cluster.kubernetes.roles import admission_policy, adopter_rules
from tests.cluster.kubernetes.router_processes import RouterProcess, RouterStarter, deploy_model, starting_routers
from tests.kube_standin.cluster import Cluster, wait_for_event
from tests.kube_standin.fault_proxy import FaultProxy, failure_status
from tests.processes import Response, wait_until

PRIMARY, SECONDARY = "primary-key-of-the-clients", "secondary-key-of-the-clients"
SECRET = "azureml-fe-keys-iris"


@pytest.fixture
def release(cluster: Cluster, tmp_path: Path) -> Iterator[RouterStarter]:
    """A release in the namespace of the models. The chart's admission policy limits its writes."""
    cluster.apply(admission_policy(cluster.namespace))
    with starting_routers(cluster, tmp_path) as starter:
        yield starter


class Operator:
    """A user who may do what adoption needs, and nothing else."""

    def __init__(self, cluster: Cluster, release: RouterStarter, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._cluster = cluster
        cluster.create_service_account("operator")
        cluster.grant("operator", adopter_rules("models"))
        cluster.grant("operator", adopter_rules("own"), release.release.partition("/")[0])
        cluster.grant("operator", adopter_rules("cluster"), everywhere=True)
        self._kubeconfig = cluster.write_kubeconfig("operator")
        self._router_namespace = release.release.partition("/")[0]

    def adopt(self, *arguments: str, code: int = 0) -> str:
        """Run the command, and return what it has printed."""
        flags = ["--kubeconfig", str(self._kubeconfig), "--namespace", self._cluster.namespace]
        assert main(["adopt", *arguments, *flags, "--router-namespace", self._router_namespace]) == code
        output = self._capsys.readouterr()
        assert PRIMARY not in output.out + output.err
        return output.err if code else output.out

    def document(self, *arguments: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.adopt(*arguments, "--output", "json"))
        return document


@pytest.fixture
def operator(cluster: Cluster, release: RouterStarter, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(cluster, release, capsys)


@pytest.fixture
def keys_file(tmp_path: Path) -> str:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"primaryKey": PRIMARY, "secondaryKey": SECONDARY}))
    file.chmod(0o600)
    return str(file)


def start_release(release: RouterStarter) -> list[RouterProcess]:
    pods = [release.start(mode="observe", contested_scaling_pause_seconds=1) for _ in range(2)]
    wait_until(lambda: sum(pod.leads for pod in pods) == 1, "a leader")
    return pods


def score(pod: RouterProcess, service: str = "iris", *, key: str = PRIMARY, **headers: str) -> Response:
    return pod.score(service, b"[1]", Authorization=f"Bearer {key}", **headers)


def statuses(pods: list[RouterProcess], service: str = "iris", *, key: str = PRIMARY, **headers: str) -> list[int]:
    return [score(pod, service, key=key, **headers).status for pod in pods]


TEST = {"azureml-fe-test": "true"}


def is_served_by(pod: RouterProcess, version: str) -> bool:
    return score(pod, **TEST).headers.get("azureml-model-deployment") == version


def metadata_of(cluster: Cluster, name: str = "iris") -> dict[str, Any]:
    metadata: dict[str, Any] = cluster.client.get("deployments", cluster.namespace, name)["metadata"]
    return metadata


def has_written_replicas(pods: list[RouterProcess]) -> bool:
    return any(pod.log_lines("replicas set") for pod in pods)


def holder_of(cluster: Cluster) -> str:
    lease = cluster.client.find("leases", cluster.namespace, "azureml-fe-release")
    return str(lease["spec"].get("holderIdentity", "")) if lease else ""


def test_service_is_adopted_observed_taken_over_and_given_back(
    cluster: Cluster, release: RouterStarter, operator: Operator, keys_file: str, model_port: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    own = {"team": "vision", "azureml-fe/max-queue-length": "7"}
    deploy_azureml_service(cluster, model_port, annotations=own)
    check = ["check", "--kubeconfig", str(cluster.admin), "--namespace", cluster.namespace]
    monkeypatch.setenv("AZUREML_FE_POD_NAMESPACE", release.release.partition("/")[0])
    monkeypatch.setenv("AZUREML_FE_MODE", "observe")
    with azure_router(cluster, "iris", 3) as azure:
        pods = start_release(release)

        # Not adopted: listed, and neither served nor scaled.
        listed = operator.document()
        (service,) = listed["services"]
        assert (service["name"], service["sdk"], service["stage"]) == ("iris", "v1", "annotated")
        assert [need for need in service["needs"] if need.startswith("keys: are missing: --keys-from FILE")]
        (router,) = listed["other_routers"]
        assert (router["namespace"], router["name"], router["pods"]) == (azure.namespace, "azureml-fe-v2", 2)
        assert listed["helm_values"] == [
            {"namespaces": [cluster.namespace], "generateKeys": False, "router": {"mode": "observe"}}
        ]
        assert (statuses(pods), statuses(pods, **TEST)) == ([503, 503], [401, 401])

        # A dry run prints the plan, and changes nothing.
        before = metadata_of(cluster)
        arguments = ["iris", "--keys-from", keys_file, "--set", "autoscale-min-replicas=4"]
        plan = operator.adopt(*arguments, "--dry-run")
        assert f"service {cluster.namespace}/iris: annotated -> observed" in plan
        assert f"Secret {SECRET}: created with the keys in {keys_file}" in plan
        assert f"azureml-fe/mode: observe, azureml-fe/port: {model_port}" in plan
        assert metadata_of(cluster)["annotations"] == before["annotations"]
        assert cluster.client.find("secrets", cluster.namespace, SECRET) is None

        # Adopted: the router serves tests with the clients' keys; Azure ML's router scales.
        done = operator.adopt(*arguments)
        assert plan.replace("--dry-run: nothing was changed\n", "") in done
        assert f"azureml-fe adopt {cluster.namespace}/iris --undo" in done
        wait_until(lambda: statuses(pods, **TEST) == [200, 200], "responses to tests")
        assert statuses(pods, key=SECONDARY, **TEST) == [200, 200]
        assert statuses(pods, key="another-key", **TEST) == [401, 401]
        assert statuses(pods) == [503, 503]
        azure.replicas = 2
        wait_until(lambda: cluster.desired_replicas("iris") == 2, "a write of the other router")
        leader = next(pod for pod in pods if pod.leads)
        wait_until(lambda: leader.log_lines("scaling decision"), "a decision")
        assert {line["applied"] for line in leader.log_lines("scaling decision")} == {False}
        assert cluster.desired_replicas("iris") == 2
        assert (has_written_replicas(pods), cluster.list_events("iris"), holder_of(cluster)) == (False, [], "")
        assert main(check) == 0
        assert "Azure ML's router runs beside this one" in capsys.readouterr().out

        # The router does not take over while the other one runs.
        refusal = operator.adopt("iris", "--take-over", code=2)
        assert f"kubectl -n {azure.namespace} scale deployment/azureml-fe-v2 --replicas=0" in refusal
        azure.stop()
        assert operator.document("iris", "--take-over")["services"][0]["stage"] == "in charge"
        wait_until(lambda: statuses(pods) == [200, 200], "responses to clients")
        wait_until(lambda: cluster.desired_replicas("iris") == 4, "the number of this router")
        wait_until(lambda: holder_of(cluster) == release.release, "the claim on the namespace")
        assert main(check) == 0
        assert capsys.readouterr().err == ""

        # The other router comes back: both write the number, and this one reports it and backs off.
        azure.start()
        event = wait_for_event(cluster, "iris", "ScalingContested")
        assert AZURE_MANAGER in event["message"]
        assert main(check) == 2
        problem = capsys.readouterr().err
        assert f"Azure ML's router runs beside this one: Deployment {azure.namespace}/azureml-fe-v2 (2 pods" in problem
        assert f"last written by {AZURE_MANAGER}" in problem
        azure.stop()
        cluster.scale("iris", 1)

        # The way back.
        operator.adopt("iris", "--undo")
        assert metadata_of(cluster)["annotations"] == before["annotations"]
        assert cluster.client.find("secrets", cluster.namespace, SECRET) is None
        assert cluster.desired_replicas("iris") >= 2  # the number when the router took over
        wait_until(lambda: statuses(pods) == [503, 503], "refusals")
        azure.start()
        wait_until(lambda: cluster.desired_replicas("iris") == 2, "the number of the other router")
        wait_until(lambda: holder_of(cluster) == "", "the end of the claim")
        writes = azure.writes
        wait_until(lambda: statuses(pods) == [503, 503], "refusals")
        assert (cluster.desired_replicas("iris"), azure.writes) == (2, writes)


def test_other_services_of_the_namespace_are_only_listed(
    cluster: Cluster, release: RouterStarter, operator: Operator, keys_file: str, model_port: int
) -> None:
    deploy_azureml_service(cluster, model_port)
    deploy_azureml_service(cluster, model_port, "resnet")
    cluster.create_secret("azureml-fe-keys-resnet", {"primaryKey": PRIMARY})
    pods = start_release(release)
    before = metadata_of(cluster, "resnet")
    operator.adopt("iris", "--keys-from", keys_file, "--set", "autoscale_min_replicas=3")
    operator.adopt("iris", "--take-over")
    wait_until(lambda: statuses(pods) == [200, 200], "responses")
    wait_until(lambda: cluster.desired_replicas("iris") == 3, "the number of replicas")
    assert statuses(pods, "resnet") == [503, 503]
    assert (cluster.desired_replicas("resnet"), metadata_of(cluster, "resnet")) == (2, before)
    stages = {each["name"]: each["stage"] for each in operator.document()["services"]}
    assert stages == {"iris": "in charge", "resnet": "not adopted"}
    leader = next(pod for pod in pods if pod.leads)
    assert "except 1 whose annotation azureml-fe/mode is normal" in leader.readiness().body.decode()


def test_deployments_of_an_endpoint_become_versions_and_keep_their_traffic(
    cluster: Cluster, release: RouterStarter, operator: Operator, keys_file: str, model_port: int
) -> None:
    """As of Azure ML's second SDK: each Deployment has another `azuremlappname`."""
    blue, green = (deploy_azureml_deployment(cluster, model_port, "iris", each) for each in ("blue", "green"))
    pods = start_release(release)
    (service,) = operator.document()["services"]
    assert (service["name"], service["sdk"]) == ("iris", "v2")
    assert {each["name"]: each["version"] for each in service["deployments"]} == {blue: "blue", green: "green"}
    errors = operator.adopt("iris", "--keys-from", keys_file, code=2)
    assert "--traffic: is missing: --traffic blue=PERCENT,green=PERCENT" in errors
    operator.adopt(
        "iris", "--keys-from", keys_file, "--traffic", "blue=0,green=100", "--set", "green:scoring_timeout_ms=7000"
    )
    wait_until(lambda: statuses(pods, **TEST) == [200, 200], "responses to tests")
    for pod in pods:
        wait_until(partial(is_served_by, pod, "green"), "a response of the version with the traffic")
        forced = score(pod, **TEST, **{"azureml-model-deployment": "blue"})
        assert (forced.status, forced.headers["azureml-model-deployment"]) == (200, "blue")
    assert metadata_of(cluster, green)["annotations"]["azureml-fe/scoring-timeout-ms"] == "7000"
    assert "azureml-fe/scoring-timeout-ms" not in metadata_of(cluster, blue)["annotations"]
    operator.adopt("iris", "--take-over")
    wait_until(lambda: statuses(pods) == [200, 200], "responses")
    operator.adopt("iris", "--undo")
    assert not any(
        name.startswith("azureml-fe")
        for deployment in (blue, green)
        for name in metadata_of(cluster, deployment).get("annotations", {})
    )
    wait_until(lambda: statuses(pods) == [404, 404], "the end of the service")


def test_files_of_azure_ml_give_settings_and_traffic(
    cluster: Cluster, operator: Operator, keys_file: str, model_port: int, tmp_path: Path
) -> None:
    blue, green = (deploy_azureml_deployment(cluster, model_port, "iris", each) for each in ("blue", "green"))
    (tmp_path / "endpoint.yml").write_text("name: iris\nauth_mode: key\ntraffic: {blue: 10, green: 90}\n")
    for name, timeout in (("blue", 3000), ("green", 7000)):
        (tmp_path / f"{name}.yml").write_text(
            f"name: {name}\nendpoint_name: iris\ntype: kubernetes\nmodel: azureml:iris:1\n"
            f"environment: azureml:iris:1\nrequest_settings: {{request_timeout_ms: {timeout}}}\ninstance_count: 2\n"
        )
    files = [str(tmp_path / f"{name}.yml") for name in ("endpoint", "blue", "green")]
    flags = [argument for file in files for argument in ("--from", file)]
    errors = operator.adopt("iris", "--keys-from", keys_file, *flags[2:4], code=2)
    assert "--from: the files declare the versions blue; the service has blue, green" in errors
    errors = operator.adopt("iris", "--keys-from", keys_file, *flags[:4], code=2)
    assert "traffic.green = '90': no file has this deployment" in errors
    assert "--from: the files declare" not in errors
    operator.adopt("iris", "--keys-from", keys_file, *flags, "--set", "blue:num_replicas=3")
    of_blue, of_green = (metadata_of(cluster, name)["annotations"] for name in (blue, green))
    assert of_blue["azureml-fe/scoring-timeout-ms"] == "3000"
    assert of_green["azureml-fe/scoring-timeout-ms"] == "7000"
    assert (of_blue["azureml-fe/num-replicas"], of_green["azureml-fe/num-replicas"]) == ("3", "2")
    assert (of_blue["azureml-fe/traffic-percentile"], of_green["azureml-fe/is-default"]) == ("10", "true")
    assert of_blue["azureml-fe/port"] == str(model_port)
    errors = operator.adopt("iris", "--from", str(tmp_path / "missing.yml"), "--traffic", "blue=1", code=2)
    assert "missing.yml" in errors
    assert "the percentages must add up to 100" in errors


def test_keys_of_an_existing_secret_are_used_and_stay(
    cluster: Cluster, release: RouterStarter, operator: Operator, model_port: int
) -> None:
    deploy_azureml_service(cluster, model_port)
    cluster.create_secret("team-keys", {"primaryKey": PRIMARY, "secondaryKey": SECONDARY})
    pods = start_release(release)
    operator.adopt("iris", "--keys-secret", "team-keys")
    wait_until(lambda: statuses(pods, **TEST) == [200, 200], "responses to tests")
    operator.adopt("iris", "--undo")
    assert cluster.client.find("secrets", cluster.namespace, "team-keys") is not None


def test_new_keys_are_made_only_if_they_are_asked_for(
    cluster: Cluster, release: RouterStarter, operator: Operator, model_port: int
) -> None:
    deploy_azureml_service(cluster, model_port)
    pods = start_release(release)
    operator.adopt("iris", "--new-keys")
    secret = cluster.client.get("secrets", cluster.namespace, SECRET)
    assert secret["metadata"]["annotations"] == {KEYS_ANNOTATION: "iris"}
    key = base64.b64decode(secret["data"]["primaryKey"]).decode()
    wait_until(lambda: statuses(pods, key=key, **TEST) == [200, 200], "responses to tests")
    # The router makes none: without keys it is not put in charge.
    cluster.client.delete("secrets", cluster.namespace, SECRET)
    assert f"keys: are missing: the clients' keys must be in Secret {cluster.namespace}/{SECRET}" in operator.adopt(
        "iris", "--take-over", code=2
    )


def test_adoption_can_be_repeated_and_keeps_what_was_there_first(
    cluster: Cluster, operator: Operator, keys_file: str, model_port: int
) -> None:
    deploy_azureml_service(cluster, model_port, annotations={"azureml-fe/max-queue-length": "7"})
    operator.adopt("iris", "--keys-from", keys_file, "--set", "max_queue_length=8")
    assert "nothing to change" in operator.adopt("iris", "--keys-from", keys_file, "--set", "max_queue_length=8")
    operator.adopt("iris", "--set", "max_queue_length=9", "--set", "scoring_timeout_ms=900")
    annotations = metadata_of(cluster)["annotations"]
    assert (annotations["azureml-fe/max-queue-length"], annotations["azureml-fe/scoring-timeout-ms"]) == ("9", "900")
    assert RECORD_ANNOTATION in annotations
    operator.adopt("iris", "--undo")
    assert metadata_of(cluster)["annotations"] == {"azureml-fe/max-queue-length": "7"}
    assert "NAME = 'iris': is not adopted" in operator.adopt("iris", "--undo", code=2)


def test_all_faults_are_reported_at_once_and_nothing_is_changed(
    cluster: Cluster, operator: Operator, keys_file: str, model_port: int, tmp_path: Path
) -> None:
    deploy_azureml_service(cluster, model_port)
    deploy_azureml_deployment(cluster, model_port, "cats", "blue")
    deploy_azureml_deployment(cluster, model_port, "cats", "green")
    before = [metadata_of(cluster, name) for name in ("iris", "blue-cats", "green-cats")]
    errors = operator.adopt(
        "iris", "cats", "dogs", "--traffic", "blue=60,red=30", "--set", "scoring_timout_ms=1", "--set", "mode=normal",
        "--set", "num_replicas=many", "--set", "=", code=2,
    )  # fmt: skip
    for fault in (
        "NAME = 'dogs': must be a service that azureml-fe adopt lists",
        "/iris: keys: are missing",
        "--traffic = 'red': must be versions of the service: blue, green",
        "--traffic = 90: the percentages must add up to 100",
        "azureml-fe/scoring-timout-ms: no such setting; did you mean azureml-fe/scoring-timeout-ms?",
        "--set = 'mode': is what --take-over and --undo change",
        "azureml-fe/num-replicas = 'many': must be a whole number",
        "--set: must be NAME=VALUE",
    ):  # fmt: skip
        assert fault in errors, fault
    assert [metadata_of(cluster, name) for name in ("iris", "blue-cats", "green-cats")] == before

    wrong = tmp_path / "token.json"
    wrong.write_text(json.dumps({"accessToken": "secret-token"}))
    errors = operator.adopt("iris", "--keys-from", str(wrong), "--new-keys", code=2)
    assert "--keys-from: not allowed with --new-keys" in errors
    assert "accessToken: is a token" in errors
    assert "secret-token" not in errors
    errors = operator.adopt("--take-over", "--undo", "--force", "--keys-from", keys_file, "--dry-run", code=2)
    for fault in (
        "--keys-from: not allowed with --take-over",
        "--take-over: not allowed with --undo",
        "NAME: is missing",
    ):
        assert fault in errors
    errors = operator.adopt("iris", "--keys-from", str(tmp_path / "missing"), code=2)
    assert "--keys-from" in errors
    assert "No such file" in errors
    errors = operator.adopt("iris", "cats", "--take-over", "--force", code=2)
    assert errors.count("must be adopted first") == 2


def test_name_of_another_namespace_is_refused(
    cluster: Cluster, release: RouterStarter, operator: Operator, keys_file: str, model_port: int
) -> None:
    namespace = release.release.partition("/")[0]
    claims = {"iris": "elsewhere 2026-11-29T10:00:00Z"}
    cluster.client.create("configmaps", namespace, {"metadata": {"name": "azureml-fe-names"}, "data": claims})
    deploy_azureml_service(cluster, model_port)
    assert "belongs to namespace elsewhere already" in operator.adopt("iris", "--keys-from", keys_file, code=2)


def test_write_that_the_api_server_refuses_changes_nothing(
    cluster: Cluster, release: RouterStarter, keys_file: str, model_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user who may create Secrets, but not change Deployments."""
    deploy_azureml_service(cluster, model_port)
    cluster.create_service_account("viewer")
    rules = [
        rule | {"verbs": [verb for verb in rule["verbs"] if verb != "patch"]}
        for rule in adopter_rules("models")
        if rule["verbs"] != ["patch"]
    ]
    cluster.grant("viewer", rules)
    flags = ["--kubeconfig", str(cluster.write_kubeconfig("viewer")), "--namespace", cluster.namespace]
    assert main(["adopt", "iris", "--keys-from", keys_file, *flags]) == 1
    output = capsys.readouterr()
    assert "403 Forbidden" in output.err
    assert "Deployment iris: azureml-fe/mode: observe" in output.out  # the plan
    assert "Take over" not in output.out
    assert cluster.client.find("secrets", cluster.namespace, SECRET) is None


def test_failure_in_between_is_completed_by_a_repetition(
    cluster: Cluster, proxy: FaultProxy, keys_file: str, model_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy_azureml_service(cluster, model_port)
    cluster.create_service_account("operator")
    cluster.grant("operator", adopter_rules("models"))
    kubeconfig = cluster.write_kubeconfig("operator", proxy.access)
    command = ["adopt", "iris", "--keys-from", keys_file, "--kubeconfig", str(kubeconfig)]
    command += ["--namespace", cluster.namespace]
    refused = failure_status(500, "InternalError", "the store is down")
    with proxy.fault(
        lambda record: record.method == "PATCH" and "dryRun" not in record.query, status=500, body=refused
    ):
        assert main(command) == 1
    assert "the store is down" in capsys.readouterr().err
    assert cluster.client.find("secrets", cluster.namespace, SECRET) is not None
    assert main(command) == 0
    assert metadata_of(cluster)["annotations"]["azureml-fe/mode"] == "observe"


def test_service_that_was_deployed_for_this_router_is_listed_as_such(
    cluster: Cluster, operator: Operator, model_port: int
) -> None:
    deploy_model(cluster, model_port)
    listed = operator.adopt()
    assert f"{cluster.namespace}/iris: Azure ML v1, annotated" in listed
    assert "Values of the chart azureml-fe" in listed
