"""HTTPS as clients see it: a router process with mounted certificates, `openssl s_client` on the other side."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from router.peers.handshake import MAGIC
from router.tls import Material
from tests.certificates import Mount, issue
from tests.processes import PATIENCE_SECONDS, Answer, Load, ask, ask_over, until
from tests.routers import Router, Start, environment, open_echo

AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)
ONE, OTHER, THIRD = (issue(AUTHORITY, "127.0.0.1", "fe.example.com") for _ in range(3))
ECHO = "/api/v1/service/echo/score"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context


def fingerprint(chain: bytes) -> bytes:
    """The first certificate of a chain, as a connection tells it."""
    return ssl.PEM_cert_to_DER_cert(chain[: chain.index(b"-----END CERTIFICATE-----") + 26].decode().strip() + "\n")


def https_port(router: Router) -> int:
    return int(router.says(r"https://127\.0\.0\.1:(\d+)")[1])


def shown(port: int) -> bytes:
    """The certificate that a new connection is shown."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
    with trusting().wrap_socket(plain, server_hostname="127.0.0.1") as line:
        certificate = line.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def is_shown(port: int, material: Material) -> None:
    """Wait until new connections are shown a certificate."""
    wanted = fingerprint(material.chain)
    until(lambda: shown(port) == wanted, "the certificate")


def score(port: int, body: bytes = b"[1]") -> Answer:
    line = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS, context=trusting())
    try:
        return ask_over(line, ECHO, body)
    finally:
        line.close()


def tls_load(port: int, clients: int = 4) -> Load:
    """Clients over TLS, half of them over a new connection each time."""
    return Load(port, ECHO, clients=clients, keep_alive=0.5, pause=0.005, context=trusting())


def settings(mount: Mount) -> dict[str, object]:
    return {"https_port": 0, "tls_cert_file": mount.certificate, "tls_key_file": mount.key}


@pytest.fixture(scope="module")
def router(start_for_all: Start, tmp_path_factory: pytest.TempPathFactory) -> Router:
    """One that no test changes."""
    mount = Mount(tmp_path_factory.mktemp("mount") / "tls", ONE)
    return start_for_all({"echo": open_echo()}, **settings(mount))


# What is spoken.


def test_both_ports_serve(router: Router) -> None:
    assert score(https_port(router), b"[1, 2]").body == b"[1, 2]"
    assert router.score("echo", b"[3]").body == b"[3]"


