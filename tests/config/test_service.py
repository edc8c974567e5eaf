"""The parser of services: defaults, limits, rules between settings, inheritance and traffic shares."""

import dataclasses
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config.declaration import kind_of
from router.config.schema import Setting, SettingsError
from router.config.service import parse_service
from router.config.service_settings import COMPATIBILITY_DEFAULTS, SERVICE_SETTINGS, VERSION_SETTINGS
from router.model.services import Service, Version


def version_of(**settings: object) -> Version:
    return parse_service("iris", settings).default_version


def error_text(where: str = "", /, **settings: object) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_service("iris", settings, where=where)
    return str(caught.value)


def shares(**versions: dict[str, object]) -> dict[str, int]:
    service = parse_service("iris", {"versions": versions})
    return {version.name: share for version, share in service.traffic_shares()}


# --- declared settings


@pytest.mark.parametrize(
    ("model", "settings", "other_fields"),
    [(Service, SERVICE_SETTINGS, {"name", "versions", "standby"}), (Version, VERSION_SETTINGS, {"name"})],
)
def test_settings_match_the_fields_of_the_model(
    model: type, settings: tuple[Setting, ...], other_fields: set[str]
) -> None:
    """The one place that compares `config.service_settings` with `model.services`, which must not import each other."""
    types = get_type_hints(model)
    kinds = {name: kind_of(types[name]) for name in types if name not in other_fields}
    assert {setting.name: setting.kind for setting in settings} == kinds


def test_defaults_are_those_of_the_sdk() -> None:
    service = parse_service("iris", {})
    assert (service.auth_enabled, service.token_auth_enabled) == (True, False)
    assert (service.primary_key, service.secondary_key, service.cors_allowed_origins) == (None, None, ())
    assert not service.forward_authorization
    assert not service.keep_underscore_headers
    assert service.versions == (
        Version(
            name="default",
            autoscale_enabled=True,
            autoscale_min_replicas=1,
            autoscale_max_replicas=10,
            autoscale_refresh_seconds=1,
            autoscale_target_utilization=70,
            autoscale_scale_down_seconds=60,
            autoscale_objective="latency",
            num_replicas=None,
            replica_max_concurrent_requests=1,
            max_request_wait_time=500,
            max_queue_length=1000,
            scoring_timeout_ms=60_000,
            replica_drain_seconds=600.0,
            request_buffering=True,
            retry_on_reset=False,
            rewrite_location=True,
            enable_app_insights=False,
            scoring_path="/score",
            tunnel_idle_timeout_seconds=0.0,
            max_stream_seconds=0.0,
            outlier_detection=True,
            outlier_consecutive_failures=5,
            outlier_consecutive_timeouts=3,
            outlier_ejection_seconds=10.0,
            outlier_max_ejected_percent=50,
            collect_model_data=False,
            data_collector=None,
            cpu_cores=0.1,
            cpu_cores_limit=None,
            memory_gb=0.5,
            memory_gb_limit=None,
            gpu_cores=0,
            period_seconds=10,
            initial_delay_seconds=310,
            timeout_seconds=2,
            success_threshold=1,
            failure_threshold=3,
            readiness_period_seconds=10,
            readiness_initial_delay_seconds=0,
            readiness_timeout_seconds=2,
            readiness_success_threshold=1,
            readiness_failure_threshold=3,
            traffic_percentile=0,
            is_default=True,
            cancellation="unknown",
            abandoned_request_timeout_ms=None,
            half_close=None,
            description="",
            tags={},
            properties={},
        ),
    )


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("autoscale_min_replicas", ["0", 10], [-1, "1.0", 1.0, True]),
        ("autoscale_max_replicas", ["1", 1000], [0]),
        ("autoscale_refresh_seconds", ["0.1", 3], [0, "0", -1, "nan"]),
        ("autoscale_target_utilization", ["1", 100], [0, 101, 0.7]),
        ("autoscale_scale_down_seconds", [0.5, 600], [0]),
        ("num_replicas", ["0", 50], [-1, None]),
        ("replica_max_concurrent_requests", ["0", 100], [-1]),
        ("max_request_wait_time", ["1", 100_000], [0]),
        ("max_queue_length", ["0", 5], [-1]),
        ("scoring_timeout_ms", ["1", 300_000], [0, 300_001]),
        ("replica_drain_seconds", ["60", 86_400], [0, -1, 86_401]),
        ("cpu_cores", ["0.5", 4], [0]),
        ("memory_gb", ["0.5", 4], [0]),
        ("gpu_cores", ["0", 4], [-1]),
        ("period_seconds", ["1", 60], [0]),
        ("initial_delay_seconds", ["1", 60], [0]),
        ("timeout_seconds", ["1", 60], [0]),
        ("success_threshold", ["1", 60], [0]),
        ("failure_threshold", ["1", 60], [0]),
        ("readiness_period_seconds", ["1", 60], [0]),
        ("readiness_initial_delay_seconds", ["0", 60], [-1, 0.5]),
        ("readiness_timeout_seconds", ["1", 60], [0]),
        ("readiness_success_threshold", ["1", 60], [0]),
        ("readiness_failure_threshold", ["1", 60], [0]),
        ("traffic_percentile", ["0", 100], [-1, 101]),
        ("is_default", ["true", True], ["yes", 1]),
    ],
)
def test_limits_of_a_version_setting(name: str, good: list[Any], bad: list[Any]) -> None:
    for raw in good:
        value = getattr(version_of(**{name: raw}), name)
        assert value == (raw if not isinstance(raw, str) else type(value)(float(raw) if raw != "true" else True))
    for raw in bad:
        assert name in error_text(**{name: raw})


