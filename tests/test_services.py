"""A service: its defaults, every setting's limits, the rules between settings, inheritance and traffic shares."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.service_settings import COMPATIBLE_DEFAULTS, SERVICE_SETTINGS, VERSION_SETTINGS
from router.services import Service, SettingsError, Version, parse_service


def version_of(**settings: object) -> Version:
    return parse_service("iris", settings).default_version


def fault(where: str = "", /, **settings: object) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_service("iris", settings, where=where)
    return str(caught.value)


def shares(**versions: dict[str, object]) -> dict[str, int]:
    service = parse_service("iris", {"versions": versions})
    return {version.name: share for version, share in service.shares()}


# --- the table


def test_every_field_has_a_setting_and_every_setting_a_field() -> None:
    service_fields = {field.name for field in dataclasses.fields(Service)} - {"name", "versions"}
    assert service_fields == {setting.name for setting in SERVICE_SETTINGS}
    version_fields = {field.name for field in dataclasses.fields(Version)} - {"name"}
    assert version_fields == {setting.name for setting in VERSION_SETTINGS}


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
            num_replicas=None,
            replica_max_concurrent_requests=1,
            max_request_wait_time=500,
            max_queue_length=1000,
            scoring_timeout_ms=60_000,
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
            traffic_percentile=0,
            is_default=True,
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
        ("num_replicas", ["1", 50], [0, None]),
        ("replica_max_concurrent_requests", ["0", 100], [-1]),
        ("max_request_wait_time", ["1", 100_000], [0]),
        ("max_queue_length", ["0", 5], [-1]),
        ("scoring_timeout_ms", ["1", 300_000], [0, 300_001]),
        ("cpu_cores", ["0.5", 4], [0]),
        ("memory_gb", ["0.5", 4], [0]),
        ("gpu_cores", ["0", 4], [-1]),
        ("period_seconds", ["1", 60], [0]),
        ("initial_delay_seconds", ["1", 60], [0]),
        ("timeout_seconds", ["1", 60], [0]),
        ("success_threshold", ["1", 60], [0]),
        ("failure_threshold", ["1", 60], [0]),
        ("traffic_percentile", ["0", 100], [-1, 101]),
        ("is_default", ["true", True], ["yes", 1]),
    ],
)
def test_limits_of_a_version_setting(name: str, good: list[Any], bad: list[Any]) -> None:
    for raw in good:
        value = getattr(version_of(**{name: raw}), name)
        assert value == (raw if not isinstance(raw, str) else type(value)(float(raw) if raw != "true" else True))
    for raw in bad:
        assert name in fault(**{name: raw})


def test_keys_are_visible_ascii_and_never_shown() -> None:
    service = parse_service("iris", {"primary_key": "fIrSt~key==", "secondary_key": "k" * 256})
    assert service.primary_key == "fIrSt~key=="
    assert "fIrSt" not in repr(service)
    for bad in ("", "two words", "k" * 257, "clé-s3cret", "s3cret\n"):
        message = fault(primary_key=bad)
        assert message.startswith("service iris: primary_key: must be")
        assert "s3cret" not in message


@pytest.mark.parametrize("origin", ["https://a.example", "http://localhost:3000", "http://[::1]:80", "app://x"])
def test_origins(origin: str) -> None:
    assert parse_service("iris", {"cors_allowed_origins": [origin]}).cors_allowed_origins == (origin,)


@pytest.mark.parametrize(
    "origin", ["https://a.example/", "a.example", "https://A.example", "null", "https://*.b", "a b"]
)
def test_what_is_no_origin(origin: str) -> None:
    assert "cors_allowed_origins" in fault(cors_allowed_origins=[origin])


def test_origins_as_text_and_all() -> None:
    assert parse_service("iris", {"cors_allowed_origins": "*"}).cors_allowed_origins == ("*",)
    both = parse_service("iris", {"cors_allowed_origins": "https://a.b, https://c.d"}).cors_allowed_origins
    assert both == ("https://a.b", "https://c.d")
    assert "'*' must stand alone" in fault(cors_allowed_origins="https://a.b,*")


# --- names and places


@pytest.mark.parametrize("name", ["a", "7", "iris-2", "x" * 63])
def test_service_names(name: str) -> None:
    assert parse_service(name, {}).name == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "Iris", "a_b", "a.b", "x" * 64, "é", "a\n", "a/b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(SettingsError, match=r"^m.yaml: service name = .*must be 1 to 63"):
        parse_service(name, {}, where="m.yaml")
    assert "version name = " in fault(versions={name: {}})


def test_unknown_setting_names_its_place_and_the_nearest_but_not_its_value() -> None:
    assert fault("m.yaml", primary_kye="s3cret") == (
        "m.yaml: service iris: primary_kye: no such setting; did you mean primary_key?"
    )
    assert fault(versions={"blue": {"cpu_core": 1}}) == (
        "service iris, version blue: cpu_core: no such setting; did you mean cpu_cores?"
    )


def test_names_of_the_caller_are_passed_over_and_suggested() -> None:
    parse_service("iris", {"entry_script": "x", "versions": {"a": {"entry_script": 1}}}, other_names=["entry_script"])
    with pytest.raises(SettingsError, match="did you mean entry_script"):
        parse_service("iris", {"entryscript": "x"}, other_names=["entry_script"])


@pytest.mark.parametrize(
    ("above", "own", "path"),
    [
        ({"cpu_cores": 2}, {"cpu_cores_limit": 1}, "versions/blue/cpu_cores_limit"),
        ({"cpu_cores_limit": 1}, {"cpu_cores": 2}, "cpu_cores_limit"),
        ({}, {"cpu_cores": "2 "}, "versions/blue/cpu_cores"),
    ],
)
def test_place_is_where_the_value_was_written(above: dict[str, object], own: dict[str, object], path: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_service("iris", above | {"versions": {"blue": own}}, locate="/".join)
    assert caught.value.where.partition(": ")[0] == path


# --- rules between settings


def test_autoscaling_is_off_with_a_number_of_replicas() -> None:
    assert version_of().autoscale_enabled
    assert version_of(autoscale_enabled="true", autoscale_max_replicas=3).autoscale_enabled
    fixed = version_of(num_replicas="3")
    assert (fixed.autoscale_enabled, fixed.num_replicas) == (False, 3)
    assert version_of(num_replicas=3, autoscale_enabled=False) == fixed


def test_autoscaling_with_a_number_of_replicas_and_neither_are_errors() -> None:
    assert "must be false or absent with num_replicas" in fault(autoscale_enabled=True, num_replicas=2)
    assert "needs num_replicas" in fault(autoscale_enabled="false")


@pytest.mark.parametrize("name", [s.name for s in VERSION_SETTINGS if s.name.startswith("autoscale_")][1:])
def test_autoscale_settings_while_autoscaling_is_off_are_errors(name: str) -> None:
    assert "not allowed while autoscaling is off (num_replicas is 2)" in fault(num_replicas=2, **{name: 5})


def test_least_replicas_must_not_exceed_most() -> None:
    assert version_of(autoscale_min_replicas=10).autoscale_min_replicas == 10
    assert "must not exceed autoscale_max_replicas (10)" in fault(autoscale_min_replicas=11)
    assert "autoscale_min_replicas = 5" in fault(autoscale_min_replicas="5", autoscale_max_replicas="4")


def test_key_and_token_authentication_exclude_each_other() -> None:
    tokens = parse_service("iris", {"token_auth_enabled": "true"})
    assert (tokens.auth_enabled, tokens.token_auth_enabled) == (False, True)
    neither = parse_service("iris", {"auth_enabled": False})
    assert (neither.auth_enabled, neither.token_auth_enabled) == (False, False)
    assert "excludes auth_enabled" in fault(auth_enabled=True, token_auth_enabled=True)


@pytest.mark.parametrize("request_name", ["cpu_cores", "memory_gb"])
def test_limit_must_not_be_below_its_request(request_name: str) -> None:
    limit = f"{request_name}_limit"
    assert getattr(version_of(**{request_name: 1, limit: 1}), limit) == 1
    assert f"{limit} = 0.5: must be at least {request_name} (1)" in fault(**{request_name: 1, limit: 0.5})
    assert limit in fault(**{limit: 0.01})


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
    ("above", "own", "enabled", "replicas"),
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
def test_way_of_scaling_is_inherited_as_a_whole(
    above: dict[str, object], own: dict[str, object], enabled: bool, replicas: int | None
) -> None:
    version = version_of(**above, versions={"blue": own})
    assert (version.autoscale_enabled, version.num_replicas) == (enabled, replicas)


def test_faults_of_the_service_level_are_found_even_when_every_version_overrides_them() -> None:
    assert "scoring_timeout_ms = 0" in fault(scoring_timeout_ms=0, versions={"blue": {"scoring_timeout_ms": 1}})


def test_settings_of_the_service_within_a_version_are_errors() -> None:
    message = fault(versions={"blue": {"primary_key": "s3cret"}})
    assert message == "service iris, version blue: primary_key: belongs to the service, not to a version"


@pytest.mark.parametrize("settings", [{"traffic_percentile": 5}, {"is_default": True}])
def test_settings_that_tell_versions_apart_do_not_stand_above_them(settings: dict[str, object]) -> None:
    assert "is set within a version" in fault(**settings, versions={"blue": {}})


@pytest.mark.parametrize("versions", [{}, None, [], "blue"])
def test_versions_must_be_a_mapping_with_something_in_it(versions: object) -> None:
    assert "at least one version" in fault(versions=versions)


@pytest.mark.parametrize("settings", [None, [], "x"])
def test_version_must_be_a_mapping(settings: object) -> None:
    assert "version blue: version: must be a mapping" in fault(versions={"blue": settings})


def test_first_version_is_the_default_unless_another_says_so() -> None:
    first = parse_service("iris", {"versions": {"a": {}, "b": {}}})
    assert first.default_version.name == "a"
    second = parse_service("iris", {"versions": {"a": {}, "b": {"is_default": "true"}}})
    assert second.default_version.name == "b"
    assert [version.is_default for version in second.versions] == [False, True]
    assert "only one version may be the default, a is" in fault(
        versions={"a": {"is_default": True}, "b": {"is_default": True}}
    )


# --- traffic


def test_the_documented_steps_of_a_rollout() -> None:
    assert shares(a={"traffic_percentile": 20, "is_default": True}) == {"a": 100}
    assert shares(a={"traffic_percentile": 20, "is_default": True}, b={"traffic_percentile": 10}) == {"a": 90, "b": 10}
    assert shares(a={"traffic_percentile": 20}, b={"traffic_percentile": 40, "is_default": True}) == {"a": 20, "b": 80}


def test_versions_beside_the_default_may_claim_all_but_not_more() -> None:
    assert shares(a={"traffic_percentile": 90}, b={"traffic_percentile": 60}, c={"traffic_percentile": 40}) == {
        "a": 0,
        "b": 60,
        "c": 40,
    }
    message = fault(versions={"a": {}, "b": {"traffic_percentile": 60}, "c": {"traffic_percentile": 41}})
    assert "traffic_percentile = 101: the versions other than the default (a)" in message


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), st.data())
def test_shares_sum_to_100_or_the_service_is_refused(percentiles: list[int], data: st.DataObject) -> None:
    default = data.draw(st.integers(0, len(percentiles) - 1))
    versions = {
        f"v{index}": {"traffic_percentile": percentile, "is_default": index == default}
        for index, percentile in enumerate(percentiles)
    }
    claimed = sum(percentiles) - percentiles[default]
    if claimed > 100:
        fault(versions=versions)
        return
    result = parse_service("iris", {"versions": versions}).shares()
    assert sum(share for _, share in result) == 100
    assert [version.name for version, _ in result] == list(versions)
    assert result[default][1] == 100 - claimed


def test_shares_of_two_equal_versions_are_told_apart() -> None:
    version = version_of(traffic_percentile=30)
    twin = dataclasses.replace(version, is_default=False)
    service = dataclasses.replace(parse_service("iris", {}), versions=(twin, dataclasses.replace(twin)))
    assert [share for _, share in service.shares()] == [70, 30]


def test_defaults_of_the_second_sdk() -> None:
    ours = parse_service("iris", {}, defaults=COMPATIBLE_DEFAULTS["v2"]).default_version
    assert (ours.autoscale_max_replicas, ours.scoring_timeout_ms) == (1, 5_000)
    own = parse_service("iris", {"scoring_timeout_ms": 70_000}, defaults=COMPATIBLE_DEFAULTS["v2"]).default_version
    assert own.scoring_timeout_ms == 70_000
    assert parse_service("iris", {}, defaults=COMPATIBLE_DEFAULTS["v1"]) == parse_service("iris", {})
