"""The router as an issuer: the command `token`, the admin port, and secrets that must not leak."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.processes import Response, send_request, wait_until
from tests.routers import ROOT, Router, StartRouter, echo_service, joined_router, router_environment

SERVICES = {
    "iris": echo_service(token_auth_enabled=True),
    "resnet": echo_service(token_auth_enabled=True),
    "keyed": echo_service(),
}
CHALLENGE = 'Bearer realm="azureml-fe"'


@pytest.fixture(scope="module")
def router(start_for_all: StartRouter) -> Router:
    return start_for_all(SERVICES, access_log="on", log_level="debug")


def run_command(router: Router, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "router", *arguments, "--state-dir", str(router.state_dir)]
    return subprocess.run(command, cwd=ROOT, env=router_environment(), capture_output=True, text=True, check=False)


def issue(router: Router, *flags: str, service: str = "iris") -> dict[str, Any]:
    completed = run_command(router, "token", service, *flags)
    assert completed.returncode == 0, completed.stderr
    document: dict[str, Any] = json.loads(completed.stdout)
    return document


def request_token(router: Router, service: str = "iris", query: str = "", key: str | None = None) -> Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return send_request(router.admin_port, f"/api/v1/service/{service}/token{query}", b"", **headers)


def score(router: Router, token: str, service: str = "iris") -> Response:
    return router.score(service, Authorization=f"Bearer {token}")


def test_command_prints_a_token_in_the_format_of_both_sdks(router: Router) -> None:
    before = time.time()
    document = issue(router, "--ttl", "600")
    first = {"accessToken", "tokenType", "refreshAfter", "expiryOn"}
    assert document.keys() == first | {"refreshAfterTimeUtc", "expiryTimeUtc"}
    assert document["refreshAfterTimeUtc"] == document["refreshAfter"]
    assert document["expiryTimeUtc"] == document["expiryOn"]
    assert before + 599 <= document["expiryOn"] <= time.time() + 600
    assert document["expiryOn"] - 600 < document["refreshAfter"] < document["expiryOn"]
    assert document["tokenType"] == "Bearer"
    assert score(router, document["accessToken"]).body == b"[1]"
    bare = run_command(router, "token", "iris", "--bare").stdout
    assert score(router, bare.strip()).status == 200


def test_token_is_valid_for_its_own_service_only(router: Router) -> None:
    token = issue(router)["accessToken"]
    for service in ("resnet", "keyed"):
        response = score(router, token, service)
        assert (response.status, response.headers["www-authenticate"]) == (401, CHALLENGE + ', error="invalid_token"')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["iris", "--ttl", "59"], "flag --ttl: ttl = '59': must be a whole number from 60 to 86400 (s)"),
        (["iris", "--ttl", "x"], "flag --ttl: ttl = 'x': must be a whole number from 60 to 86400 (s)"),
        (["Iris!"], 'STATE: no service "Iris!"; did you mean iris? services: iris, keyed, resnet'),
    ],
)
def test_command_rejects_invalid_arguments(router: Router, arguments: list[str], message: str) -> None:
    message = message.replace("STATE", str(router.state_dir))
    completed = run_command(router, "token", *arguments)
    assert (completed.returncode, completed.stdout, completed.stderr) == (2, "", f"azureml-fe: {message}\n")


def test_client_with_a_key_of_the_service_gets_a_token(router: Router) -> None:
    for which in ("primary", "secondary"):
        response = request_token(router, query="?ttl=60", key=router.key("iris", which))
        assert (response.status, response.headers["cache-control"]) == (200, "no-store")
        document = json.loads(response.body)
        assert document["expiryOn"] <= time.time() + 60
        assert score(router, document["accessToken"]).status == 200


def test_client_without_a_key_of_the_service_gets_no_token(router: Router) -> None:
    assert request_token(router).headers["www-authenticate"] == CHALLENGE
    wrong = request_token(router, key="wrong")
    assert (wrong.status, wrong.headers["www-authenticate"]) == (401, CHALLENGE + ', error="invalid_token"')
    assert request_token(router, key=router.key("resnet")).status == 401
    assert request_token(router, key=issue(router)["accessToken"]).status == 401
    assert request_token(router, key="\xff\xfe").status == 401
    assert request_token(router, "nothing", key=router.key("iris")).status == 404
    assert request_token(router, "keyed", key=router.key("keyed")).status == 409
    assert send_request(router.admin_port, "/api/v1/service/iris/token").status == 405
    for ttl in ("0", "59", "86401", "1e3", "", "-60"):
        assert request_token(router, query=f"?ttl={ttl}", key=router.key("iris")).status == 400


def test_published_keys_verify_tokens_of_the_router(router: Router) -> None:
    token = issue(router)["accessToken"]
    response = send_request(router.admin_port, "/.well-known/jwks.json")
    published = jwt.PyJWKSet.from_json(response.body.decode())
    key = published[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["ES256"], audience="azureml-fe/service/iris", issuer="azureml-fe")
    assert claims["sub"] == "iris"
    assert all("d" not in each for each in json.loads(response.body)["keys"])


def test_router_with_issuing_off_rejects_its_own_tokens(start: StartRouter, tmp_path: Path) -> None:
    router = start({"iris": echo_service(token_auth_enabled=True)}, token_issuing=False)
    assert score(router, issue(router)["accessToken"]).status == 401
    assert request_token(router, key=router.key("iris")).status == 503
    assert json.loads(send_request(router.admin_port, "/.well-known/jwks.json").body) == {"keys": []}


def test_lost_keys_are_replaced(start: StartRouter) -> None:
    """Tokens of the lost keys are rejected once the router has read the new ones."""
    router = start({"iris": echo_service(token_auth_enabled=True)})
    old = issue(router)["accessToken"]
    assert score(router, old).status == 200
    (router.state_dir / "token-keys.json").unlink()
    new = issue(router)["accessToken"]
    wait_until(lambda: score(router, new).status == 200, "the new key")
    assert score(router, old).status == 401


def test_router_that_joins_accepts_the_same_tokens(start: StartRouter) -> None:
    router = start({"iris": echo_service(token_auth_enabled=True, replica_max_concurrent_requests=0)})
    token = issue(router)["accessToken"]
    with joined_router(router) as port:
        path = "/api/v1/service/iris/score"
        wait_until(
            lambda: send_request(port, path, b"[1]", Authorization=f"Bearer {token}").status == 200,
            "a successful request",
        )
        assert send_request(port, path, b"[1]").status == 401


def test_no_secret_leaks(router: Router) -> None:
    """Keys, tokens (valid and invalid) and signing keys are in no log, page, command line or environment."""
    valid = issue(router)["accessToken"]
    by_key = json.loads(request_token(router, key=router.key("iris")).body)["accessToken"]
    forged = valid[:-4] + ("AAAA" if valid[-4:] != "AAAA" else "BBBB")
    guess = "guessed-key-7f3a"
    for token in (valid, by_key, forged, guess, "a.b.c"):
        score(router, token)
    router.score("keyed", Authorization=f"Bearer {router.key('keyed')}")
    router.score("keyed", Authorization=f"Bearer {guess}")
    router.score("nothing", Authorization=f"Bearer {valid}")
    send_request(router.port, f"/api/v1/service/iris/score?token={valid}", b"[1]", Authorization=f"Bearer {valid}")
    request_token(router, key=guess)
    private = json.loads((router.state_dir / "token-keys.json").read_text())["keys"][0]["private"].splitlines()
    secrets = [
        *(router.key(service, which) for service in SERVICES for which in ("primary", "secondary")),
        *(part for token in (valid, by_key, forged) for part in (token.split(".")[1], token.split(".")[2])),
        *private[1:-1],
        guess,
    ]
    pages = ["/metrics", "/status", "/status.json", "/healthz", "/readyz", "/.well-known/jwks.json"]
    request_id = router.access_log[-1]["request_id"]
    pages += [f"/explain/{request_id}", "/capacity/iris"]
    texts = {page: send_request(router.admin_port, page).body.decode() for page in pages}
    wait_until(lambda: any(line["status"] == 404 for line in router.access_log), "the access log")
    texts |= {"log": router.stderr, "access log": router.stdout}
    for pid in router.process_tree:
        for what in ("cmdline", "environ"):
            texts[f"{what} of {pid}"] = Path(f"/proc/{pid}/{what}").read_bytes().decode("latin-1")
    leaked = [(where, secret[:6]) for where, text in texts.items() for secret in secrets if secret in text]
    assert leaked == []
    assert texts["access log"].count('"service":"iris"') > 5  # the access log is not empty
