"""Annotations as settings: the same names, limits and errors as those of the local file."""

from datetime import UTC, datetime, timedelta

import pytest

from router.cluster.kubernetes.annotations import ParsedAnnotations, annotation_name, parse_annotations


def annotations(**settings: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name.replace("_", "-"), text) for name, text in settings.items()))


def errors(**settings: str) -> list[str]:
    return [str(error) for error in parse_annotations("iris", annotations(**settings))[1]]


def test_no_annotations_give_the_defaults() -> None:
    assert parse_annotations("iris", ()) == (ParsedAnnotations(), ())


def test_settings_have_the_names_of_the_local_file() -> None:
    parsed, errors = parse_annotations(
        "iris",
        annotations(version="green", port="8000", keys_secret="s", scoring_timeout_ms="100", cors_allowed_origins="*"),
    )
    assert errors == ()
    assert parsed == ParsedAnnotations(
        version="green",
        port=8000,
        keys_secret="s",
        service_settings={"cors_allowed_origins": "*"},
        version_settings={"scoring_timeout_ms": "100"},
    )


def test_error_has_the_annotation_its_value_and_the_allowed_values() -> None:
    assert errors(scoring_timeout_ms="300001") == [
        "azureml-fe/scoring-timeout-ms = '300001': must be a whole number from 1 to 300000 (ms)"
    ]


def test_all_errors_are_reported_and_the_valid_annotations_returned() -> None:
    parsed, errors = parse_annotations(
        "iris", annotations(port="x", max_queue_length="-1", max_request_wait_time="9", auth_enabled="no")
    )
    assert [error.setting for error in errors] == [
        "azureml-fe/port", "azureml-fe/auth-enabled", "azureml-fe/max-queue-length",
    ]  # fmt: skip
    assert parsed == ParsedAnnotations(version_settings={"max_request_wait_time": "9"})


def test_rules_between_settings_are_checked() -> None:
    (error,) = errors(num_replicas="2", autoscale_max_replicas="3")
    assert error == "azureml-fe/autoscale-max-replicas = 3: not allowed while autoscaling is off (num_replicas is 2)"
    (error,) = errors(autoscale_min_replicas="5", autoscale_max_replicas="3")
    assert error == "azureml-fe/autoscale-min-replicas = 5: must not exceed autoscale_max_replicas (3)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scoring_timeout", "no such setting; did you mean azureml-fe/scoring-timeout-ms?"),
        ("max_queue_wait_ms", "no such setting; did you mean azureml-fe/max-request-wait-time?"),
        ("maxQueueWaitMs", "no such setting; did you mean azureml-fe/max-request-wait-time?"),
        ("instance-count", "no such setting; did you mean azureml-fe/num-replicas?"),
        ("cpu_cores", "must be in the Deployment's pod template, as a resource or probe"),
        ("readiness_path", "must be in the Deployment's pod template, as a resource or probe"),
        ("primary_key", "must be in a Secret, which azureml-fe/keys-secret can name"),
    ],
)
def test_error_of_an_unknown_annotation_does_not_quote_its_value(name: str, message: str) -> None:
    assert errors(**{name: "hunter2"}) == [f"{annotation_name(name)}: {message}"]


def test_annotation_with_underscores_is_unknown() -> None:
    _, (error,) = parse_annotations("iris", (("scoring_timeout_ms", "5"),))
    assert str(error) == "azureml-fe/scoring_timeout_ms: no such setting; did you mean azureml-fe/scoring-timeout-ms?"


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("2030-01-31T18:00Z", datetime(2030, 1, 31, 18, tzinfo=UTC)),
        ("2030-01-31T18:00:30Z", datetime(2030, 1, 31, 18, 0, 30, tzinfo=UTC)),
        ("2030-01-31T18:00+02:00", datetime(2030, 1, 31, 18, tzinfo=UTC) - timedelta(hours=2)),
    ],
)
def test_time_of_a_pause_has_an_offset(text: str, until: datetime) -> None:
    parsed, errors = parse_annotations("iris", annotations(scaling_paused_until=text))
    assert (parsed.scaling_paused_until, errors) == (until, ())


@pytest.mark.parametrize("text", ["", "true", "2030-01-31", "2030-01-31T18:00", "2030-02-30T18:00Z", "18:00Z", "1e9"])
def test_invalid_time_of_a_pause_is_an_error(text: str) -> None:
    (error,) = errors(scaling_paused_until=text)
    assert error == (
        f"azureml-fe/scaling-paused-until = {text!r}: must be a date and time with its offset, such as "
        "2030-01-31T18:00Z"
    )
