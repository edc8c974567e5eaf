"""The dynamic configuration: what it may set, its errors, and how it changes services and settings of the router."""

import re
from pathlib import Path
from typing import Any

import pytest

from router.cluster.local.config_file import load_router_file
from router.config.dynamic import DynamicSettings, parse_dynamic_settings
from router.config.dynamic_settings import NEVER_DYNAMIC, POSSIBLE
from router.config.overlay import overlay_service
from router.config.router import ROUTER_SETTINGS, load_sourced_settings
from router.config.schema import SettingsError
from router.config.service import parse_service
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.config.yaml_document import parse_yaml
from router.model.services import Version

OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"


def parse(text: str, *allowed: str) -> DynamicSettings:
    document = parse_yaml(text.encode(), "dynamic.yaml")
    return parse_dynamic_settings(document.values, document.locate, allowed)


def errors_of(text: str, *allowed: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse(text, *allowed)
    return [str(error) for error in caught.value.errors]


def versions_of(mapping: dict[str, Any], text: str) -> dict[str, Version]:
    overlay = parse(text).services["iris"]
    service = parse_service("iris", overlay_service(mapping, overlay))
    return {version.name: version for version in service.versions}


# The parser.


def test_values_are_typed_and_have_their_lines() -> None:
    settings = parse(
        """
router:
  max_payload_bytes: 1000
services:
  iris:
    scoring_timeout_ms: 5000
    versions:
      green: {traffic_percentile: 20}
"""
    )
    assert settings.router == {"max_payload_bytes": 1000}
    assert settings.router.locations == {"max_payload_bytes": "dynamic.yaml, line 3: router"}
    iris = settings.services["iris"]
    assert iris.of_version("green") == {"scoring_timeout_ms": 5000, "traffic_percentile": 20}
    assert iris.of_version("blue") == {"scoring_timeout_ms": 5000}
    assert iris.location(("versions", "green", "traffic_percentile")) == "dynamic.yaml, line 8"
    assert iris.location(("versions", "blue", "scoring_timeout_ms")) == "dynamic.yaml, line 6"
    assert iris.location(("cancellation",)) is None


def test_all_errors_are_reported_with_their_places() -> None:
    errors = errors_of(
        """
router:
  max_payload_bytes: none
  max_paylod_bytes: 5
  scoring_timeout_ms: 5
services:
  iris:
    scoring_timeout_ms: 999999
    primary_key: abc
    versions: {green: {key_headers: api-key}}
  Wrong Name: {}
  empty: 5
other: {}
"""
    )
    lines = (3, 4, 5, 8, 9, 10, 11, 12, 13)
    assert [error.partition(": ")[0] for error in errors] == [f"dynamic.yaml, line {line}" for line in lines]
    text = "\n".join(errors)
    for part in (
        "max_payload_bytes = 'none': must be a whole number", "did you mean max_payload_bytes?",
        "scoring_timeout_ms: no such setting here; it belongs to a service",
        "service iris: scoring_timeout_ms = '999999': must be a whole number from 1 to 300000",
        "service iris: primary_key: not possible in the dynamic configuration",
        "service iris, version green: key_headers: no such setting here; it belongs to the service",
        "must be the name of a service", "must be a mapping of setting names to values", "other: no such setting",
    ):  # fmt: skip
        assert part in text
    assert "abc" not in text


@pytest.mark.parametrize("text", ["", "null", "5", "[]", "router\n", "# only a comment\n"])
def test_document_without_a_mapping_is_an_error(text: str) -> None:
    """An empty file may be one that is being written."""
    assert "must be a mapping with router, services or both" in errors_of(text)[0]


def test_empty_mapping_sets_nothing() -> None:
    assert parse("{}") == DynamicSettings()


@pytest.mark.parametrize(
    "name",
    ["host", "port", "admin_host", "tls_cert_file", "trusted_proxies", "peer_tls", "token_issuing", "otlp_endpoint"],
)
def test_addresses_tls_and_tokens_need_permission(name: str) -> None:
    (error,) = errors_of(f"router: {{{name}: x}}")
    assert f"{name}: not allowed in the dynamic configuration, unless dynamic_config_allow names it" in error
    assert "not allowed" not in str(errors_of(f"router: {{{name}: [[]]}}", name))


@pytest.mark.parametrize(
    "name",
    [
        "auth_enabled", "token_auth_enabled", "forward_authorization", "key_headers", "cors_allowed_origins",
        "keep_underscore_headers", "allowed_methods", "scoring_path",
    ],
)  # fmt: skip
def test_authentication_and_credentials_of_services_need_permission(name: str) -> None:
    (error,) = errors_of(f"services: {{iris: {{{name}: 'true'}}}}")
    assert "not allowed" in error


def test_allowed_setting_is_accepted() -> None:
    settings = parse("{router: {host: '::'}, services: {iris: {auth_enabled: false}}}", "host", "auth_enabled")
    assert settings.router == {"host": "::"}
    assert settings.services["iris"].service == {"auth_enabled": False}


@pytest.mark.parametrize("name", sorted(NEVER_DYNAMIC))
def test_some_settings_are_never_possible(name: str) -> None:
    of_router = {setting.name for setting in ROUTER_SETTINGS}
    text = f"router: {{{name}: x}}" if name in of_router else f"services: {{iris: {{{name}: x}}}}"
    assert "not possible in the dynamic configuration" in errors_of(text, name)[0]
    with pytest.raises(SettingsError, match="dynamic_config_allow"):
        load_sourced_settings(environ={"AZUREML_FE_DYNAMIC_CONFIG_ALLOW": name})


def test_all_settings_are_possible_or_never_possible() -> None:
    names = [setting.name for setting in (*ROUTER_SETTINGS, *SERVICE_SETTINGS, *VERSION_SETTINGS)]
    assert sorted(names) == sorted((*POSSIBLE, *NEVER_DYNAMIC))


def test_no_secret_and_no_path_is_dynamic() -> None:
    for setting in (*ROUTER_SETTINGS, *SERVICE_SETTINGS, *VERSION_SETTINGS):
        assert not (setting.dynamic and (setting.secret or setting.is_path or setting.name in NEVER_DYNAMIC)), setting


def test_unknown_name_in_dynamic_config_allow_is_an_error() -> None:
    with pytest.raises(SettingsError, match="dynamic_config_allow = 'host,hots': must be a list of names"):
        load_sourced_settings(environ={"AZUREML_FE_DYNAMIC_CONFIG_ALLOW": "host,hots"})


def test_two_sources_are_an_error() -> None:
    flags = {"dynamic_config_file": "a", "dynamic_config_map": "b"}
    with pytest.raises(SettingsError, match="excludes dynamic_config_file"):
        load_sourced_settings(environ={}, flags=flags)


def test_documented_document_is_valid() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL)
    settings = parse(text)
    assert settings.router
    assert settings.services["iris"].versions


