"""Annotations as settings: the same names, limits and errors as those of the local file."""

import pytest

from router.cluster.kubernetes.annotations import Given, annotation_name, read


def faults(**annotations: str) -> list[str]:
    return [str(fault) for fault in read("iris", labels(**annotations))[1]]


def labels(**annotations: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name.replace("_", "-"), text) for name, text in annotations.items()))


def test_nothing_said_is_everything_by_default() -> None:
    assert read("iris", ()) == (Given(), ())


def test_settings_are_told_by_the_names_of_the_sdk() -> None:
    given, wrong = read(
        "iris",
        labels(version="green", port="8000", keys_secret="s", scoring_timeout_ms="100", cors_allowed_origins="*"),
    )
    assert wrong == ()
    assert given == Given("green", 8000, "s", {"cors_allowed_origins": "*"}, {"scoring_timeout_ms": "100"})


def test_a_fault_names_the_annotation_its_value_and_what_is_allowed() -> None:
    assert faults(scoring_timeout_ms="300001") == [
        "azureml-fe/scoring-timeout-ms = '300001': must be a whole number from 1 to 300000 (ms)"
    ]


def test_all_faults_are_told_and_what_is_right_counts() -> None:
    given, wrong = read("iris", labels(port="x", max_queue_length="-1", max_request_wait_time="9", auth_enabled="no"))
    assert [fault.setting for fault in wrong] == [
        "azureml-fe/port", "azureml-fe/auth-enabled", "azureml-fe/max-queue-length",
    ]  # fmt: skip
    assert given == Given(settings={"max_request_wait_time": "9"})


def test_rules_between_settings_hold() -> None:
    (fault,) = faults(num_replicas="2", autoscale_max_replicas="3")
    assert fault == "azureml-fe/autoscale-max-replicas = 3: not allowed while autoscaling is off (num_replicas is 2)"
    (fault,) = faults(autoscale_min_replicas="5", autoscale_max_replicas="3")
    assert fault == "azureml-fe/autoscale-min-replicas = 5: must not exceed autoscale_max_replicas (3)"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scoring_timeout", "no such setting; did you mean azureml-fe/scoring-timeout-ms?"),
        ("cpu_cores", "belongs into the Deployment's pod template: resources and probes"),
        ("primary_key", "belongs into a Secret, which azureml-fe/keys-secret may name"),
    ],
)
def test_what_is_no_annotation_says_so_without_its_value(name: str, said: str) -> None:
    assert faults(**{name: "hunter2"}) == [f"{annotation_name(name)}: {said}"]


def test_another_spelling_is_no_annotation() -> None:
    _, (fault,) = read("iris", (("scoring_timeout_ms", "5"),))
    assert str(fault) == "azureml-fe/scoring_timeout_ms: no such setting; did you mean azureml-fe/scoring-timeout-ms?"
