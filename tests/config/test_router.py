"""Settings of the router: defaults, precedence of sources, and rejected values."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from router.config.router import ROUTER_SETTINGS, RouterSettings, environment_name, flag_name, load_settings
from router.config.schema import SettingKind, SettingsError

SETTING_NAMES = [setting.name for setting in ROUTER_SETTINGS]


def load(
    environ: Mapping[str, str] | None = None,
    file: Mapping[str, object] | None = None,
    flags: Mapping[str, object] | None = None,
) -> RouterSettings:
    return load_settings(environ={"XDG_STATE_HOME": "/state"} | dict(environ or {}), file=file, flags=flags)


def error_text(
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
        http2="off",
        http2_max_streams=100,
        trusted_proxies=(),
        peer_tls="preferred",
        peer_tls_cert_file=None,
        peer_tls_key_file=None,
        peer_tls_ca_file=None,
        admin_host="127.0.0.1",
        admin_port=9090,
        admin_hosts=(),
        peer_port=9091,
        workers=None,
        state_dir=Path("/state/azureml-fe"),
        log_level="info",
        access_log=0.0,
        log_exception_messages=False,
        traces="off",
        otlp_endpoint="http://127.0.0.1:4318",
        trace_sample_ratio=0.01,
        metrics_push="off",
        metrics_push_seconds=60,
        app_insights_connection_string_file=None,
        app_insights_sample_ratio=1,
        server_timing=True,
        azure_connection_string_file=None,
        azure_sas_token_file=None,
        collection_container=None,
        collection_folder=None,
        collection_folder_max_bytes=10 * 2**30,
        collection_log_port=None,
        collection_workspace="",
        collection_flush_seconds=5.0,
        collection_buffer_bytes=67_108_864,
        max_payload_bytes=104_857_600,
        max_head_bytes=65_536,
        max_headers=100,
        max_client_connections=20_000,
        max_connections_per_client_address=0,
        client_head_timeout_seconds=10,
        client_body_timeout_seconds=30,
        body_min_rate_bytes=500,
        request_buffer_bytes=33_554_432,
        response_buffer_bytes=33_554_432,
        buffer_budget_bytes=67_108_864,
        client_idle_timeout_seconds=75,
        max_connection_age_seconds=3600,
        max_connection_requests=10_000,
        balance_connections=True,
        connect_timeout_ms=2000,
        tcp_keepalive_seconds=60,
        client_tcp_user_timeout_seconds=60,
        replica_tcp_user_timeout_seconds=330,
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
        self_scaling_throttled_percent=5,
        self_scaling_cpu_steps=(1, 2, 4),
        self_scaling_cpu_threshold_percent=40,
        self_scaling_scale_in_cpu_threshold_percent=30,
        self_scaling_min_pods=1,
        self_scaling_max_pods=10,
        self_scaling_up_cooldown_seconds=15,
        self_scaling_down_cooldown_seconds=300,
        self_scaling_no_room_seconds=300,
        self_scaling_resize_patience_seconds=30,
        mode="normal",
        service_names="name",
        namespaces=(),
        router_name="azureml-fe",
        pod_name=None,
        pod_namespace=None,
        pod_ip=None,
        peer_secret_file="/etc/azureml-fe/peers/secret",
        kubeconfig=None,
        generate_keys=True,
        contested_scaling_pause_seconds=300.0,
        dynamic_config_file=None,
        dynamic_config_map=None,
        dynamic_config_blob=None,
        dynamic_config_allow=(),
        dynamic_config_poll_seconds=5.0,
    )


def test_cluster_purpose_selects_the_defaults_of_self_scaling() -> None:
    dense = load({"AZUREML_FE_CLUSTER_PURPOSE": "DenseProd"})
    assert (dense.self_scaling_enabled, dense.self_scaling_cpu_steps) == (True, (0.5, 1, 2))
    assert (dense.self_scaling_route_time_threshold_ms, dense.self_scaling_max_pods) == (10, 6)
    dev_test = load(file={"cluster_purpose": "DevTest"})
    assert not dev_test.self_scaling_enabled


def test_explicit_value_overrides_the_default_of_the_purpose() -> None:
    settings = load(
        {"AZUREML_FE_CLUSTER_PURPOSE": "DevTest", "AZUREML_FE_SELF_SCALING_ENABLED": "true"},
        {"self_scaling_cpu_steps": "0.5, 1.5,3"},
    )
    assert settings.self_scaling_enabled
    assert settings.self_scaling_cpu_steps == (0.5, 1.5, 3)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"self_scaling_cpu_steps": "2,1"}, "self_scaling_cpu_steps = '2,1': must be ascending numbers above 0"),
        ({"self_scaling_cpu_steps": "0,1"}, "must be a list of ascending numbers above 0"),
        ({"self_scaling_cpu_steps": [0.0001, 1]}, "must be a list of ascending numbers above 0"),
        ({"self_scaling_cpu_steps": [1, True]}, "must be a list of ascending numbers above 0"),
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
def test_invalid_sizes_are_rejected(file: dict[str, object], message: str) -> None:
    assert message in error_text(file=file)


def test_every_field_declares_a_setting() -> None:
    assert sorted(field.name for field in dataclasses.fields(RouterSettings)) == sorted(SETTING_NAMES)


def test_settings_with_a_flag() -> None:
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


def test_precedence_is_flag_then_environment_then_file_then_default() -> None:
    file, environ, flags = {"port": "1"}, {"AZUREML_FE_PORT": "2"}, {"port": 3}
    assert load(environ, file, flags).port == 3
    assert load(environ, file).port == 2
    assert load(file=file).port == 1


@pytest.mark.parametrize("name", SETTING_NAMES)
def test_every_setting_can_be_set_in_file_and_environment(name: str) -> None:
    setting = next(setting for setting in ROUTER_SETTINGS if setting.name == name)
    texts = {
        SettingKind.INT: "2048",
        SettingKind.FLOAT: "2.5",
        SettingKind.BOOL: "false",
        SettingKind.FRACTION: "0.25",
        SettingKind.TEXT: "some-text",
    }
    valid = {
        "http2": "on",
        "http2_max_streams": "500",
        "workers": "3",
        "log_level": "error",
        "log_exception_messages": "true",
        "traces": "otlp",
        "metrics_push": "otlp",
        "otlp_endpoint": "http://collector:4318",
        "collection_container": "https://account.blob.core.windows.net/collected",
        "collection_folder_max_bytes": "4194304",
        "collection_workspace": "/subscriptions/s/workspaces/w",
        "collection_buffer_bytes": "4194304",
        "token_key_rotation_seconds": "86400",
        "cluster_purpose": "DevTest",
        "min_workers": "3",
        "max_workers": "3",
        "self_scaling_cpu_steps": "1,3",
        "self_scaling_min_pods": "2",
        "self_scaling_max_pods": "7",
        "self_scaling_window_seconds": "20",
        "namespaces": "one,two",
        "mode": "observe",
        "service_names": "namespace/name",
        "admin_hosts": "router.example,Metrics_1",
        "compatibility": "v2",
        "scoring_prefix": "/models/",
        "trusted_proxies": "10.0.0.0/8",
        "peer_tls": "required",
        "dynamic_config_allow": "host,auth_enabled",
        "dynamic_config_blob": "settings/dynamic.yaml",
    }
    text = valid.get(name) or texts[setting.kind]
    from_file = load(file={name: text})
    assert from_file == load({environment_name(name): text})
    assert from_file != load()


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("host", ["", "a b", "http://x"]),
        ("port", [-1, 65536, "80a"]),
        ("workers", [0, "none", 1025]),
        ("log_level", ["INFO", "trace"]),
        ("router_name", ["Router", "r" * 54, "azureml-fe-release"]),
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
def test_value_outside_its_limits_is_rejected(name: str, bad: list[object]) -> None:
    for raw in bad:
        assert f"router section: {name}" in error_text(file={name: raw})


def test_error_has_the_source_of_the_value() -> None:
    assert error_text({"AZUREML_FE_PORT": "x"}) == (
        "environment AZUREML_FE_PORT: port = 'x': must be a whole number from 0 to 65535"
    )
    assert error_text(flags={"admin_port": "x"}).startswith("flag --admin-port: admin_port = 'x': must be")
    assert error_text(file={"prot": 1}) == "router section: prot: no such setting; did you mean port?"


def test_error_of_an_unknown_variable_does_not_contain_its_value() -> None:
    message = error_text({"AZUREML_FE_WORKER": "s3cret"})
    assert message == "environment: AZUREML_FE_WORKER: no such setting; did you mean AZUREML_FE_WORKERS?"


def test_variables_without_the_prefix_are_ignored() -> None:
    assert load({"PATH": "/bin", "AZUREML_MODEL_DIR": "/model", "PORT": "x"}) == load()


def test_service_variables_of_kubernetes_are_ignored() -> None:
    """Kubernetes sets variables for each Service. Those of a Service named `azureml-fe` have the router's prefix."""
    service_variables = {
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
    assert load(service_variables) == load()


def test_client_and_admin_ports_must_differ() -> None:
    assert error_text(flags={"port": 9090}) == "admin_port = 9090: must differ from port"
    assert load(flags={"port": 0, "admin_port": 0}).admin_port == 0
    assert load(flags={"port": 9090, "host": "10.0.0.1"}).port == 9090


@pytest.mark.parametrize(
    "networks", [[], ["10.0.0.0/8"], ["192.0.2.7", "2001:db8::/32"], ["::ffff:10.0.0.0/104"], ["0.0.0.0/0", "::/0"]]
)
def test_trusted_proxies_are_networks(networks: list[str]) -> None:
    assert load(file={"trusted_proxies": networks}).trusted_proxies == tuple(networks)
    assert load({"AZUREML_FE_TRUSTED_PROXIES": ", ".join(networks)}).trusted_proxies == tuple(networks)


@pytest.mark.parametrize("network", ["10.0.0.0/33", "ingress", "10.0.0", "10.0.0.1:80", "2001:db8::/129", "*", " "])
def test_invalid_trusted_proxies_are_rejected(network: str) -> None:
    text = error_text(file={"trusted_proxies": ["10.0.0.0/8", network]})
    assert repr(network) in text
    assert text.endswith("networks such as 10.0.0.0/8 or fd00::/8, or single addresses")


def test_trusted_proxies_with_host_bits_are_rejected() -> None:
    assert "single addresses (10.0.0.1/8 has host bits set)" in error_text(file={"trusted_proxies": ["10.0.0.1/8"]})


def test_state_dir_is_resolved_against_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert load_settings(environ={}).state_dir == Path("/home/me/.local/state/azureml-fe")
    assert load({"XDG_STATE_HOME": "relative"}).state_dir == Path("/home/me/.local/state/azureml-fe")
    assert load(file={"state_dir": "~/s"}).state_dir == Path("/home/me/s")
    assert load(flags={"state_dir": "here"}).state_dir == Path("here")
    assert "state_dir" in error_text(file={"state_dir": "~no-such-user/s"})


def test_compatibility_selects_the_scoring_prefix() -> None:
    assert load(flags={"compatibility": "v2"}).scoring_prefix == "/api/v1/endpoint/"
    assert load(flags={"compatibility": "v2", "scoring_prefix": "/models/"}).scoring_prefix == "/models/"
