"""Router pods as the chart makes them: how they end, what they may do, where they run, what they are told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.cluster.local.file import load_router_file
from router.cluster_settings import POD_DEFAULTS
from router.peer_tls import peer_tls
from router.service_settings import VERSION_SETTINGS
from router.settings import ENVIRONMENT_PREFIX, ROUTER_SETTINGS, environment_name, load_settings
from tests.deploy.chart import (
    ROOT,
    VALUE_FILES,
    container_of,
    pod_of,
    render,
    router_yaml,
    smallest,
    texts,
    values_file,
)

DOCKERFILE = (ROOT / "Dockerfile").read_text()
SETTINGS = {setting.name for setting in ROUTER_SETTINGS}


@pytest.fixture(params=VALUE_FILES, ids=lambda path: path.stem)
def objects(request: pytest.FixtureRequest) -> Any:
    path: Path = request.param
    return render(yaml.safe_load(path.read_text()))


def test_a_pod_gets_the_time_that_its_end_takes(objects: Any) -> None:
    pod = pod_of(objects)
    command = container_of(objects)["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    told = router_yaml(objects)["router"]
    of_the_end = int(command[1]) + told["shutdown_delay_seconds"] + told["drain_seconds"]
    assert pod["terminationGracePeriodSeconds"] >= of_the_end + 15


def test_the_longest_scoring_timeout_fits_into_the_drain() -> None:
    (longest,) = [setting.maximum for setting in VERSION_SETTINGS if setting.name == "scoring_timeout_ms"]
    assert router_yaml(render(smallest()))["router"]["drain_seconds"] > longest / 1000
    (idle,) = [
        int(text)
        for name, text in render(smallest())["Service", "azureml-fe"]["metadata"]["annotations"].items()
        if name.endswith("tcp-idle-timeout")
    ]
    assert idle * 60 > longest / 1000


def test_rolling_update_takes_no_pod_before_another_is_ready(objects: Any) -> None:
    strategy = objects["Deployment", "azureml-fe"]["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def test_pods_may_do_nothing_that_they_need_not(objects: Any) -> None:
    for pod in (pod_of(objects), objects["Pod", "azureml-fe-test"]["spec"]):
        its = pod["securityContext"]
        assert its["runAsNonRoot"] is True
        assert (its["runAsUser"], its["runAsGroup"]) == (10001, 10001)
        assert its["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        writable = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
        assert {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")} <= writable
    assert objects["Pod", "azureml-fe-test"]["spec"]["automountServiceAccountToken"] is False


def test_pods_fit_the_image(objects: Any) -> None:
    assert f"USER {pod_of(objects)['securityContext']['runAsUser']}:10001" in DOCKERFILE
    assert 'ENTRYPOINT ["azureml-fe"]' in DOCKERFILE
    container = container_of(objects)
    assert container["args"] == ["serve"]
    state = re.search(r"AZUREML_FE_STATE_DIR=(\S+)", DOCKERFILE)
    assert state
    assert state[1] in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_secrets_are_readable_by_the_router_alone(objects: Any) -> None:
    pod = pod_of(objects)
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    modes = {volume["name"]: volume["secret"]["defaultMode"] for volume in pod["volumes"] if "secret" in volume}
    assert set(modes.values()) == {0o440}


def test_ports_are_the_routers_own(objects: Any) -> None:
    defaults = {setting.name: setting.default for setting in ROUTER_SETTINGS}
    expected = {"http": defaults["port"], "admin": defaults["admin_port"], "peers": defaults["peer_port"]}
    expected["https"] = defaults.get("https_port", 8443)
    ports = {port["name"]: port["containerPort"] for port in container_of(objects)["ports"]}
    assert ports.items() <= expected.items()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container_of(objects)[probe]["httpGet"]["port"] == "admin"
    assert container_of(objects)["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container_of(objects)["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_settings_that_pods_are_given_exist(objects: Any) -> None:
    names = {entry["name"] for entry in container_of(objects)["env"]}
    known = {environment_name(name) for name in SETTINGS} | {"AZUREML_FE_CONFIG"}
    assert {name for name in names if name.startswith(ENVIRONMENT_PREFIX)} <= known
    assert set(router_yaml(objects)["router"]) <= SETTINGS


def test_the_router_takes_what_it_is_given(objects: Any, tmp_path: Path) -> None:
    """The mounted file and the environment, by the code that reads them in a pod."""
    (tmp_path / "router.yaml").write_text(objects["ConfigMap", "azuremlfeconfig"]["data"]["router.yaml"])
    file, issuers = load_router_file(tmp_path / "router.yaml")
    fields = {"metadata.name": "azureml-fe-abc", "metadata.namespace": "azureml", "status.podIP": "10.0.0.1"}
    environment = {
        entry["name"]: entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container_of(objects)["env"]
    }
    taken = load_settings(environ=environment, file=file, defaults=POD_DEFAULTS)
    told = router_yaml(objects)
    assert taken.drain_seconds == told["router"]["drain_seconds"]
    assert taken.plain_http is told["router"]["allow_insecure_connections"]
    assert taken.cluster_purpose == told["router"]["cluster_purpose"]
    assert ",".join(taken.namespaces) == told["router"].get("namespaces", "")
    assert set(issuers) == set(told.get("token_issuers", ()))
    assert taken.admin_host == "0.0.0.0"


def test_links_between_pods_are_encrypted(objects: Any) -> None:
    told = router_yaml(objects)["router"]
    settings = load_settings(environ={}, file=told, defaults=POD_DEFAULTS)
    mounted = settings.peer_tls_cert_file is not None
    assert mounted is ("peers-tls" in [volume["name"] for volume in pod_of(objects)["volumes"]])
    assert settings.peer_tls == "preferred"
    if not mounted:
        assert peer_tls(settings, 0.0).links.agreed is not None


def test_every_setting_that_may_be_off_is_written_as_a_word() -> None:
    may_be_off = [each for each in ROUTER_SETTINGS if "off" in each.choices]
    given = {each.name: False for each in may_be_off}
    told = router_yaml(render(smallest(router=given)))["router"]
    assert {name: told[name] for name in given} == dict.fromkeys(given, "off")


def test_links_may_have_to_be_encrypted() -> None:
    told = router_yaml(render(smallest(router={"peer_tls": "required"})))["router"]
    own = peer_tls(load_settings(environ={}, file=told, defaults=POD_DEFAULTS), 0.0).links.agreed
    assert own is not None
    assert own.required


def test_files_that_settings_name_are_mounted(objects: Any) -> None:
    container = container_of(objects)
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    files = [entry["value"] for entry in container["env"] if entry.get("value", "").startswith("/")]
    files += [text for name, text in router_yaml(objects)["router"].items() if name.endswith("_file")]
    assert files
    assert {file.rpartition("/")[0] for file in files} <= mounts


def test_values_of_settings_reach_the_router_as_they_are() -> None:
    values = values_file("production")
    told = router_yaml(render(values))
    assert values["router"].items() <= told["router"].items()
    assert "209715200" in texts(values)["configmap.yaml"]  # and not 2.097152e+08, which the router refuses
    assert told["router"]["namespaces"] == "models,more-models"
    issuers = {"corp": {"issuer": "https://login.example.com", "audience": "api://models/{service}"}}
    assert router_yaml(render(smallest(tokenIssuers=issuers)))["token_issuers"] == issuers
    assert "token_issuers" not in router_yaml(render(smallest()))


def test_a_changed_setting_rolls_the_pods() -> None:
    def annotations(**router: Any) -> Any:
        return render(smallest(router=router))["Deployment", "azureml-fe"]["spec"]["template"]["metadata"][
            "annotations"
        ]

    assert annotations() == annotations()
    assert annotations() != annotations(log_level="debug")


def test_pods_spread_over_zones_and_nodes(objects: Any) -> None:
    constraints = pod_of(objects)["topologySpreadConstraints"]
    assert [each["topologyKey"] for each in constraints] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    labels = objects["Deployment", "azureml-fe"]["spec"]["template"]["metadata"]["labels"]
    assert all(each["labelSelector"]["matchLabels"].items() <= labels.items() for each in constraints)


def test_own_spreading_replaces_the_charts() -> None:
    own = [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]
    assert pod_of(render(smallest(topologySpreadConstraints=own)))["topologySpreadConstraints"] == own


def test_pods_run_where_values_say() -> None:
    pod = pod_of(render(values_file("production")))
    assert pod["nodeSelector"] == {"agentpool": "routers"}
    assert {each["key"] for each in pod["tolerations"]} == {"ml.azure.com/amlarc", "ml.azure.com/amlarc-system"}
    assert pod["priorityClassName"] == "routers"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert "nodeAffinity" in pod["affinity"]


@pytest.mark.parametrize(("high_availability", "pods"), [(True, 3), (False, 1), ("True", 3), ("False", 1)])
def test_number_of_pods(high_availability: object, pods: int) -> None:
    values = smallest(inferenceRouterHA=high_availability)
    assert render(values)["Deployment", "azureml-fe"]["spec"]["replicas"] == pods
    assert router_yaml(render(values))["router"]["self_scaling_min_pods"] == pods


def test_least_pods_of_the_self_scaler_are_those_installed() -> None:
    values = smallest(router={"self_scaling_min_pods": 5})
    assert render(values)["Deployment", "azureml-fe"]["spec"]["replicas"] == 5
    assert "self_scaling_min_pods" not in router_yaml(render(values_file("devtest")))["router"]