def test_objective_is_latency_or_cost() -> None:
    assert version_of().autoscale_objective == "latency"
    assert version_of(autoscale_objective="cost").autoscale_objective == "cost"
    for bad in ("", "Cost", "balanced", 1):
        assert "autoscale_objective" in error_text(autoscale_objective=bad)
        assert "must be one of latency, cost" in error_text(autoscale_objective=bad)


def test_keys_are_visible_ascii_and_never_quoted() -> None:
    service = parse_service("iris", {"primary_key": "fIrSt~key==", "secondary_key": "k" * 256})
    assert service.primary_key == "fIrSt~key=="
    assert "fIrSt" not in repr(service)
    for bad in ("", "two words", "k" * 257, "clé-s3cret", "s3cret\n"):
        message = error_text(primary_key=bad)
        assert message.startswith("service iris: primary_key: must be")
        assert "s3cret" not in message


@pytest.mark.parametrize("origin", ["https://a.example", "http://localhost:3000", "http://[::1]:80", "app://x"])
def test_origin_is_accepted(origin: str) -> None:
    assert parse_service("iris", {"cors_allowed_origins": [origin]}).cors_allowed_origins == (origin,)


@pytest.mark.parametrize(
    "origin", ["https://a.example/", "a.example", "https://A.example", "null", "https://*.b", "a b"]
)
def test_invalid_origin_is_rejected(origin: str) -> None:
    assert "cors_allowed_origins" in error_text(cors_allowed_origins=[origin])


def test_origins_may_be_one_text_or_a_star() -> None:
    assert parse_service("iris", {"cors_allowed_origins": "*"}).cors_allowed_origins == ("*",)
    both = parse_service("iris", {"cors_allowed_origins": "https://a.b, https://c.d"}).cors_allowed_origins
    assert both == ("https://a.b", "https://c.d")
    assert "'*' must be the only item" in error_text(cors_allowed_origins="https://a.b,*")


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("allowed_methods", ["POST"], ("POST",)),
        ("allowed_methods", "HEAD, GET,DELETE", ("HEAD", "GET", "DELETE")),
        ("key_headers", "api-key", ("api-key",)),
        ("key_headers", ["authorization", "x-api-key"], ("authorization", "x-api-key")),
    ],
)
def test_methods_and_key_headers_are_lists(name: str, value: object, parsed: tuple[str, ...]) -> None:
    assert getattr(parse_service("iris", {name: value}), name) == parsed


