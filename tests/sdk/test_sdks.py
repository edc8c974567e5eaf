"""Azure ML's own SDKs score services of the router, with keys and tokens as its commands print them."""

from __future__ import annotations

import itertools
import json
import re
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest

from router.cli.main import main
from router.cluster.local.key_store import KeyStore
from tests.auth.signing import key_pair, public_jwk
from tests.processes import wait_until
from tests.routers import ROOT, Router, StartRouter, echo_service
from tests.sdk.management_plane import ManagementPlane
from tests.sdk.sdks import V1, V2, endpoint_of, needs_sdks, run_command, run_sdk, score_v1, score_v2

MIGRATION = ROOT / "docs/migrate.md"
pytestmark = needs_sdks

VERSIONS = ("blue", "green")
RESOURCE = "https://ml.azure.com"
"""The audience of the tokens that the second SDK sends with `auth_mode: aad_token`."""


def two_versions() -> dict[str, Any]:
    """Return a service with two versions, one of which has all of the traffic."""
    named = {name: echo_service() for name in VERSIONS}
    named["blue"] |= {"is_default": True}
    named["green"] |= {"traffic_percentile": 0}
    return {"versions": named}


@pytest.fixture(scope="module")
def router(start_for_all: StartRouter, plane: ManagementPlane) -> Router:
    certificate, key = map(str, plane.certificate)
    services = {
        "keyed": echo_service(),
        "open": echo_service(auth_enabled=False),
        "tokens": echo_service(token_auth_enabled=True),
        "ab": two_versions(),
    }
    return start_for_all(services, tls_cert_file=certificate, tls_key_file=key, https_port=0)


@pytest.fixture(scope="module")
def v2_router(start_for_all: StartRouter, plane: ManagementPlane) -> Router:
    """A router with the addresses and defaults of v2. It trusts the management plane as a token issuer."""
    plane.public_keys = [public_jwk(key_pair("entra"), kid="entra", alg="RS256", use="sig")]
    issuer = {
        "issuer": plane.url,
        "audience": [RESOURCE],
        "jwks_url": f"{plane.url}/keys",
        "ca_file": str(plane.ca_file),
        "services": ["entra"],
    }
    services = {
        "keyed": {**two_versions(), "readiness_initial_delay_seconds": 0},
        "tokens": echo_service(token_auth_enabled=True, readiness_initial_delay_seconds=0),
        "entra": echo_service(token_auth_enabled=True, readiness_initial_delay_seconds=0),
    }
    return start_for_all(services, token_issuers={"company": issuer}, compatibility="v2")


def test_first_sdk_scores_with_keys_with_tokens_and_without(plane: ManagementPlane, router: Router) -> None:
    plane.endpoints = {
        "keyed": endpoint_of(router, "keyed", V1),
        "open": endpoint_of(router, "open", V1, auth_mode=None),
        "tokens": endpoint_of(router, "tokens", V1, auth_mode="aml_token"),
        "ab": endpoint_of(router, "ab", V1, versions=VERSIONS),
    }
    for name in plane.endpoints:
        expected = "AksEndpoint" if name == "ab" else "AksWebservice"
        assert score_v1(plane, name, [name]) == {"class": expected, "result": [name]}


def test_first_sdk_scores_over_https(plane: ManagementPlane, router: Router) -> None:
    address = router.wait_for_stderr(r"https://127\.0\.0\.1:\d+")[0]
    plane.endpoints = {"keyed": replace(endpoint_of(router, "keyed", V1), scoring_uri=f"{address}{V1}/keyed/score")}
    assert score_v1(plane, "keyed", [1])["result"] == [1]


def test_first_sdk_fetches_a_rejected_key_again(plane: ManagementPlane, router: Router) -> None:
    endpoint = endpoint_of(router, "keyed", V1)
    attempts = itertools.count()

    def keys() -> dict[str, str]:
        """Return first what Azure would have cached, then the valid keys."""
        before = endpoint.keys()
        if next(attempts) == 0:
            run_command(router, "keys", "regenerate", "keyed", "--key", "primary")
            stale = f"Bearer {before['primaryKey']}"
            wait_until(lambda: router.score("keyed", Authorization=stale).status == 401, "the key to be rejected")
        return before

    plane.endpoints = {"keyed": replace(endpoint, keys=keys)}
    assert score_v1(plane, "keyed", [1])["result"] == [1]
    assert next(attempts) > 1


