"""The `token_issuers:` section."""

from __future__ import annotations

from typing import Any

import pytest

from router.auth.issuers import MAX_ISSUERS, ROUTER_ISSUER, Issuer, is_safe_url, parse_issuers, router_audience
from router.config.schema import SettingsError

TENANT = "7f0b0e9e-0000-4000-8000-7f7a6f1b0c11"


def locate(path: tuple[str, ...]) -> str:
    return "m.yaml, line 9" if path else "m.yaml"


def parse_one(**settings: Any) -> Issuer:
    return parse_issuers({"corp": settings}, locate)["corp"]


def error_of(raw: object) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_issuers(raw, locate)
    return str(caught.value)


def test_empty_section_has_no_issuers() -> None:
    assert parse_issuers(None, locate) == {}
    assert parse_issuers({}, locate) == {}


def test_preset_entra_v1() -> None:
    assert parse_one(preset="entra-v1", tenant=TENANT, audience="api://iris") == Issuer(
        name="corp",
        issuer=f"https://sts.windows.net/{TENANT}/",
        audience=("api://iris",),
        jwks_url=f"https://login.microsoftonline.com/{TENANT}/discovery/keys",
        algorithms=("RS256",),
    )


def test_preset_entra_v2() -> None:
    issuer = parse_one(preset="entra-v2", tenant=TENANT, audience=["a", "b"], required_roles="Score,Read")
    assert issuer == Issuer(
        name="corp",
        issuer=f"https://login.microsoftonline.com/{TENANT}/v2.0",
        audience=("a", "b"),
        jwks_url=f"https://login.microsoftonline.com/{TENANT}/discovery/v2.0/keys",
        algorithms=("RS256",),
        required_roles=("Score", "Read"),
    )


def test_settings_override_a_preset() -> None:
    china = parse_one(
        preset="entra-v2",
        tenant=TENANT,
        audience="a",
        issuer=f"https://login.partner.microsoftonline.cn/{TENANT}/v2.0",
        jwks_url=f"https://login.partner.microsoftonline.cn/{TENANT}/discovery/v2.0/keys?appid=x",
    )
    assert china.issuer.startswith("https://login.partner.microsoftonline.cn/")
    assert china.jwks_url is not None
    assert china.jwks_url.endswith("?appid=x")


def test_issuer_without_jwks_url_is_discovered() -> None:
    issuer = parse_one(
        issuer="https://idp.example.com/realm/",
        audience="api://{service}/x",
        required_claims={"tid": "t1"},
        clock_skew_seconds="5",
        ca_file="ca.pem",
    )
    assert issuer.discovery_url == "https://idp.example.com/realm/.well-known/openid-configuration"
    assert issuer.audiences_of("iris") == {"api://iris/x"}
    assert issuer.required_claims == (("tid", "t1"),)
    assert issuer.clock_skew_seconds == 5


def test_ca_file_is_resolved() -> None:
    settings = {"issuer": "https://x", "audience": "a", "ca_file": "ca.pem"}
    issuers = parse_issuers({"x": settings}, locate, resolve=lambda path: f"/directory/{path}")
    assert issuers["x"].ca_file == "/directory/ca.pem"


VALID = {"issuer": "https://x", "audience": "a"}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "m.yaml: token_issuers: must be a mapping of names to issuers"),
        ({"Corp": {}}, "m.yaml, line 9: issuer name = 'Corp': must be 1 to 63 of"),
        ({"router": {}}, "issuer name = 'router': is the name of the router itself"),
        ({"corp": None}, "token issuer corp: issuer: must be a mapping"),
        ({"corp": {}}, "token issuer corp: issuer: must be given, or a preset"),
        ({"corp": {"isuer": "x"}}, "isuer: no such setting; did you mean issuer?"),
        ({"corp": {"issuer": "https://x"}}, "audience: must be given: otherwise a token for any other program"),
        ({"corp": {"issuer": "https://x", "audience": []}}, "audience: must be given"),
        ({"corp": {"issuer": "http://x", "audience": "a"}}, "issuer = 'http://x': must be an https URL"),
        ({"corp": {"issuer": "idp", "audience": "a"}}, "or give jwks_url"),
        ({"corp": {"issuer": "azureml-fe", "audience": "a", "jwks_url": "https://x"}}, "is the issuer of the router"),
        ({"corp": {**VALID, "jwks_url": "http://x/keys"}}, "jwks_url = 'http://x/keys': must"),
        ({"corp": {**VALID, "jwks_url": "ftp://x"}}, "jwks_url = 'ftp://x': must be an https URL"),
        ({"corp": {"preset": "entra-v3"}}, "preset = 'entra-v3': must be one of entra-v1, entra-v2"),
        ({"corp": {"preset": "entra-v2", "audience": "a"}}, "preset = 'entra-v2': needs tenant"),
        ({"corp": {"preset": "entra-v2", "tenant": "common", "audience": "a"}}, "tenant = 'common': must be a GUID"),
        ({"corp": {"tenant": TENANT, "audience": "a"}}, "needs a preset"),
        ({"corp": {**VALID, "algorithms": "none"}}, "algorithms = 'none': must be a list of"),
        ({"corp": {**VALID, "algorithms": "HS256"}}, "algorithms = 'HS256'"),
        ({"corp": {**VALID, "algorithms": ["RS256", "HS512"]}}, "algorithms"),
        ({"corp": {**VALID, "algorithms": []}}, "algorithms: must not be empty"),
        ({"corp": {**VALID, "clock_skew_seconds": "601"}}, "from 0 to 600 (s)"),
        ({"corp": {**VALID, "required_claims": {"tid": None}}}, "required_claims"),
        ({"corp": {**VALID, "required_claims": "tid"}}, "must be a mapping of names of claims"),
        (
            {"corp": {**VALID, "keys_max_age_seconds": 100, "keys_refresh_seconds": 200}},
            "keys_max_age_seconds = 100.0: must be at least keys_refresh_seconds (200)",
        ),
        (
            {f"i{number}": {} for number in range(MAX_ISSUERS + 1)},
            f"token_issuers = {MAX_ISSUERS + 1}: must not be more than {MAX_ISSUERS} issuers",
        ),
    ],
)  # fmt: skip
def test_invalid_section_is_rejected(raw: object, message: str) -> None:
    assert message in error_of(raw)


@pytest.mark.parametrize(
    "url",
    ["https://idp.example.com/keys", "https://idp.example.com:8443/a?b=c", "http://127.0.0.1:8000/keys",
     "http://127.1.2.3/", "http://[::1]:8000/", "http://localhost:80/", "https://10.0.0.1/"],
)  # fmt: skip
def test_safe_url_is_accepted(url: str) -> None:
    assert is_safe_url(url)


@pytest.mark.parametrize(
    "url",
    ["http://idp.example.com/keys", "http://10.0.0.1/", "http://localhost.example.com/",
     "http://127.0.0.1.example.com/",
     "https://user@host/", "https://user:secret@host/", "https:///keys", "https://host:0/", "https://host:99999/",
     "https://host/#x", "file:///etc/passwd", "//host/keys", "host", "", "https://[::1", "http://2130706433/",
     "https://hö.example/"],
)  # fmt: skip
def test_unsafe_url_is_rejected(url: str) -> None:
    assert not is_safe_url(url)


def test_audience_of_the_router_is_bound_to_the_service() -> None:
    assert ROUTER_ISSUER.audiences_of("iris") == {router_audience("iris")}
    assert router_audience("iris") != router_audience("resnet")