@pytest.mark.parametrize("name", ["allowed_methods", "key_headers"])
def test_methods_and_key_headers_must_not_be_empty_or_repeated(name: str) -> None:
    repeated = ["POST", "POST"] if name == "allowed_methods" else "api-key,api-key"
    for value in ([], "", repeated):
        assert error_text(**{name: value}).endswith("must have at least one item, and each once")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_methods", ["get"]),
        ("allowed_methods", "GET TRACE"),
        ("allowed_methods", ["CONNECT"]),
        ("key_headers", ["cookie"]),
        ("key_headers", ["Api-Key"]),
        ("key_headers", "authorization;api-key"),
    ],
)
def test_unknown_methods_and_key_headers_are_rejected(name: str, value: object) -> None:
    assert f"service iris: {name} = " in error_text(**{name: value})
    assert "must be a list of " in error_text(**{name: value})


# --- names and locations


@pytest.mark.parametrize("name", ["a", "7", "iris-2", "x" * 63])
def test_service_name_is_accepted(name: str) -> None:
    assert parse_service(name, {}).name == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "Iris", "a_b", "a.b", "x" * 64, "é", "a\n", "a/b"])
def test_invalid_name_is_rejected(name: str) -> None:
    with pytest.raises(SettingsError, match=r"^m.yaml: service name = .*must be 1 to 63"):
        parse_service(name, {}, where="m.yaml")
    assert "version name = " in error_text(versions={name: {}})


def test_unknown_setting_error_suggests_a_name_and_hides_the_value() -> None:
    assert error_text("m.yaml", primary_kye="s3cret") == (
        "m.yaml: service iris: primary_kye: no such setting; did you mean primary_key?"
    )
    assert error_text(versions={"blue": {"cpu_core": 1}}) == (
        "service iris, version blue: cpu_core: no such setting; did you mean cpu_cores?"
    )


def test_other_names_are_ignored_and_suggested() -> None:
    parse_service("iris", {"entry_script": "x", "versions": {"a": {"entry_script": 1}}}, other_names=["entry_script"])
    with pytest.raises(SettingsError, match="did you mean entry_script"):
        parse_service("iris", {"entryscript": "x"}, other_names=["entry_script"])