def s_client(port: int, *words: str, typed: bytes = b"") -> tuple[int, str]:
    """Exit code and output of `openssl s_client`, at security level 0, so that it is the server who refuses."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *words]
    done = subprocess.run(
        command, input=typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_SECONDS, check=False
    )
    return done.returncode, done.stdout.decode(errors="replace")


@needs_openssl
@pytest.mark.parametrize(("flag", "version"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
def test_versions_that_are_spoken(router: Router, flag: str, version: str) -> None:
    code, said = s_client(https_port(router), flag, "-alpn", "h2,http/1.1")
    assert code == 0, said
    assert re.search(rf"New, {re.escape(version)}, Cipher is \S+", said)
    assert "ALPN protocol: http/1.1" in said
    assert "Compression: NONE" in said
    assert version == "TLSv1.3" or "Secure Renegotiation IS" in said  # TLS 1.3 has none


@needs_openssl
@pytest.mark.parametrize("flag", ["-tls1", "-tls1_1"])
def test_versions_that_are_refused(router: Router, flag: str) -> None:
    code, said = s_client(https_port(router), flag, "-cipher", "ALL:@SECLEVEL=0")
    assert code != 0
    assert "Cipher is (NONE)" in said


WEAK = [
    *("DES-CBC3-SHA", "ECDHE-ECDSA-DES-CBC3-SHA", "RC4-SHA", "RC4-MD5", "NULL-SHA256", "ECDHE-ECDSA-NULL-SHA"),
    *("AECDH-AES256-SHA", "ADH-AES256-GCM-SHA384", "AES128-SHA", "AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-SHA"),
    *("ECDHE-ECDSA-AES128-SHA256", "DHE-RSA-AES256-GCM-SHA384", "CAMELLIA256-SHA", "SEED-SHA", "IDEA-CBC-SHA"),
    *("PSK-AES128-CBC-SHA", "ECDHE-ECDSA-AES128-CCM8"),
]


@needs_openssl
@pytest.mark.parametrize("cipher", WEAK)
def test_ciphers_that_are_refused(router: Router, cipher: str) -> None:
    code, said = s_client(https_port(router), "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")
    assert code != 0
    assert "Cipher is (NONE)" in said or "no cipher match" in said


@needs_openssl
def test_ciphers_that_are_spoken(router: Router) -> None:
    for cipher in ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"):
        code, said = s_client(https_port(router), "-tls1_2", "-cipher", cipher)
        assert code == 0, said
        assert f"Cipher is {cipher}" in said


@needs_openssl
def test_no_renegotiation(router: Router) -> None:
    """`R` alone in a line asks for one."""
    with subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{https_port(router)}", "-tls1_2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = b""
        while b"Verify return code" not in said:
            said += process.stdout.read(4096)
        process.stdin.write(b"R\n")
        while piece := process.stdout.read(4096):
            said += piece
    assert b"RENEGOTIATING" in said
    assert b"no renegotiation" in said


@needs_openssl
def test_sessions_are_resumed(router: Router, tmp_path: Path) -> None:
    for flag in ("-tls1_2", "-tls1_3"):
        kept = str(tmp_path / f"session{flag}")
        asked = b"GET / HTTP/1.1\r\nHost: fe\r\nConnection: close\r\n\r\n"
        words = (flag, "-quiet", "-no_ign_eof") if flag == "-tls1_2" else (flag, "-ign_eof")
        s_client(https_port(router), *words, "-sess_out", kept, typed=asked)
        _, said = s_client(https_port(router), flag, "-ign_eof", "-sess_in", kept, typed=asked)
        assert f"Reused, TLSv1.{flag[-1]}" in said, said


def test_http_on_the_port_of_https_is_not_answered(router: Router) -> None:
    with socket.create_connection(("127.0.0.1", https_port(router)), timeout=PATIENCE_SECONDS) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: fe\r\n\r\n")
        line.settimeout(PATIENCE_SECONDS)
        try:
            assert b"HTTP" not in line.recv(100)
        except ConnectionResetError:
            pass


# Another certificate.


def test_a_turned_secret_is_in_force_in_all_workers_and_no_request_fails(start: Start, tmp_path: Path) -> None:
    mount = Mount(tmp_path / "tls", ONE)
    router = start({"echo": open_echo(replica_max_concurrent_requests=8)}, workers=2, **settings(mount))
    port = https_port(router)
    kept = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS, context=trusting())
    ask_over(kept, ECHO, b"[1]")
    with tls_load(port) as load:
        load.goes_on()
        for following in (OTHER, THIRD):
            mount.turn(following)
            is_shown(port, following)
            load.goes_on()
            router.says("new certificate in force")
            # The supervisor tells the workers in one go; by now each has heard of it.
            assert {shown(port) for _ in range(30)} == {fingerprint(following.chain)}
            load.goes_on()
        line = kept.sock
        assert ask_over(kept, ECHO, b"[1]").status == 200
        assert kept.sock is line, "a connection that was open goes on"
    kept.close()
    assert load.all_well, load
    assert len(router.log("new certificate in force")) == 2


def test_bad_pairs_are_refused_and_the_former_one_stays(start: Start, tmp_path: Path) -> None:
    mount = Mount(tmp_path / "tls", ONE)
    router = start({"echo": open_echo()}, **settings(mount))
    port = https_port(router)
    expiry = router.metric("certificate_expiry_timestamp_seconds", certificate="server")
    bad = {
        "is not the key of the certificate": replace(OTHER, key=ONE.key),
        "expired at": issue(AUTHORITY, "127.0.0.1", ends=1_600_000_000.0),
    }
    with tls_load(port, clients=2) as load:
        for number, (reason, pair) in enumerate(bad.items(), 1):
            mount.turn(pair)
            router.says(REFUSED, times=number)
            assert reason in router.log(REFUSED)[-1]["error"]
            assert shown(port) == fingerprint(ONE.chain)
            assert router.metric("certificate_errors_total", certificate="server") == number
            assert router.metric("certificate_last_reload_success", certificate="server") == 0
            assert router.metric("certificate_expiry_timestamp_seconds", certificate="server") == expiry
        mount.turn(OTHER)
        is_shown(port, OTHER)
        until(lambda: router.metric("certificate_last_reload_success", certificate="server") == 1, "success")
        load.goes_on()
    assert load.all_well, load


REFUSED = "certificate refused, the former one stays in force"


def test_a_replaced_worker_shows_the_latest_certificate(start: Start, tmp_path: Path) -> None:
    mount = Mount(tmp_path / "tls", ONE)
    router = start({"echo": open_echo()}, **settings(mount))
    port = https_port(router)
    mount.turn(OTHER)
    is_shown(port, OTHER)
    (worker,) = router.workers
    os.kill(worker, signal.SIGKILL)
    until(lambda: router.workers not in ([], [worker]), "another worker")
    assert score(port).status == 200
    assert shown(port) == fingerprint(OTHER.chain)


def test_a_private_key_is_nowhere_to_be_seen(start: Start, tmp_path: Path) -> None:
    mount = Mount(tmp_path / "tls", ONE)
    router = start({"echo": open_echo()}, "--log-level", "debug", **settings(mount))
    assert score(https_port(router)).status == 200
    secret = max(ONE.key.splitlines(), key=len)
    assert len(secret) > 30
    for pid in router.family:
        for name in ("environ", "cmdline"):
            assert secret not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert secret.decode() not in router.said
    assert not [path for path in router.state.rglob("*") if path.is_file() and secret in path.read_bytes()]


# Whether it starts.


def refusal(tmp_path: Path, **router: object) -> str:
    """What it says when it does not start."""
    file = tmp_path / "models.yaml"
    service = {"addresses": ["127.0.0.1:9"], "auth_enabled": False}
    usual = {"port": 0, "admin_port": 0, "peer_port": 0, "state_dir": str(tmp_path / "state")}
    file.write_text(json.dumps({"services": {"echo": service}, "router": usual | router}))
    words = ["azureml-fe", "local", str(file)]
    done = subprocess.run(
        words, capture_output=True, text=True, env=environment(), timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("azureml-fe: ")]
    return line


def test_without_tls_it_starts_only_where_that_is_allowed(tmp_path: Path) -> None:
    said = refusal(tmp_path, host="0.0.0.0")
    assert "allow_insecure_connections: must be true, or tls_cert_file and tls_key_file must be given" in said
    assert "nor without at 0.0.0.0" in said
    assert "allow_insecure_connections = False" in refusal(tmp_path, allow_insecure_connections=False)


def test_a_bad_certificate_at_the_start(tmp_path: Path) -> None:
    mount = Mount(tmp_path / "tls", replace(ONE, key=OTHER.key))
    assert "tls_key_file" in refusal(tmp_path, **settings(mount))
    mount.turn(issue(AUTHORITY, ends=1_600_000_000.0))
    assert "tls_cert_file" in refusal(tmp_path, **settings(mount))
    assert "cannot be read: No such file" in refusal(
        tmp_path, tls_cert_file=str(tmp_path / "none"), tls_key_file=mount.key
    )
    assert "tls_key_file: must be given" in refusal(tmp_path, tls_cert_file=mount.certificate)


def test_without_plain_http_only_https_is_served(start: Start, tmp_path: Path) -> None:
    mount = Mount(tmp_path / "tls", ONE)
    router = start({"echo": open_echo()}, serving=False, allow_insecure_connections=False, **settings(mount))
    port = int(router.says(r"serves .+ at https://127\.0\.0\.1:(\d+)\n")[1])
    router.admin_port = int(router.says(r"metrics and health: http://127\.0\.0\.1:(\d+)/metrics")[1])
    router.says(rf"echo is ready: https://127\.0\.0\.1:{port}/api/v1/service/echo/score")
    assert "http://127.0.0.1:0" not in router.said
    assert score(port).status == 200


# Links between routers.


def test_routers_are_linked_over_tls(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    mount = Mount(tmp_path / "peers", issue(authority, "router"))
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    tls = {
        "peer_tls_cert_file": mount.certificate,
        "peer_tls_key_file": mount.key,
        "peer_tls_ca_file": str(tmp_path / "ca.pem"),
    }
    first = start({"echo": open_echo()}, peer_port=0, **tls)
    host, port = first.says(r"joins with: azureml-fe local --peer (\S+):(\d+) ").groups()
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as stranger:
        stranger.sendall(b"no hand-shake of TLS")
        assert MAGIC not in stranger.recv(1000)  # which is the first that is said without TLS
    with joined(first, tmp_path, **tls) as second:
        assert ask(second, ECHO, b"[2]").body == b"[2]"
        assert [line["tls"] for line in first.log("peer is up")] == ["TLSv1.3"]


def test_routers_encrypt_their_links_by_themselves(start: Start, tmp_path: Path) -> None:
    first = start({"echo": open_echo()}, peer_port=0)
    with joined(first, tmp_path) as second:
        assert ask(second, ECHO, b"[2]").body == b"[2]"
        assert [line["tls"] for line in first.log("peer is up")] == ["TLSv1.3"]
        assert first.metric("peers_unencrypted") == 0
    with joined(first, tmp_path, peer_tls="off") as third:
        assert ask(third, ECHO, b"[3]").body == b"[3]"
        assert first.metric("peers_unencrypted") == 1


@contextlib.contextmanager
def joined(first: Router, folder: Path, **settings: object) -> Iterator[int]:
    """A router that joins another one, until it is ready; its port."""
    peer = first.says(r"joins with: azureml-fe local --peer (\S+) ")[1]
    given = {"port": 0, "admin_port": 0, "workers": 1, "state_dir": first.state, **settings}
    variables = {f"AZUREML_FE_{name.upper()}": str(value) for name, value in given.items()}
    words = [sys.executable, "-m", "router", "local", "--peer", peer]
    said = folder / "joined.txt"
    with said.open("w") as errors, subprocess.Popen(words, env=environment() | variables, stderr=errors) as second:
        try:
            until(lambda: "echo is ready" in said.read_text(), "the second router")
            found = re.search(r"serves .+ at http://127\.0\.0\.1:(\d+)", said.read_text())
            assert found is not None
            yield int(found[1])
        finally:
            second.send_signal(signal.SIGINT)
        assert second.wait(PATIENCE_SECONDS) == 0
