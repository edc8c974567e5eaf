"""The router as an issuer: `azureml-fe local` with its command and its admin port, and what of it is told to nobody."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.processes import Answer, ask, until
from tests.routers import ROOT, Router, Start, echo, environment, joined

SERVICES = {"iris": echo(token_auth_enabled=True), "resnet": echo(token_auth_enabled=True), "keyed": echo()}
CHALLENGE = 'Bearer realm="azureml-fe"'


@pytest.fixture(scope="module")
def router(start_for_all: Start) -> Router:
    return start_for_all(SERVICES, access_log="on", log_level="debug")


def run(router: Router, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "router", *words, "--state-dir", str(router.state)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def issued(router: Router, *flags: str, service: str = "iris") -> dict[str, Any]:
    ran = run(router, "token", service, *flags)
    assert ran.returncode == 0, ran.stderr
    document: dict[str, Any] = json.loads(ran.stdout)
    return document


def fetch(router: Router, service: str = "iris", query: str = "", key: str | None = None) -> Answer:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return ask(router.admin_port, f"/api/v1/service/{service}/token{query}", b"", **headers)


def score(router: Router, token: str, service: str = "iris") -> Answer:
    return router.score(service, Authorization=f"Bearer {token}")


def test_command_prints_a_token_as_the_sdk_knows_it(router: Router) -> None:
    before = time.time()
    document = issued(router, "--ttl", "600")
    assert list(document) == ["accessToken", "refreshAfter", "expiryOn", "tokenType"]
    assert before + 599 <= document["expiryOn"] <= time.time() + 600
    assert document["expiryOn"] - 600 < document["refreshAfter"] < document["expiryOn"]
    assert document["tokenType"] == "Bearer"
    assert score(router, document["accessToken"]).body == b"[1]"
    bare = run(router, "token", "iris", "--bare").stdout
    assert score(router, bare.strip()).status == 200


def test_token_is_good_for_its_own_service_only(router: Router) -> None:
    token = issued(router)["accessToken"]
    for service in ("resnet", "keyed"):
        answer = score(router, token, service)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, CHALLENGE + ', error="invalid_token"')


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["iris", "--ttl", "59"], "flag --ttl: ttl = '59': must be a whole number from 60 to 86400 (s)"),
        (["iris", "--ttl", "x"], "flag --ttl: ttl = 'x': must be a whole number from 60 to 86400 (s)"),
        (["Iris!"], "SERVICE = 'Iris!': must be the name of a service"),
    ],
)
def test_command_refuses(router: Router, words: list[str], said: str) -> None:
    ran = run(router, "token", *words)
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", f"azureml-fe: {said}\n")


def test_who_has_a_key_of_the_service_is_given_a_token(router: Router) -> None:
    for which in ("primary", "secondary"):
        answer = fetch(router, query="?ttl=60", key=router.key("iris", which))
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        document = json.loads(answer.body)
        assert document["expiryOn"] <= time.time() + 60
        assert score(router, document["accessToken"]).status == 200


def test_nobody_else_is(router: Router) -> None:
    assert fetch(router).headers["www-authenticate"] == CHALLENGE
    wrong = fetch(router, key="wrong")
    assert (wrong.status, wrong.headers["www-authenticate"]) == (401, CHALLENGE + ', error="invalid_token"')
    assert fetch(router, key=router.key("resnet")).status == 401
    assert fetch(router, key=issued(router)["accessToken"]).status == 401
    assert fetch(router, key="\xff\xfe").status == 401
    assert fetch(router, "nothing", key=router.key("iris")).status == 404
    assert fetch(router, "keyed", key=router.key("keyed")).status == 409
    assert ask(router.admin_port, "/api/v1/service/iris/token").status == 405
    for ttl in ("0", "59", "86401", "1e3", "", "-60"):
        assert fetch(router, query=f"?ttl={ttl}", key=router.key("iris")).status == 400


def test_published_keys_verify_its_tokens_anywhere(router: Router) -> None:
    token = issued(router)["accessToken"]
    answer = ask(router.admin_port, "/.well-known/jwks.json")
    published = jwt.PyJWKSet.from_json(answer.body.decode())
    key = published[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["ES256"], audience="azureml-fe/service/iris", issuer="azureml-fe")
    assert claims["sub"] == "iris"
    assert all("d" not in each for each in json.loads(answer.body)["keys"])


def test_router_that_issues_none_accepts_none_of_its_own(start: Start, tmp_path: Path) -> None:
    router = start({"iris": echo(token_auth_enabled=True)}, token_issuing=False)
    assert score(router, issued(router)["accessToken"]).status == 401
    assert fetch(router, key=router.key("iris")).status == 503
    assert json.loads(ask(router.admin_port, "/.well-known/jwks.json").body) == {"keys": []}


def test_keys_that_are_lost_are_made_anew(start: Start) -> None:
    """And tokens of the former ones are good no more, once the router has looked."""
    router = start({"iris": echo(token_auth_enabled=True)})
    former = issued(router)["accessToken"]
    assert score(router, former).status == 200
    (router.state / "token-keys.json").unlink()
    fresh = issued(router)["accessToken"]
    until(lambda: score(router, fresh).status == 200, "the new key")
    assert score(router, former).status == 401


def test_router_that_joins_accepts_the_same_tokens(start: Start) -> None:
    router = start({"iris": echo(token_auth_enabled=True, replica_max_concurrent_requests=0)})
    token = issued(router)["accessToken"]
    with joined(router) as port:
        path = "/api/v1/service/iris/score"
        until(lambda: ask(port, path, b"[1]", Authorization=f"Bearer {token}").status == 200, "a request there")
        assert ask(port, path, b"[1]").status == 401


def test_no_secret_is_told_anywhere(router: Router) -> None:
    """Keys, tokens (good, bad and nearly good), signing keys: not in what a run prints, serves or passes on."""
    good = issued(router)["accessToken"]
    by_key = json.loads(fetch(router, key=router.key("iris")).body)["accessToken"]
    nearly = good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB")
    guess = "guessed-key-7f3a"
    for token in (good, by_key, nearly, guess, "a.b.c"):
        score(router, token)
    router.score("keyed", Authorization=f"Bearer {router.key('keyed')}")
    router.score("keyed", Authorization=f"Bearer {guess}")
    router.score("nothing", Authorization=f"Bearer {good}")
    ask(router.port, f"/api/v1/service/iris/score?token={good}", b"[1]", Authorization=f"Bearer {good}")
    fetch(router, key=guess)
    private = json.loads((router.state / "token-keys.json").read_text())["keys"][0]["private"].splitlines()
    secrets = [
        *(router.key(service, which) for service in SERVICES for which in ("primary", "secondary")),
        *(part for token in (good, by_key, nearly) for part in (token.split(".")[1], token.split(".")[2])),
        *private[1:-1],
        guess,
    ]
    pages = ["/metrics", "/status", "/status.json", "/healthz", "/readyz", "/.well-known/jwks.json"]
    request_id = router.access_log[-1]["request_id"]
    pages += [f"/explain/{request_id}", "/capacity/iris"]
    told = {page: ask(router.admin_port, page).body.decode() for page in pages}
    until(lambda: any(line["status"] == 404 for line in router.access_log), "the access log")
    told |= {"log": router.said, "access log": router.printed}
    for pid in router.family:
        for what in ("cmdline", "environ"):
            told[f"{what} of {pid}"] = Path(f"/proc/{pid}/{what}").read_bytes().decode("latin-1")
    leaked = [(where, secret[:6]) for where, text in told.items() for secret in secrets if secret in text]
    assert leaked == []
    assert told["access log"].count('"service":"iris"') > 5  # it was looked at, and is not empty
