"""The chart's router pods: termination, permissions, scheduling, settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.cluster.kubernetes.pod_resources import CPU_LIMIT_ANNOTATION
from router.cluster.local.config_file import load_router_file
from router.config.router import ENVIRONMENT_PREFIX, ROUTER_SETTINGS, SERVE_DEFAULTS, environment_name, load_settings
from router.config.service_settings import VERSION_SETTINGS
from router.peers.tls import peer_tls
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


def test_grace_period_covers_the_whole_shutdown(objects: Any) -> None:
    pod = pod_of(objects)
    command = container_of(objects)["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    settings = router_yaml(objects)["router"]
    shutdown_seconds = int(command[1]) + settings["shutdown_delay_seconds"] + settings["drain_seconds"]
    assert pod["terminationGracePeriodSeconds"] >= shutdown_seconds + 15


def test_drain_is_longer_than_any_scoring_timeout() -> None:
    (longest,) = [setting.maximum for setting in VERSION_SETTINGS if setting.name == "scoring_timeout_ms"]
    assert router_yaml(render(smallest()))["router"]["drain_seconds"] > longest / 1000
    (idle,) = [
        int(text)
        for name, text in render(smallest())["Service", "azureml-fe"]["metadata"]["annotations"].items()
        if name.endswith("tcp-idle-timeout")
    ]
    assert idle * 60 > longest / 1000


def test_rolling_update_keeps_all_pods_available(objects: Any) -> None:
    strategy = objects["Deployment", "azureml-fe"]["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def test_pods_have_minimal_privileges(objects: Any) -> None:
    for pod in (pod_of(objects), objects["Pod", "azureml-fe-test"]["spec"]):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert (context["runAsUser"], context["runAsGroup"]) == (10001, 10001)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
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
    assert 'ENTRYPOINT ["tini", "--", "azureml-fe"]' in DOCKERFILE
    container = container_of(objects)
    assert container["args"] == ["serve"]
    state = re.search(r"AZUREML_FE_STATE_DIR=(\S+)", DOCKERFILE)
    assert state
    assert state[1] in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_only_the_router_can_read_mounted_secrets(objects: Any) -> None:
    pod = pod_of(objects)
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"]
    modes = {volume["name"]: volume["secret"]["defaultMode"] for volume in pod["volumes"] if "secret" in volume}
    assert set(modes.values()) == {0o440}


def test_container_ports_match_the_settings(objects: Any) -> None:
    defaults = {setting.name: setting.default for setting in ROUTER_SETTINGS}
    expected = {"http": defaults["port"], "admin": defaults["admin_port"], "peers": defaults["peer_port"]}
    expected["https"] = defaults.get("https_port", 8443)
    if "collection_log_port" in router_yaml(objects)["router"]:
        expected["collection"] = router_yaml(objects)["router"]["collection_log_port"]
    ports = {port["name"]: port["containerPort"] for port in container_of(objects)["ports"]}
    assert ports.items() <= expected.items()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container_of(objects)[probe]["httpGet"]["port"] == "admin"
    assert container_of(objects)["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container_of(objects)["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_settings_in_manifests_exist(objects: Any) -> None:
    names = {entry["name"] for entry in container_of(objects)["env"]}
    known = {environment_name(name) for name in SETTINGS} | {"AZUREML_FE_CONFIG"}
    assert {name for name in names if name.startswith(ENVIRONMENT_PREFIX)} <= known
    assert set(router_yaml(objects)["router"]) <= SETTINGS


def test_router_loads_its_rendered_settings(objects: Any, tmp_path: Path) -> None:
    """Parses the mounted file and the environment with the router's own code."""
    (tmp_path / "router.yaml").write_text(objects["ConfigMap", "azuremlfeconfig"]["data"]["router.yaml"])
    file, issuers = load_router_file(tmp_path / "router.yaml")
    fields = {"metadata.name": "azureml-fe-abc", "metadata.namespace": "azureml", "status.podIP": "10.0.0.1"}
    environment = {
        entry["name"]: entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container_of(objects)["env"]
    }
    loaded = load_settings(environ=environment, file=file, defaults=SERVE_DEFAULTS)
    config = router_yaml(objects)
    assert loaded.drain_seconds == config["router"]["drain_seconds"]
    assert loaded.allows_plain_http is config["router"]["allow_insecure_connections"]
    assert loaded.cluster_purpose == config["router"]["cluster_purpose"]
    assert ",".join(loaded.namespaces) == config["router"].get("namespaces", "")
    assert set(issuers) == set(config.get("token_issuers", ()))
    assert (loaded.host, loaded.admin_host) == ("::", "::")


