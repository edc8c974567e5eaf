"""The setting `data_collector`: what it accepts, and that all its errors are reported at once."""

import json

import pytest

from router.config.data_collector import parse_data_collector
from router.config.schema import SettingsError
from router.config.service import parse_service
from router.model.data_collection import PAYLOADS, Collection, DataCollector

AZURE = {
    "collections": {
        "request": {"enabled": "True", "data": {"name": "in", "path": "azureml://datastores/b/paths/md/a"}},
        "response": {"enabled": False},
        "Model_Inputs": {},
    },
    "sampling_rate": "0.5",
    "rolling_rate": "Day",
    "request_logging": {"capture_headers": ["X-Tenant"]},
}  # fmt: skip
PARSED = DataCollector(
    (Collection("request", True, "md/a"), Collection("response", False), Collection("model_inputs", True)),
    0.5,
    "day",
    ("x-tenant",),
)


@pytest.mark.parametrize("raw", [AZURE, json.dumps(AZURE)])
def test_mapping_of_a_deployment_file_and_its_json_text_are_the_same(raw: object) -> None:
    assert parse_data_collector(raw) == PARSED


def test_defaults_are_all_requests_in_folders_of_hours() -> None:
    collector = parse_data_collector({"collections": {"request": {}}})
    assert collector == DataCollector((Collection("request", True),), 1.0, "hour", ())


def test_collect_model_data_means_requests_and_responses_unless_data_collector_has_details() -> None:
    def effective(**settings: object) -> DataCollector | None:
        return parse_service("iris", settings).default_version.collected

    assert effective() is None
    assert effective(collect_model_data=True) == PAYLOADS
    assert effective(collect_model_data=True, data_collector=AZURE) == PARSED


def test_version_replaces_the_data_collector_of_its_service() -> None:
    service = parse_service(
        "iris", {"collect_model_data": "true", "versions": {"a": {}, "b": {"collect_model_data": "false"}}}
    )
    assert [version.collected for version in service.versions] == [PAYLOADS, None]


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_data_collector(
            {
                "collections": {"a b": {}, "request": {"enabled": "maybe", "data": {"path": "../up"}, "x": 1}},
                "sampling_rate": 2,
                "rolling_rate": "week",
                "request_logging": {"capture_headers": ["Authorization"]},
                "sample_rate": 1,
            }
        )
    assert {error.setting for error in caught.value.errors} == {"data_collector"}
    text = str(caught.value)
    for part in ("a b", "enabled", "data.path", "has no x", "sampling_rate", "week", "authorization", "sample_rate"):
        assert part in text
    assert len(caught.value.errors) == 8


@pytest.mark.parametrize(
    "raw", ["", "[1]", "{", None, 7, {}, {"collections": {}}, {"collections": {"a": {}, "A": {}}}, {"collections": [1]}]
)
def test_what_is_no_data_collector_is_refused(raw: object) -> None:
    with pytest.raises(SettingsError):
        parse_data_collector(raw)


@pytest.mark.parametrize(
    "header",
    [
        "Cookie", "x-api-key", "api-key", "Proxy-Authorization", "x-ms-authorization-auxiliary", "X-Auth-Token",
        "Ocp-Apim-Subscription-Key", "x-functions-key", "X-MS-TOKEN-AAD-ACCESS-TOKEN", "x-apikey",
        "x-request-id", "Path", "type", "-", "a b",
    ],
)  # fmt: skip
def test_headers_with_credentials_or_the_name_of_an_attribute_are_refused(header: str) -> None:
    with pytest.raises(SettingsError, match="capture_headers"):
        parse_data_collector({"collections": {"request": {}}, "request_logging": {"capture_headers": [header]}})


def test_headers_with_similar_names_are_captured() -> None:
    headers = ["idempotency-key", "x-token-count", "x-tokens", "x-tenant"]
    raw = {"collections": {"request": {}}, "request_logging": {"capture_headers": headers}}
    assert parse_data_collector(raw).capture_headers == tuple(headers)


@pytest.mark.parametrize("path", ["a/../b", "/a", "a//b", "a b", "azureml://datastores/x/paths/", 1])
def test_folders_outside_of_the_store_are_refused(path: object) -> None:
    with pytest.raises(SettingsError, match=r"data\.path"):
        parse_data_collector({"collections": {"request": {"data": {"path": path}}}})
