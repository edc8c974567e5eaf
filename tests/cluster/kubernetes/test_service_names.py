"""Names of services and their namespaces: two routers as processes, both orders of the Deployments, and `names`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.cli.main import main
from tests.cluster.kubernetes.roles import serving_rules
from tests.cluster.kubernetes.router_processes import (
    KEYS_SECRET,
    RouterProcess,
    RouterStarter,
    deploy_model,
    starting_routers,
)
from tests.kube_standin.client import Access
from tests.kube_standin.cluster import ROUTER, Cluster
from tests.kube_standin.fault_proxy import FaultProxy, RecordedRequest, failure_status
from tests.processes import send_request, wait_until

CONFIG_MAP = "azureml-fe-names"


class Teams:
    """Routers that serve the models of two namespaces, neither of which is their own."""

    def __init__(self, cluster: Cluster, routers: RouterStarter, model_port: int) -> None:
        self.cluster = cluster
        self.first, self.second = cluster.create_namespace(), cluster.create_namespace()
        self._routers = routers
        self._model_port = model_port
        for namespace in (self.first, self.second):
            cluster.grant(ROUTER, serving_rules(), namespace)

    def start(self, **settings: Any) -> RouterProcess:
        return self._routers.start(namespaces=f"{self.first},{self.second}", **settings)

    def deploy(self, namespace: str, name: str = "iris", **annotations: Any) -> None:
        """Deploy a model. Its version in responses is its namespace."""
        deploy_model(self.cluster, self._model_port, name, namespace=namespace, version=namespace, **annotations)

    def delete(self, namespace: str, name: str = "iris") -> None:
        self.cluster.client.delete("deployments", namespace, name)
        self.cluster.client.delete("pods", namespace, f"{name}-abc-1", gracePeriodSeconds=0)

    def events(self, namespace: str, reason: str) -> list[str]:
        return [event["message"] for event in self.cluster.list_events("iris", namespace, reason=reason)]

    def claims(self) -> dict[str, str]:
        """Return the namespaces that have names."""
        config_map = self.cluster.client.find("configmaps", self.cluster.namespace, CONFIG_MAP) or {}
        return {name: text.split()[0] for name, text in (config_map.get("data") or {}).items()}

    def command(self, *arguments: str) -> list[str]:
        """Return the arguments of a command of an administrator."""
        return [*arguments, "--kubeconfig", str(self.cluster.admin), "--router-namespace", self.cluster.namespace]


@contextlib.contextmanager
def teams_with(cluster: Cluster, tmp_path: Path, model_port: int, access: Access | None = None) -> Iterator[Teams]:
    with starting_routers(cluster, tmp_path, access) as routers:
        yield Teams(cluster, routers, model_port)


@pytest.fixture
def teams(cluster: Cluster, tmp_path: Path, model_port: int) -> Iterator[Teams]:
    with teams_with(cluster, tmp_path, model_port) as teams:
        yield teams


def served_by(router: RouterProcess, name: str = "iris") -> str:
    """Return the namespace whose model responds, or the status of an error."""
    response = router.score(name)
    return response.headers["azureml-model-deployment"] if response.status == 200 else str(response.status)


def wait_until_served_by(expected: str, *routers: RouterProcess, name: str = "iris") -> None:
    wait_until(lambda: all(served_by(each, name) == expected for each in routers), f"{expected} of {name}")


def wait_for_another_second() -> None:
    """Wait until a new Deployment is younger than all others: its time of creation is in whole seconds."""
    started = int(time.time())
    wait_until(lambda: int(time.time()) > started, "another second")


def is_claim(request: RecordedRequest) -> bool:
    return request.method in ("POST", "PATCH") and "/configmaps" in request.path


@pytest.mark.parametrize("owner_is_first", [True, False])
def test_name_outlives_its_deployment_and_namespace_until_it_is_released(
    teams: Teams, owner_is_first: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    owner, intruder = (teams.first, teams.second) if owner_is_first else (teams.second, teams.first)
    teams.deploy(owner)
    wait_for_another_second()
    teams.deploy(intruder, auth_enabled="true", autoscale_min_replicas="2")
    one, two = teams.start(), teams.start()
    wait_until_served_by(owner, one, two)
    wait_until(lambda: teams.events(intruder, "ServiceNameTaken"), "an Event of the intruder")
    wait_until(lambda: teams.claims() == {"iris": owner}, "the claim")

    teams.delete(owner)
    wait_until_served_by("404", one, two)
    teams.cluster.remove_namespace(owner)
    leader, other = (one, two) if one.leads else (two, one)
    leader.kill()
    wait_until(lambda: other.leads, "another leader")
    teams.deploy(intruder, "resnet", auth_enabled="true")
    wait_until(
        lambda: teams.cluster.client.find("secrets", intruder, "azureml-fe-keys-resnet"), "keys of another model"
    )
    assert teams.cluster.client.find("secrets", intruder, KEYS_SECRET) is None
    assert teams.cluster.desired_replicas("iris", intruder) == 1
    assert served_by(other) == "404"
    assert other.metric("deployment_problems", reason="ServiceNameTaken") == 1
    (problem,) = json.loads(send_request(other.admin_port, "/status.json").body)["problems"]
    headline, message = problem.splitlines()
    assert headline.startswith("service iris: ServiceNameTaken: the name belongs to another namespace")
    assert headline.endswith(f" (Deployment {intruder}/iris)")
    assert message.startswith(f"the name iris has belonged to namespace {owner}")
    assert main(teams.command("check", "--namespace", intruder)) == 2
    assert "service iris: ServiceNameTaken: the name iris has" in capsys.readouterr().err
    assert main(teams.command("keys", "show", "iris", "--namespace", intruder)) == 2
    assert f"the name iris has belonged to namespace {owner}" in capsys.readouterr().err

    assert main(teams.command("names", "release", "iris")) == 0
    assert capsys.readouterr().out == f"iris no longer belongs to namespace {owner}\n"
    wait_until_served_by("401", other)
    wait_until(lambda: teams.cluster.client.find("secrets", intruder, KEYS_SECRET), "keys of the new owner")
    wait_until(lambda: teams.cluster.desired_replicas("iris", intruder) == 2, "the minimum of the new owner")
    assert teams.claims() == {"iris": intruder, "resnet": intruder}
    assert other.metric("deployment_problems", reason="ServiceNameTaken") == 0


def test_deployment_that_comes_back_is_served_again(
    cluster: Cluster, proxy: FaultProxy, model_port: int, tmp_path: Path
) -> None:
    with teams_with(cluster, tmp_path, model_port, proxy.access) as teams:
        one, two = teams.start(), teams.start()
        teams.deploy(teams.first)
        wait_until_served_by(teams.first, one, two)
        teams.delete(teams.first)
        teams.deploy(teams.second)
        wait_until(lambda: teams.events(teams.second, "ServiceNameTaken"), "an Event of the intruder")
        assert [served_by(one), served_by(two)] == ["404", "404"]
        teams.deploy(teams.first)
        wait_until_served_by(teams.first, one, two)
        with proxy.outage():
            assert [served_by(one), served_by(two)] == [teams.first, teams.first]


def test_new_name_is_served_once_its_claim_is_stored_even_if_the_leader_fails_before(
    cluster: Cluster, proxy: FaultProxy, model_port: int, tmp_path: Path
) -> None:
    with teams_with(cluster, tmp_path, model_port, proxy.access) as teams:
        one, two = teams.start(), teams.start()
        teams.deploy(teams.first, "resnet")
        wait_until_served_by(teams.first, one, two, name="resnet")
        leader, other = (one, two) if one.leads else (two, one)
        with proxy.fault(is_claim, hangs=True) as fault:
            teams.deploy(teams.first)
            wait_until(lambda: fault.hit, "the write of the claim")
            assert [served_by(one), served_by(two)] == ["404", "404"]
            assert served_by(other, "resnet") == teams.first
            wait_for_another_second()
            teams.deploy(teams.second)
            leader.kill()
        wait_until_served_by(teams.first, other)
        wait_until(lambda: teams.events(teams.second, "ServiceNameTaken"), "an Event of the younger Deployment")
        assert teams.claims() == {"iris": teams.first, "resnet": teams.first}


def test_refused_claim_is_reported_and_the_name_not_served(
    cluster: Cluster, proxy: FaultProxy, model_port: int, tmp_path: Path
) -> None:
    with teams_with(cluster, tmp_path, model_port, proxy.access) as teams:
        router = teams.start()
        wait_until(lambda: cluster.client.find("configmaps", cluster.namespace, CONFIG_MAP), "the ConfigMap")
        refusal = failure_status(403, "Forbidden", "no permission")
        with proxy.fault(is_claim, status=403, body=refusal):
            teams.deploy(teams.first)
            wait_until(lambda: teams.events(teams.first, "ServiceNameUnclaimed"), "an Event")
            assert "403 Forbidden: no permission" in teams.events(teams.first, "ServiceNameUnclaimed")[-1]
            assert served_by(router) == "404"
            assert router.metric("deployment_problems", reason="ServiceNameUnclaimed") == 1
        wait_until_served_by(teams.first, router)


def test_services_are_served_before_the_first_claims_can_be_stored(
    cluster: Cluster, proxy: FaultProxy, model_port: int, tmp_path: Path
) -> None:
    """As during an upgrade, while a pod of the previous release leads."""
    with teams_with(cluster, tmp_path, model_port, proxy.access) as teams:
        refusal = failure_status(403, "Forbidden", "no permission")
        with proxy.fault(is_claim, status=403, body=refusal):
            teams.deploy(teams.first)
            one, two = teams.start(), teams.start()
            wait_until_served_by(teams.first, one, two)
            wait_until(
                lambda: any(b"another namespace may get the name" in each.readiness().body for each in (one, two)),
                "a warning",
            )
        wait_until(lambda: teams.claims() == {"iris": teams.first}, "the claim")
        assert [served_by(one), served_by(two)] == [teams.first, teams.first]


def test_name_in_use_is_released_by_force_only(teams: Teams, capsys: pytest.CaptureFixture[str]) -> None:
    router = teams.start()
    teams.deploy(teams.first)
    wait_until_served_by(teams.first, router)
    assert main(teams.command("names", "list", "--output", "json")) == 0
    (listed,) = json.loads(capsys.readouterr().out)["names"]
    since = listed.pop("since")
    assert listed == {"name": "iris", "namespace": teams.first, "used": True}
    assert main(teams.command("names", "release", "iris")) == 2
    assert f"is used by a Deployment in namespace {teams.first}" in capsys.readouterr().err
    assert teams.claims() == {"iris": teams.first}
    assert main(teams.command("names", "release", "iris", "--force")) == 0
    wait_until(lambda: teams.claims() == {"iris": teams.first}, "the claim of the only Deployment")
    wait_until_served_by(teams.first, router)
    teams.delete(teams.first)
    wait_until_served_by("404", router)
    capsys.readouterr()
    assert main(teams.command("names", "list")) == 0
    assert capsys.readouterr().out.startswith(f"iris: namespace {teams.first} since {since[:10]}")
    assert main(teams.command("names", "release", "resnet")) == 2
    assert f"NAME = 'resnet': must be a name in the ConfigMap {CONFIG_MAP}" in capsys.readouterr().err


def test_malformed_claim_is_listed_and_released(teams: Teams, capsys: pytest.CaptureFixture[str]) -> None:
    router = teams.start()
    wait_until(lambda: teams.cluster.client.find("configmaps", teams.cluster.namespace, CONFIG_MAP), "the ConfigMap")
    malformed = {"data": {"iris": "?"}}
    teams.cluster.client.patch("configmaps", teams.cluster.namespace, CONFIG_MAP, malformed)
    teams.deploy(teams.first)
    wait_until(lambda: teams.events(teams.first, "ServiceNameTaken"), "an Event")
    assert main(teams.command("names", "list")) == 0
    assert capsys.readouterr().out.startswith("iris: namespace ?")
    assert main(teams.command("names", "release", "iris")) == 0
    wait_until_served_by(teams.first, router)


def obtain_token(teams: Teams, router: RouterProcess, namespace: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return a token for the service of a namespace. Uses its key and both ways to get a token."""
    name = f"{namespace}/iris"
    wait_until(lambda: router.score(name).status == 401, f"service {name}")
    wait_until(lambda: teams.cluster.client.find("secrets", namespace, KEYS_SECRET), "keys")
    assert main(teams.command("keys", "show", name, "--key", "primary")) == 0
    authorization = f"Bearer {capsys.readouterr().out.strip()}"
    path = f"/api/v1/service/{name}/token"
    wait_until(lambda: send_request(router.admin_port, path, b"", Authorization=authorization).status == 200, "a token")
    assert main(teams.command("token", name, "--bare")) == 0
    return capsys.readouterr().out.strip()


