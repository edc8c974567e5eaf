"""The JSON schema of local files."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml

from router.cluster.local import example_path
from router.cluster.local.file_schema import local_file_schema


def errors(document: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(local_file_schema())
    return [error.json_path for error in validator.iter_errors(document)]


def test_schema_is_valid_and_accepts_the_example() -> None:
    jsonschema.Draft202012Validator.check_schema(local_file_schema())
    assert errors(yaml.safe_load(example_path().read_text())) == []


def test_larger_file_is_accepted() -> None:
    text = """
    services:
      resnet:
        command: [python, serve.py, --port, "{port}"]
        num_replicas: 2
        environment: {OMP_NUM_THREADS: 1}
      remote: {addresses: ["127.0.0.1:9001"], auth_enabled: false, replica_max_concurrent_requests: 0}
      ab:
        versions:
          blue: {entry_script: blue.py, is_default: true}
          green: {entry_script: green.py, traffic_percentile: 10}
    router: {access_log: on, traces: off, trusted_proxies: 10.0.0.0/8, port: 0}
    token_issuers: {corp: {preset: entra-v2, audience: [api]}}
    """
    assert errors(yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("services: {}", "$.services"),
        ("services: {iris: {max_replicas: 3}}", "$.services.iris"),
        ("services: {iris: {autoscale_target_utilization: 101}}", "$.services.iris.autoscale_target_utilization"),
        ("services: {iris: {versions: {a: {auth_enabled: true}}}}", "$.services.iris.versions.a"),
        ("services: {Iris: {}}", "$.services"),
        ("{services: {iris: {}}, router: {log_level: loud}}", "$.router.log_level"),
    ],
)
def test_faults_are_found(text: str, place: str) -> None:
    assert errors(yaml.safe_load(text)) == [place]