def test_first_sdk_reports_the_error_code_of_the_router(plane: ManagementPlane, router: Router) -> None:
    plane.endpoints = {"missing": endpoint_of(router, "missing", V1, auth_mode=None)}
    error = score_v1(plane, "missing", [1])["error"]
    assert "Response Code: 404" in error
    assert "'azureml-fe-error': 'unknown-service'" in error


def test_second_sdk_scores_with_keys_and_tokens(plane: ManagementPlane, v2_router: Router, tmp_path: Path) -> None:
    plane.endpoints = {
        "keyed": endpoint_of(v2_router, "keyed", V2, versions=VERSIONS),
        "tokens": endpoint_of(v2_router, "tokens", V2, auth_mode="aml_token"),
    }
    for name in plane.endpoints:
        assert score_v2(plane, name, [name], directory=tmp_path) == {"result": [name]}


def test_second_sdk_selects_a_deployment(plane: ManagementPlane, v2_router: Router, tmp_path: Path) -> None:
    plane.endpoints = {"keyed": endpoint_of(v2_router, "keyed", V2, versions=VERSIONS)}
    served = {name: requests_of(v2_router, name) for name in VERSIONS}
    assert score_v2(plane, "keyed", [1], "green", directory=tmp_path) == {"result": [1]}
    wait_until(lambda: requests_of(v2_router, "green") == served["green"] + 1, "a request of green")
    assert requests_of(v2_router, "blue") == served["blue"]


def requests_of(router: Router, version: str) -> float:
    samples = router.metrics().items()
    own = {("service", "keyed"), ("version", version)}
    return sum(value for (name, labels), value in samples if name == "azureml_fe_requests_total" and own <= labels)


def test_second_sdk_scores_with_tokens_of_entra(plane: ManagementPlane, v2_router: Router, tmp_path: Path) -> None:
    plane.endpoints = {"entra": endpoint_of(v2_router, "entra", V2, auth_mode="aad_token")}
    now = int(time.time())
    claims = {"iss": plane.url, "aud": RESOURCE, "iat": now, "nbf": now, "exp": now + 600, "sub": "user"}
    token = jwt.encode(claims, key_pair("entra"), "RS256", headers={"kid": "entra"})
    assert score_v2(plane, "entra", [1], directory=tmp_path, aad_token=token) == {"result": [1]}
    other = jwt.encode(claims, key_pair("other"), "RS256", headers={"kid": "entra"})
    assert "error" in score_v2(plane, "entra", [1], directory=tmp_path, aad_token=other)


def test_keys_are_imported_as_the_sdks_print_them(plane: ManagementPlane, start: StartRouter) -> None:
    keys = {"primaryKey": "Zm9yIHRlc3RzIG9ubHksIDE=", "secondaryKey": "Zm9yIHRlc3RzIG9ubHksIDI="}
    router = start({"old": echo_service(), "new": echo_service()})
    for name, prefix, version in (("old", V1, 1), ("new", V2, 2)):
        plane.endpoints = {name: replace(endpoint_of(router, name, prefix), keys=lambda: keys)}
        printed = run_sdk(plane, version, name, "keys")
        assert all(key in printed for key in keys.values())
        run_command(router, "keys", "import", name, "--replace", text=printed)
        expected = dict(zip(("primary", "secondary"), keys.values(), strict=True))
        assert KeyStore(router.state_dir).stored_keys(name) == expected


def test_first_sdk_reads_the_times_of_a_token(plane: ManagementPlane, router: Router) -> None:
    plane.endpoints = {"tokens": endpoint_of(router, "tokens", V1, auth_mode="aml_token")}
    token = json.loads(run_sdk(plane, 1, "tokens", "token"))
    assert token == {"seconds": 900.0, "type": "Bearer"}  # a quarter of token_lifetime_seconds


def test_documented_program_saves_the_keys_of_a_workspace(
    plane: ManagementPlane, router: Router, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plane.endpoints = {
        "keyed": endpoint_of(router, "keyed", V1),
        "open": endpoint_of(router, "open", V1, auth_mode=None),
        "tokens": endpoint_of(router, "tokens", V1, auth_mode="aml_token"),
        "ab": endpoint_of(router, "ab", V1, versions=VERSIONS),
    }
    (program,) = re.findall(r"^ *```python run\n(.*?)^ *```", MIGRATION.read_text(), re.MULTILINE | re.DOTALL)
    run_sdk(plane, 1, "-", "program", body=textwrap.dedent(program), directory=tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"keyed.json", "ab.json"}
    for file in tmp_path.iterdir():
        assert main(["keys", "import", file.stem, str(file), "--state-dir", str(router.state_dir)]) == 0
        assert "has these keys already" in capsys.readouterr().out
