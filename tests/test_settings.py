"""Settings of the process: their defaults, which source wins, and what is refused."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from router.settings import ROUTER_SETTINGS, RouterSettings, environment_name, flag_name, load_settings
from router.values import Kind, SettingsError

SETTING_NAMES = [setting.name for setting in ROUTER_SETTINGS]


def load(
    environ: Mapping[str, str] | None = None,
    file: Mapping[str, object] | None = None,
    flags: Mapping[str, object] | None = None,
) -> RouterSettings:
    return load_settings(environ={"XDG_STATE_HOME": "/state"} | dict(environ or {}), file=file, flags=flags)


def fault(
    environ: Mapping[str, str] | None = None,
    file: Mapping[str, object] | None = None,
    flags: Mapping[str, object] | None = None,
) -> str:
    with pytest.raises(SettingsError) as caught:
        load(environ, file, flags)
    return str(caught.value)


def test_defaults() -> None:
    assert load() == RouterSettings(
        compatibility="v1",
        scoring_prefix="/api/v1/service/",
        host="127.0.0.1",
        port=8080,
        https_port=8443,
        tls_cert_file=None,
        tls_key_file=None,
        tls_client_ca_file=None,
        allow_insecure_connections=None,
        peer_tls="preferred",
        peer_tls_cert_file=None,
        peer_tls_key_file=None,
        peer_tls_ca_file=None,
        admin_host="127.0.0.1",
        admin_port=9090,
        peer_port=9091,
        workers=None,
        state_dir=Path("/state/azureml-fe"),
        log_level="info",
        access_log=0.0,
        traces="off",
        otlp_endpoint="http://127.0.0.1:4318",
        trace_sample_ratio=0.01,
        server_timing=True,
        max_payload_bytes=104_857_600,
        max_head_bytes=65_536,
        max_headers=100,
        max_client_connections=20_000,
        client_head_timeout_seconds=10,
        client_body_timeout_seconds=30,
        body_min_rate_bytes=500,
        client_idle_timeout_seconds=75,
        connect_timeout_ms=2000,
        replica_idle_connection_seconds=60,
        drain_seconds=60,
        token_issuing=True,
        token_lifetime_seconds=3600,
        token_key_rotation_seconds=2_592_000,
        shutdown_delay_seconds=0,
        cluster_purpose="FastProd",
        min_workers=1,
        max_workers=None,
        self_scaling_enabled=True,
        self_scaling_route_time_threshold_ms=3,
        self_scaling_route_time_percentile=95,
        self_scaling_window_seconds=15,
        self_scaling_busy_cpu_percent=10,
        self_scaling_cpu_steps=(1, 2, 4),
        self_scaling_cpu_threshold_percent=40,
        self_scaling_scale_in_cpu_threshold_percent=30,
        self_scaling_min_pods=1,
        self_scaling_max_pods=10,
        self_scaling_up_cooldown_seconds=15,
        self_scaling_down_cooldown_seconds=300,
        self_scaling_no_room_seconds=300,
        self_scaling_resize_patience_seconds=30,
        namespaces=(),
        pod_name=None,
        pod_namespace=None,
        pod_ip=None,
        peer_secret_file="/etc/azureml-fe/peers/secret",
        kubeconfig=None,
        generate_keys=True,
        contested_scaling_pause_seconds=300.0,
    )


def test_a_clusters_purpose_sets_the_defaults_of_self_scaling() -> None:
    dense = load({"AZUREML_FE_CLUSTER_PURPOSE": "DenseProd"})
    assert (dense.self_scaling_enabled, dense.self_scaling_cpu_steps) == (True, (0.5, 1, 2))
    assert (dense.self_scaling_route_time_threshold_ms, dense.self_scaling_max_pods) == (10, 6)
    test = load(file={"cluster_purpose": "DevTest"})
    assert not test.self_scaling_enabled


def test_what_is_set_goes_before_the_purpose() -> None:
    settings = load(
        {"AZUREML_FE_CLUSTER_PURPOSE": "DevTest", "AZUREML_FE_SELF_SCALING_ENABLED": "true"},
        {"self_scaling_cpu_steps": "0.5, 1.5,3"},
    )
    assert settings.self_scaling_enabled
    assert settings.self_scaling_cpu_steps == (0.5, 1.5, 3)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"self_scaling_cpu_steps": "2,1"}, "self_scaling_cpu_steps = '2,1': must be ascending numbers above 0"),
        ({"self_scaling_cpu_steps": "0,1"}, "must be ascending numbers above 0, at least one"),
        ({"self_scaling_cpu_steps": ""}, "must be ascending numbers above 0, at least one"),
        ({"self_scaling_cpu_steps": "1e3"}, "must be a list of ascending numbers above 0"),
        (
            {"self_scaling_min_pods": "5", "self_scaling_max_pods": "4"},
            "self_scaling_min_pods = 5: must not exceed self_scaling_max_pods, which is 4",
        ),
        ({"min_workers": "3", "max_workers": "2"}, "min_workers = 3: must not exceed max_workers, which is 2"),
        ({"cluster_purpose": "Prod"}, "cluster_purpose = 'Prod': must be one of FastProd, DenseProd, DevTest"),
    ],
)
def test_sizes_that_contradict_each_other(given: dict[str, object], complaint: str) -> None:
    assert complaint in fault(file=given)


def test_every_field_has_a_setting_and_every_setting_a_field() -> None:
    assert sorted(field.name for field in dataclasses.fields(RouterSettings)) == sorted(SETTING_NAMES)


def test_flags_are_the_shared_ones() -> None:
    assert {flag_name(setting.name) for setting in ROUTER_SETTINGS if setting.flag} == {
        "--host",
        "--port",
        "--admin-port",
        "--peer-port",
        "--workers",
        "--min-workers",
        "--max-workers",
        "--log-level",
        "--access-log",
        "--state-dir",
        "--kubeconfig",
    }


def test_flag_overrides_environment_overrides_file_overrides_default() -> None:
    file, environ, flags = {"port": "1"}, {"AZUREML_FE_PORT": "2"}, {"port": 3}
    assert load(environ, file, flags).port == 3
    assert load(environ, file).port == 2
    assert load(file=file).port == 1


@pytest.mark.parametrize("name", SETTING_NAMES)
def test_every_setting_can_come_from_file_and_environment(name: str) -> None:
    setting = next(setting for setting in ROUTER_SETTINGS if setting.name == name)
    texts = {Kind.INT: "2048", Kind.FLOAT: "2.5", Kind.BOOL: "false", Kind.RATE: "0.25", Kind.TEXT: "elsewhere"}
    own = {
        "workers": "3",
        "log_level": "error",
        "traces": "otlp",
        "otlp_endpoint": "http://elsewhere:4318",
        "token_key_rotation_seconds": "86400",
        "cluster_purpose": "DevTest",
        "min_workers": "3",
        "max_workers": "3",
        "self_scaling_cpu_steps": "1,3",
        "self_scaling_min_pods": "2",
        "self_scaling_max_pods": "7",
        "self_scaling_window_seconds": "20",
        "namespaces": "one,two",
        "compatibility": "v2",
        "scoring_prefix": "/models/",
        "peer_tls": "required",
    }
    text = own.get(name) or texts[setting.kind]
    by_file = load(file={name: text})
    assert by_file == load({environment_name(name): text})
    assert by_file != load()


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("host", ["", "a b", "http://x"]),
        ("port", [-1, 65536, "80a"]),
        ("workers", [0, "none", 1025]),
        ("log_level", ["INFO", "trace"]),
        ("access_log", ["sometimes", 2]),
        ("max_payload_bytes", [0, "100MB"]),
        ("max_head_bytes", [1023]),
        ("max_headers", [0]),
        ("client_head_timeout_seconds", [0, "inf"]),
        ("body_min_rate_bytes", [0]),
        ("connect_timeout_ms", [0, 1.5]),
        ("drain_seconds", [-1]),
        ("state_dir", ["", "a\0b"]),
    ],
)
def test_limits(name: str, bad: list[object]) -> None:
    for raw in bad:
        assert f"router section: {name}" in fault(file={name: raw})


def test_errors_name_the_source() -> None:
    assert fault({"AZUREML_FE_PORT": "x"}) == (
        "environment AZUREML_FE_PORT: port = 'x': must be a whole number from 0 to 65535"
    )
    assert fault(flags={"admin_port": "x"}).startswith("flag --admin-port: admin_port = 'x': must be")
    assert fault(file={"prot": 1}) == "router section: prot: no such setting; did you mean port?"


def test_unknown_variable_with_the_prefix_is_an_error_that_does_not_show_its_value() -> None:
    message = fault({"AZUREML_FE_WORKER": "s3cret"})
    assert message == "environment: AZUREML_FE_WORKER: no such setting; did you mean AZUREML_FE_WORKERS?"


def test_other_variables_are_passed_over() -> None:
    assert load({"PATH": "/bin", "AZUREML_MODEL_DIR": "/model", "PORT": "x"}) == load()


def test_variables_that_kubernetes_makes_for_the_routers_own_service_are_passed_over() -> None:
    links = {
        "AZUREML_FE_SERVICE_HOST": "10.0.0.1",
        "AZUREML_FE_SERVICE_PORT": "80",
        "AZUREML_FE_SERVICE_PORT_HTTPS": "443",
        "AZUREML_FE_PORT": "tcp://10.0.0.1:80",
        "AZUREML_FE_PORT_80_TCP": "tcp://10.0.0.1:80",
        "AZUREML_FE_PORT_80_TCP_ADDR": "10.0.0.1",
        "AZUREML_FE_PORT_80_TCP_PORT": "80",
        "AZUREML_FE_PORT_80_TCP_PROTO": "tcp",
        "AZUREML_FE_INT_HTTP_SERVICE_HOST": "10.0.0.2",
        "AZUREML_FE_INT_HTTP_PORT": "tcp://10.0.0.2:9001",
        "AZUREML_FE_INT_HTTP_PORT_9001_TCP_ADDR": "10.0.0.2",
    }
    assert load(links) == load()


def test_clients_and_operators_need_two_ports() -> None:
    assert fault(flags={"port": 9090}) == "admin_port = 9090: must differ from port"
    assert load(flags={"port": 0, "admin_port": 0}).admin_port == 0
    assert load(flags={"port": 9090, "host": "10.0.0.1"}).port == 9090


def test_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert load_settings(environ={}).state_dir == Path("/home/me/.local/state/azureml-fe")
    assert load({"XDG_STATE_HOME": "relative"}).state_dir == Path("/home/me/.local/state/azureml-fe")
    assert load(file={"state_dir": "~/s"}).state_dir == Path("/home/me/s")
    assert load(flags={"state_dir": "here"}).state_dir == Path("here")
    assert "state_dir" in fault(file={"state_dir": "~nobody-of-that-name/s"})


def test_compatibility_changes_where_services_are_found() -> None:
    assert load(flags={"compatibility": "v2"}).scoring_prefix == "/api/v1/endpoint/"
    assert load(flags={"compatibility": "v2", "scoring_prefix": "/models/"}).scoring_prefix == "/models/"
