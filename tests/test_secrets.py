"""Everything that a full run emits, searched for everything that nobody may read there.

One router does all that it can: keys given and generated, a token of its own, HTTPS, requests right and wrong, a
replica that dies, a file and a certificate that are refused, at the most talkative level of the log and with each
request in the access log. Afterwards no key, token, private key, secret of the peers, body or query stands in what it
wrote, in what its admin port says, or in the arguments and environments of its processes.
"""

import contextlib
import json
import secrets
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import trustme

from router.tls import Material
from tests.certificates import Mount, issue
from tests.processes import PATIENCE_SECONDS, ask, until
from tests.routers import Router, Start, echo

AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)
PAIR, OTHER = issue(AUTHORITY, "127.0.0.1"), issue(AUTHORITY, "127.0.0.1")
PAGES = (
    *("/metrics", "/", "/status", "/status.json", "/healthz", "/readyz", "/logging", "/capacity/given"),
    *("/capacity/made", "/.well-known/jwks.json"),
)


def marker(what: str) -> str:
    return f"{what}-{secrets.token_hex(12)}"


GIVEN = {name: marker(name) for name in ("primary", "secondary")}
WRONG, BODY, ANSWER, QUERY, MISTYPED = (marker(name) for name in ("wrong", "body", "answer", "query", "mistyped"))


def services(**given: object) -> dict[str, object]:
    return {
        "given": echo(**({"primary_key": GIVEN["primary"], "secondary_key": GIVEN["secondary"]} | given)),
        "made": echo(),
        "tokens": echo(token_auth_enabled=True, auth_enabled=False),
    }


def private_lines(material: Material) -> Iterator[str]:
    """The lines of a private key that nobody could have by chance."""
    for line in material.key.decode().splitlines():
        if len(line) > 30 and "-----" not in line:
            yield line


def ask_all_ways(router: Router, made: str) -> list[str]:
    """Requests right and wrong, with secrets wherever a client may put them. The ids of some."""
    ids = []
    for service, key in (("given", GIVEN["primary"]), ("given", GIVEN["secondary"]), ("made", made)):
        answer = router.score(service, BODY.encode(), Authorization=f"Bearer {key}")
        assert answer.status == 200
        ids.append(answer.headers["x-request-id"])
    wrong = [
        router.score("given", BODY.encode(), Authorization=f"Bearer {WRONG}"),
        router.score("given", BODY.encode(), Authorization=f"Basic {WRONG}"),
        router.score("given", BODY.encode(), Authorization=GIVEN["primary"]),
        router.score("tokens", BODY.encode(), Authorization=f"Bearer {GIVEN['primary']}"),
        ask(router.port, f"/api/v1/service/{GIVEN['primary']}/score", BODY.encode()),
        ask(router.port, f"/{WRONG}", BODY.encode()),
    ]
    assert {answer.status for answer in wrong} == {401, 404}
    path = f"/api/v1/service/given/score?key={QUERY}"
    assert ask(router.port, path, BODY.encode(), Authorization=f"Bearer {GIVEN['primary']}").status == 200
    for fault in (
        b"Authorization : Bearer ",
        b"Authorization: Bearer\x01 ",
        b"X: y\r\nAuthorization: x\r\nAuthorization: ",
    ):
        with socket.create_connection(("127.0.0.1", router.port), PATIENCE_SECONDS) as line:
            request = b"POST /api/v1/service/given/score HTTP/1.1\r\nHost: fe\r\n" + fault + GIVEN["primary"].encode()
            line.sendall(request + b"\r\n\r\n" + BODY.encode())
            assert line.recv(100).startswith(b"HTTP/1.1 400")
    return ids


def break_things(router: Router, mount: Mount, given: dict[str, str]) -> None:
    """What leads to errors in the log: a replica that dies, a file and a certificate that cannot be used."""
    crash = "/api/v1/service/given/crash"
    assert ask(router.port, crash, BODY.encode(), Authorization=f"Bearer {given['primary']}").status == 502
    for wrong in (
        {"primary_key": MISTYPED + "\n"},
        {"primary_kee": MISTYPED},
        {"num_replicas": MISTYPED[:3]},
    ):
        times = len(router.log("changed file refused, the former one stays in force"))
        router.write(services(**wrong))  # type: ignore[arg-type]
        until(
            lambda times=times: len(router.log("changed file refused, the former one stays in force")) > times,  # type: ignore[misc]
            "refusal of the file",
        )
    mount.turn(replace(OTHER, key=PAIR.key))
    router.says("certificate refused, the former one stays in force")


def emitted(router: Router, ids: list[str]) -> dict[str, str]:
    """All that can be read of a router from outside, by where."""
    found = {"standard error": router.said, "standard output": router.printed}
    for page in (*PAGES, *(f"/explain/{id_}" for id_ in ids)):
        answer = ask(router.admin_port, page)
        found[page] = answer.body.decode(errors="replace") + str(answer.headers)
    for pid in router.family:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                found[f"{name} of {pid}"] = Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    return found


def test_nothing_secret_is_emitted(start: Start, tmp_path: Path) -> None:
    mount = Mount(tmp_path / "tls", PAIR)
    tls = {"https_port": 0, "tls_cert_file": mount.certificate, "tls_key_file": mount.key}
    flags = ("--log-level", "debug", "--access-log", "on")
    router = start(services(), *flags, workers=2, **tls)
    made = {which: router.key("made", which) for which in ("primary", "secondary")}
    ids = ask_all_ways(router, made["primary"])
    issued = ask(router.admin_port, "/api/v1/service/tokens/token", b"", Authorization=f"Bearer {router.key('tokens')}")
    token = json.loads(issued.body)["accessToken"]
    assert router.score("tokens", BODY.encode(), Authorization=f"Bearer {token}").status == 200
    break_things(router, mount, GIVEN)
    until(lambda: len(router.printed.splitlines()) >= 10, "access log")
    secret = {
        **{f"given {name} key": key for name, key in GIVEN.items()},
        **{f"generated {name} key": key for name, key in made.items()},
        "key that was wrong": WRONG, "key that was mistyped": MISTYPED, "body": BODY, "query": QUERY,
        "token": token, "signature of the token": token.rpartition(".")[2],
        "secret of the peers": (router.state / "peer-secret").read_bytes().hex(),
        **{f"private key {number}": line for number, line in enumerate((*private_lines(PAIR), *private_lines(OTHER)))},
    }  # fmt: skip
    everything = emitted(router, ids)
    assert len(everything) > len(PAGES) + 6
    for place, text in everything.items():
        for name, value in secret.items():
            assert value not in text, f"{name} stands in {place}"
    assert all(len(value) >= 16 for value in secret.values())