def test_names_with_namespaces(teams: Teams, capsys: pytest.CaptureFixture[str]) -> None:
    router = teams.start(service_names="namespace/name")
    namespaces = (teams.first, teams.second)
    for namespace in namespaces:
        teams.deploy(namespace, auth_enabled="false", token_auth_enabled="true")
    tokens = [obtain_token(teams, router, namespace, capsys) for namespace in namespaces]
    for namespace, token in zip(namespaces, tokens, strict=True):
        name = f"{namespace}/iris"
        response = router.score(name, Authorization=f"Bearer {token}")
        assert (response.status, response.headers["azureml-model-deployment"]) == (200, namespace)
        assert json.loads(send_request(router.admin_port, f"/capacity/{name}").body)["service"] == name
        explained = send_request(router.admin_port, f"/explain/{response.headers['x-request-id']}").body
        assert json.loads(explained)["service"] == name
    names = [f"{namespace}/iris" for namespace in namespaces]
    wait_until(lambda: all(router.metric("requests_total", service=name, code="200") == 1 for name in names), "metrics")
    assert router.score(f"{teams.first}/iris", Authorization=f"Bearer {tokens[1]}").status == 401
    assert router.score("iris").body == b"No such path. Scoring: POST /api/v1/service/<namespace>/<name>/score"
    assert teams.claims() == {namespace: namespace for namespace in namespaces}
    assert main(teams.command("keys", "show", "iris", "--namespace", teams.first)) == 2
    assert "with service_names: namespace/name, it is NAMESPACE/NAME" in capsys.readouterr().err