# Precedence.


def test_flag_environment_dynamic_file_and_default_in_this_order() -> None:
    dynamic = parse("router: {max_headers: 2, max_head_bytes: 2000, connect_timeout_ms: 20, log_level: debug}").router
    settings, sources = load_sourced_settings(
        flags={"max_headers": 4},
        environ={"AZUREML_FE_MAX_HEADERS": "3", "AZUREML_FE_MAX_HEAD_BYTES": "3000"},
        dynamic=dynamic,
        file={"max_headers": 1, "max_head_bytes": 1500, "connect_timeout_ms": 10, "access_log": 0.5},
    )
    assert (settings.max_headers, settings.max_head_bytes, settings.connect_timeout_ms) == (4, 3000, 20)
    assert (settings.log_level, settings.access_log, settings.client_idle_timeout_seconds) == ("debug", 0.5, 75)
    assert sources == {
        "max_headers": "flag --max-headers",
        "max_head_bytes": "environment AZUREML_FE_MAX_HEAD_BYTES",
        "connect_timeout_ms": "dynamic.yaml, line 1: router",
        "log_level": "dynamic.yaml, line 1: router",
        "access_log": "router section",
    }


def test_rule_between_settings_names_the_dynamic_configuration() -> None:
    dynamic = parse("router: {min_workers: 9}").router
    with pytest.raises(SettingsError, match=r"dynamic\.yaml, line 1: router: min_workers = 9: must not exceed"):
        load_sourced_settings(environ={}, file={"max_workers": 2}, dynamic=dynamic)


# Services.


def test_setting_of_the_service_replaces_that_of_each_version() -> None:
    file = {"scoring_timeout_ms": 1, "versions": {"blue": {"scoring_timeout_ms": 2}, "green": {}}}
    versions = versions_of(
        file, "services: {iris: {scoring_timeout_ms: 3, versions: {green: {scoring_timeout_ms: 4}, gone: {}}}}"
    )
    assert {name: version.scoring_timeout_ms for name, version in versions.items()} == {"blue": 3, "green": 4}


@pytest.mark.parametrize("settings", ["max_queue_length: 3", "versions: {default: {max_queue_length: 3}}"])
def test_service_without_versions(settings: str) -> None:
    versions = versions_of({"max_queue_length": 1, "num_replicas": 2}, f"services: {{iris: {{{settings}}}}}")
    assert (versions["default"].max_queue_length, versions["default"].num_replicas) == (3, 2)


def test_fixed_number_of_replicas_replaces_autoscaling_and_vice_versa() -> None:
    file: dict[str, Any] = {"autoscale_max_replicas": 4, "autoscale_min_replicas": 2}
    fixed = versions_of(file, "services: {iris: {num_replicas: 3}}")["default"]
    assert (fixed.num_replicas, fixed.autoscale_enabled) == (3, False)
    scaled = versions_of({"num_replicas": 3}, "services: {iris: {autoscale_max_replicas: 5}}")["default"]
    assert (scaled.num_replicas, scaled.autoscale_enabled, scaled.autoscale_max_replicas) == (None, True, 5)


def test_default_version_moves() -> None:
    file = {"versions": {"blue": {"is_default": True}, "green": {"traffic_percentile": 10}}}
    text = "services: {iris: {versions: {green: {is_default: true}, blue: {traffic_percentile: 5}}}}"
    versions = versions_of(file, text)
    assert (versions["green"].is_default, versions["blue"].is_default) == (True, False)
    assert versions["blue"].traffic_percentile == 5


def test_share_of_traffic_must_be_set_within_a_version() -> None:
    text = "services: {iris: {traffic_percentile: 5, versions: {green: {}}}}"
    assert "must be set within a version" in errors_of(text)[0]


def test_relative_path_of_the_source_is_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("router: {dynamic_config_file: dynamic.yaml}")
    section, _ = load_router_file(file)
    assert section["dynamic_config_file"] == str(tmp_path / "dynamic.yaml")