@pytest.mark.parametrize(
    ("service", "version", "path"),
    [
        ({"cpu_cores": 2}, {"cpu_cores_limit": 1}, "versions/blue/cpu_cores_limit"),
        ({"cpu_cores_limit": 1}, {"cpu_cores": 2}, "cpu_cores_limit"),
        ({}, {"cpu_cores": "2 "}, "versions/blue/cpu_cores"),
    ],
)
def test_error_has_the_path_of_the_value(service: dict[str, object], version: dict[str, object], path: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_service("iris", service | {"versions": {"blue": version}}, locate="/".join)
    assert caught.value.where.partition(": ")[0] == path


# --- rules between settings


def test_num_replicas_turns_autoscaling_off() -> None:
    assert version_of().autoscale_enabled
    assert version_of(autoscale_enabled="true", autoscale_max_replicas=3).autoscale_enabled
    fixed = version_of(num_replicas="3")
    assert (fixed.autoscale_enabled, fixed.num_replicas) == (False, 3)
    assert version_of(num_replicas=3, autoscale_enabled=False) == fixed


def test_version_without_replicas() -> None:
    parked = version_of(num_replicas=0, autoscale_enabled=False)
    assert (parked.autoscale_enabled, parked.num_replicas) == (False, 0)


def test_autoscaling_and_num_replicas_must_not_contradict() -> None:
    assert "must be false or absent with num_replicas" in error_text(autoscale_enabled=True, num_replicas=2)
    assert "needs num_replicas" in error_text(autoscale_enabled="false")


@pytest.mark.parametrize("name", [s.name for s in VERSION_SETTINGS if s.name.startswith("autoscale_")][1:])
def test_autoscale_settings_are_rejected_while_autoscaling_is_off(name: str) -> None:
    value = {"autoscale_objective": "cost"}.get(name, 5)
    assert "not allowed while autoscaling is off (num_replicas is 2)" in error_text(num_replicas=2, **{name: value})


def test_minimum_replicas_must_not_exceed_the_maximum() -> None:
    assert version_of(autoscale_min_replicas=10).autoscale_min_replicas == 10
    assert "must not exceed autoscale_max_replicas (10)" in error_text(autoscale_min_replicas=11)
    assert "autoscale_min_replicas = 5" in error_text(autoscale_min_replicas="5", autoscale_max_replicas="4")


def test_key_and_token_authentication_exclude_each_other() -> None:
    tokens = parse_service("iris", {"token_auth_enabled": "true"})
    assert (tokens.auth_enabled, tokens.token_auth_enabled) == (False, True)
    neither = parse_service("iris", {"auth_enabled": False})
    assert (neither.auth_enabled, neither.token_auth_enabled) == (False, False)
    assert "excludes auth_enabled" in error_text(auth_enabled=True, token_auth_enabled=True)


@pytest.mark.parametrize("request_name", ["cpu_cores", "memory_gb"])
def test_limit_must_not_be_below_its_request(request_name: str) -> None:
    limit = f"{request_name}_limit"
    assert getattr(version_of(**{request_name: 1, limit: 1}), limit) == 1
    assert f"{limit} = 0.5: must be at least {request_name} (1)" in error_text(**{request_name: 1, limit: 0.5})
    assert limit in error_text(**{limit: 0.01})


# --- versions


def test_versions_inherit_from_their_service() -> None:
    service = parse_service(
        "iris",
        {"scoring_timeout_ms": 100, "gpu_cores": 1, "versions": {"blue": {}, "green": {"scoring_timeout_ms": "200"}}},
    )
    blue, green = service.versions
    assert (blue.name, blue.scoring_timeout_ms, blue.gpu_cores) == ("blue", 100, 1)
    assert (green.name, green.scoring_timeout_ms, green.gpu_cores) == ("green", 200, 1)


@pytest.mark.parametrize(
    ("service", "version", "enabled", "replicas"),
    [
        ({"autoscale_max_replicas": 4}, {"num_replicas": 2}, False, 2),
        ({"autoscale_enabled": True}, {"num_replicas": 2}, False, 2),
        ({"num_replicas": 2}, {"autoscale_max_replicas": 4}, True, None),
        ({"num_replicas": 2}, {"autoscale_enabled": True}, True, None),
        ({"num_replicas": 2}, {"autoscale_enabled": "false"}, False, 2),
        ({"num_replicas": 2}, {"num_replicas": 3}, False, 3),
        ({"num_replicas": 2}, {}, False, 2),
    ],
)
def test_scaling_settings_are_inherited_as_a_whole(
    service: dict[str, object], version: dict[str, object], enabled: bool, replicas: int | None
) -> None:
    resolved = version_of(**service, versions={"blue": version})
    assert (resolved.autoscale_enabled, resolved.num_replicas) == (enabled, replicas)


def test_service_level_value_is_checked_even_if_every_version_overrides_it() -> None:
    assert "scoring_timeout_ms = 0" in error_text(scoring_timeout_ms=0, versions={"blue": {"scoring_timeout_ms": 1}})


def test_service_setting_within_a_version_is_rejected() -> None:
    message = error_text(versions={"blue": {"primary_key": "s3cret"}})
    assert message == "service iris, version blue: primary_key: belongs to the service, not to a version"


@pytest.mark.parametrize("settings", [{"traffic_percentile": 5}, {"is_default": True}])
def test_share_and_default_are_rejected_at_service_level_with_versions(settings: dict[str, object]) -> None:
    assert "must be set within a version" in error_text(**settings, versions={"blue": {}})


@pytest.mark.parametrize("versions", [{}, None, [], "blue"])
def test_versions_must_be_a_nonempty_mapping(versions: object) -> None:
    assert "at least one version" in error_text(versions=versions)


@pytest.mark.parametrize("settings", [None, [], "x"])
def test_version_must_be_a_mapping(settings: object) -> None:
    assert "version blue: version: must be a mapping" in error_text(versions={"blue": settings})


def test_first_version_is_the_default_unless_another_is_marked() -> None:
    first = parse_service("iris", {"versions": {"a": {}, "b": {}}})
    assert first.default_version.name == "a"
    second = parse_service("iris", {"versions": {"a": {}, "b": {"is_default": "true"}}})
    assert second.default_version.name == "b"
    assert [version.is_default for version in second.versions] == [False, True]
    assert "only one version may be the default; a already is" in error_text(
        versions={"a": {"is_default": True}, "b": {"is_default": True}}
    )


# --- traffic


def test_documented_rollout_steps() -> None:
    assert shares(a={"traffic_percentile": 20, "is_default": True}) == {"a": 100}
    assert shares(a={"traffic_percentile": 20, "is_default": True}, b={"traffic_percentile": 10}) == {"a": 90, "b": 10}
    assert shares(a={"traffic_percentile": 20}, b={"traffic_percentile": 40, "is_default": True}) == {"a": 20, "b": 80}


def test_other_versions_may_claim_at_most_100_percent() -> None:
    assert shares(a={"traffic_percentile": 90}, b={"traffic_percentile": 60}, c={"traffic_percentile": 40}) == {
        "a": 0,
        "b": 60,
        "c": 40,
    }
    message = error_text(versions={"a": {}, "b": {"traffic_percentile": 60}, "c": {"traffic_percentile": 41}})
    assert "traffic_percentile = 101: the versions other than the default (a)" in message


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), st.data())
def test_shares_sum_to_100_or_the_service_is_rejected(percentiles: list[int], data: st.DataObject) -> None:
    default = data.draw(st.integers(0, len(percentiles) - 1))
    versions = {
        f"v{index}": {"traffic_percentile": percentile, "is_default": index == default}
        for index, percentile in enumerate(percentiles)
    }
    claimed = sum(percentiles) - percentiles[default]
    if claimed > 100:
        error_text(versions=versions)
        return
    result = parse_service("iris", {"versions": versions}).traffic_shares()
    assert sum(share for _, share in result) == 100
    assert [version.name for version, _ in result] == list(versions)
    assert result[default][1] == 100 - claimed


