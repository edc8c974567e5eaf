"""No output of a router contains a secret.

One router uses everything that has secrets: configured and generated keys, a token that it issued, HTTPS, valid and
invalid requests, a replica that crashes, a rejected file and a rejected certificate, with log level `debug` and a full
access log. Afterwards no key, token, private key, peer secret, body or query is found in its logs, in the pages of its
admin port, or in the arguments and environments of its processes.
"""

import contextlib
import json
import secrets
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import trustme

from router.net.tls import CertificatePair
from tests.certificates import SecretMount, issue
from tests.processes import TIMEOUT_SECONDS, send_request, wait_until
from tests.routers import Router, StartRouter, echo_service

AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)
PAIR, OTHER = issue(AUTHORITY, "127.0.0.1"), issue(AUTHORITY, "127.0.0.1")
PAGES = (
    *("/metrics", "/", "/status", "/status.json", "/healthz", "/readyz", "/logging", "/capacity/configured"),
    *("/capacity/generated", "/.well-known/jwks.json"),
)


def marker(what: str) -> str:
    """Return a string that occurs nowhere by chance."""
    return f"{what}-{secrets.token_hex(12)}"


CONFIGURED = {name: marker(name) for name in ("primary", "secondary")}
WRONG, BODY, QUERY, MISTYPED = (marker(name) for name in ("wrong", "body", "query", "mistyped"))


def services(**settings: object) -> dict[str, object]:
    return {
        "configured": echo_service(
            **({"primary_key": CONFIGURED["primary"], "secondary_key": CONFIGURED["secondary"]} | settings)
        ),
        "generated": echo_service(),
        "tokens": echo_service(token_auth_enabled=True, auth_enabled=False),
    }


def private_lines(pair: CertificatePair) -> Iterator[str]:
    """Yield the lines of a private key that are too long to occur by chance."""
    for line in pair.key.decode().splitlines():
        if len(line) > 30 and "-----" not in line:
            yield line


def send_requests(router: Router, generated: str) -> list[str]:
    """Send valid and invalid requests, with secrets in all their parts. Return the ids of the valid ones."""
    ids = []
    for service, key in (
        ("configured", CONFIGURED["primary"]),
        ("configured", CONFIGURED["secondary"]),
        ("generated", generated),
    ):
        response = router.score(service, BODY.encode(), Authorization=f"Bearer {key}")
        assert response.status == 200
        ids.append(response.headers["x-request-id"])
    wrong = [
        router.score("configured", BODY.encode(), Authorization=f"Bearer {WRONG}"),
        router.score("configured", BODY.encode(), Authorization=f"Basic {WRONG}"),
        router.score("configured", BODY.encode(), Authorization=CONFIGURED["primary"]),
        router.score("tokens", BODY.encode(), Authorization=f"Bearer {CONFIGURED['primary']}"),
        send_request(router.port, f"/api/v1/service/{CONFIGURED['primary']}/score", BODY.encode()),
        send_request(router.port, f"/{WRONG}", BODY.encode()),
    ]
    assert {response.status for response in wrong} == {401, 404}
    path = f"/api/v1/service/configured/score?key={QUERY}"
    assert send_request(router.port, path, BODY.encode(), Authorization=f"Bearer {CONFIGURED['primary']}").status == 200
    for malformed in (
        b"Authorization : Bearer ",
        b"Authorization: Bearer\x01 ",
        b"X: y\r\nAuthorization: x\r\nAuthorization: ",
    ):
        with socket.create_connection(("127.0.0.1", router.port), TIMEOUT_SECONDS) as sock:
            request = (
                b"POST /api/v1/service/configured/score HTTP/1.1\r\nHost: fe\r\n"
                + malformed
                + CONFIGURED["primary"].encode()
            )
            sock.sendall(request + b"\r\n\r\n" + BODY.encode())
            assert sock.recv(100).startswith(b"HTTP/1.1 400")
    return ids


def cause_errors(router: Router, mount: SecretMount) -> None:
    """Cause errors in the log: a replica that crashes, a rejected file and a rejected certificate."""
    crash = "/api/v1/service/configured/crash"
    assert (
        send_request(router.port, crash, BODY.encode(), Authorization=f"Bearer {CONFIGURED['primary']}").status == 502
    )
    for wrong in (
        {"primary_key": MISTYPED + "\n"},
        {"primary_kee": MISTYPED},
        {"num_replicas": MISTYPED[:3]},
    ):
        times = len(router.log("changed file rejected, keeping the previous one"))
        router.write_config(services(**wrong))  # type: ignore[arg-type]
        wait_until(
            lambda times=times: len(router.log("changed file rejected, keeping the previous one")) > times,  # type: ignore[misc]
            "rejection of the file",
        )
    mount.update(replace(OTHER, key=PAIR.key))
    router.wait_for_stderr("certificate rejected, the previous one stays in use")


def outputs(router: Router, ids: list[str]) -> dict[str, str]:
    """Return all that can be read of a router from outside, by its source."""
    found = {"standard error": router.stderr, "standard output": router.stdout}
    for page in (*PAGES, *(f"/explain/{id_}" for id_ in ids)):
        response = send_request(router.admin_port, page)
        found[page] = response.body.decode(errors="replace") + str(response.headers)
    for pid in router.process_tree:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                found[f"{name} of {pid}"] = Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    return found


def test_no_output_contains_a_secret(start: StartRouter, tmp_path: Path) -> None:
    mount = SecretMount(tmp_path / "tls", PAIR)
    tls = {"https_port": 0, "tls_cert_file": mount.certificate, "tls_key_file": mount.key}
    flags = ("--log-level", "debug", "--access-log", "on")
    router = start(services(), *flags, workers=2, **tls)
    generated = {which: router.key("generated", which) for which in ("primary", "secondary")}
    ids = send_requests(router, generated["primary"])
    issued = send_request(
        router.admin_port, "/api/v1/service/tokens/token", b"", Authorization=f"Bearer {router.key('tokens')}"
    )
    token = json.loads(issued.body)["accessToken"]
    assert router.score("tokens", BODY.encode(), Authorization=f"Bearer {token}").status == 200
    cause_errors(router, mount)
    wait_until(lambda: len(router.stdout.splitlines()) >= 10, "access log")
    secret = {
        **{f"configured {name} key": key for name, key in CONFIGURED.items()},
        **{f"generated {name} key": key for name, key in generated.items()},
        "wrong key": WRONG, "mistyped key": MISTYPED, "body": BODY, "query": QUERY,
        "token": token, "signature of the token": token.rpartition(".")[2],
        "peer secret": (router.state_dir / "peer-secret").read_bytes().hex(),
        **{f"private key {number}": line for number, line in enumerate((*private_lines(PAIR), *private_lines(OTHER)))},
    }  # fmt: skip
    found = outputs(router, ids)
    assert len(found) > len(PAGES) + 6
    for source, text in found.items():
        for name, value in secret.items():
            assert value not in text, f"{name} in {source}"
    assert all(len(value) >= 16 for value in secret.values())