def test_links_between_pods_are_encrypted(objects: Any) -> None:
    config = router_yaml(objects)["router"]
    settings = load_settings(environ={}, file=config, defaults=SERVE_DEFAULTS)
    mounted = settings.peer_tls_cert_file is not None
    assert mounted is ("peers-tls" in [volume["name"] for volume in pod_of(objects)["volumes"]])
    assert settings.peer_tls == "preferred"
    if not mounted:
        assert peer_tls(settings, 0.0).links.pinned is not None


def test_off_is_rendered_as_text() -> None:
    switchable = [each for each in ROUTER_SETTINGS if "off" in each.choices]
    values = {each.name: False for each in switchable}
    config = router_yaml(render(smallest(router=values)))["router"]
    assert {name: config[name] for name in values} == dict.fromkeys(values, "off")


def test_links_between_pods_can_require_encryption() -> None:
    config = router_yaml(render(smallest(router={"peer_tls": "required"})))["router"]
    pinned = peer_tls(load_settings(environ={}, file=config, defaults=SERVE_DEFAULTS), 0.0).links.pinned
    assert pinned is not None
    assert pinned.required


def test_files_named_by_settings_are_mounted(objects: Any) -> None:
    container = container_of(objects)
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    files = [entry["value"] for entry in container["env"] if entry.get("value", "").startswith("/")]
    files += [text for name, text in router_yaml(objects)["router"].items() if name.endswith("_file")]
    assert files
    assert {file.rpartition("/")[0] for file in files} <= mounts


def test_router_settings_are_rendered_unchanged() -> None:
    values = values_file("production")
    config = router_yaml(render(values))
    assert values["router"].items() <= config["router"].items()
    assert "209715200" in texts(values)["configmap.yaml"]  # and not 2.097152e+08, which the router rejects
    assert config["router"]["namespaces"] == "models,more-models"
    issuers = {"corp": {"issuer": "https://login.example.com", "audience": "api://models/{service}"}}
    assert router_yaml(render(smallest(tokenIssuers=issuers)))["token_issuers"] == issuers
    assert "token_issuers" not in router_yaml(render(smallest()))


def test_changed_setting_rolls_the_pods() -> None:
    def annotations(**router: Any) -> Any:
        return render(smallest(router=router))["Deployment", "azureml-fe"]["spec"]["template"]["metadata"][
            "annotations"
        ]

    assert annotations() == annotations()
    assert annotations() != annotations(log_level="debug")


@pytest.mark.parametrize("cpu", ["2", "1500m", 0.5, 3])
def test_pods_have_their_cpu_limit_as_an_annotation(cpu: object) -> None:
    objects = render(smallest(resources={"limits": {"cpu": cpu}}))
    annotations = objects["Deployment", "azureml-fe"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations[CPU_LIMIT_ANNOTATION] == str(cpu)


def test_pods_spread_over_zones_and_nodes(objects: Any) -> None:
    constraints = pod_of(objects)["topologySpreadConstraints"]
    assert [each["topologyKey"] for each in constraints] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    labels = objects["Deployment", "azureml-fe"]["spec"]["template"]["metadata"]["labels"]
    assert all(each["labelSelector"]["matchLabels"].items() <= labels.items() for each in constraints)


def test_own_spread_constraints_replace_the_default() -> None:
    own = [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]
    assert pod_of(render(smallest(topologySpreadConstraints=own)))["topologySpreadConstraints"] == own


def test_scheduling_values() -> None:
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


def test_initial_pods_equal_the_self_scaling_minimum() -> None:
    values = smallest(router={"self_scaling_min_pods": 5})
    assert render(values)["Deployment", "azureml-fe"]["spec"]["replicas"] == 5
    assert "self_scaling_min_pods" not in router_yaml(render(values_file("devtest")))["router"]