def test_shares_of_two_equal_versions_are_distinguished() -> None:
    version = version_of(traffic_percentile=30)
    twin = dataclasses.replace(version, is_default=False)
    service = dataclasses.replace(parse_service("iris", {}), versions=(twin, dataclasses.replace(twin)))
    assert [share for _, share in service.traffic_shares()] == [70, 30]


def test_compatibility_v2_has_the_defaults_of_the_second_sdk() -> None:
    version = parse_service("iris", {}, defaults=COMPATIBILITY_DEFAULTS["v2"]).default_version
    assert (version.autoscale_max_replicas, version.scoring_timeout_ms) == (1, 5_000)
    for prefix in ("", "readiness_"):  # `ProbeSettings` of azure-ai-ml
        names = ("initial_delay_seconds", "period_seconds", "timeout_seconds", "success_threshold", "failure_threshold")
        assert [getattr(version, prefix + name) for name in names] == [10, 10, 2, 1, 30]
    own = parse_service("iris", {"scoring_timeout_ms": 70_000}, defaults=COMPATIBILITY_DEFAULTS["v2"]).default_version
    assert own.scoring_timeout_ms == 70_000
    assert parse_service("iris", {}, defaults=COMPATIBILITY_DEFAULTS["v1"]) == parse_service("iris", {})
