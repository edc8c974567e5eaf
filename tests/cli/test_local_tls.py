"""HTTPS of a router process with mounted certificates, tested with `openssl s_client` and Python's client."""

import contextlib
import http.client
import json
import os
import re
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

from router.net.tls import CertificatePair
from router.peers.handshake import MAGIC
from tests.certificates import SecretMount, issue
from tests.processes import TIMEOUT_SECONDS, Load, Response, send_request, send_request_over, wait_until
from tests.routers import Router, StartRouter, open_echo_service, router_environment

AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)
FIRST, SECOND, THIRD = (issue(AUTHORITY, "127.0.0.1", "fe.example.com") for _ in range(3))
ECHO = "/api/v1/service/echo/score"


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context


def leaf_certificate(chain: bytes) -> bytes:
    """Return the first certificate of a PEM chain in DER, as `getpeercert` returns it."""
    return ssl.PEM_cert_to_DER_cert(chain[: chain.index(b"-----END CERTIFICATE-----") + 26].decode().strip() + "\n")


def https_port(router: Router) -> int:
    return int(router.wait_for_stderr(r"https://127\.0\.0\.1:(\d+)")[1])


def served_certificate(port: int) -> bytes:
    """Return the certificate served to a new connection."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
    with client_context().wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def wait_until_served(port: int, pair: CertificatePair) -> None:
    """Wait until a certificate is served to new connections."""
    expected = leaf_certificate(pair.chain)
    wait_until(lambda: served_certificate(port) == expected, "the certificate")


def score(port: int, body: bytes = b"[1]") -> Response:
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS, context=client_context())
    try:
        return send_request_over(connection, ECHO, body)
    finally:
        connection.close()


def tls_load(port: int, clients: int = 4) -> Load:
    """Clients over TLS; half of the requests use a new connection."""
    return Load(port, ECHO, clients=clients, keep_alive=0.5, pause=0.005, context=client_context())


def settings(mount: SecretMount) -> dict[str, object]:
    return {"https_port": 0, "tls_cert_file": mount.certificate, "tls_key_file": mount.key}


@pytest.fixture(scope="module")
def router(start_for_all: StartRouter, tmp_path_factory: pytest.TempPathFactory) -> Router:
    """A router that no test changes."""
    mount = SecretMount(tmp_path_factory.mktemp("mount") / "tls", FIRST)
    return start_for_all({"echo": open_echo_service()}, **settings(mount))


# Protocol versions and ciphers.


def test_both_ports_serve(router: Router) -> None:
    assert score(https_port(router), b"[1, 2]").body == b"[1, 2]"
    assert router.score("echo", b"[3]").body == b"[3]"


def s_client(port: int, *arguments: str, stdin: bytes = b"") -> tuple[int, str]:
    """Run `openssl s_client` and return its exit code and output."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *arguments]
    completed = subprocess.run(
        command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_SECONDS, check=False
    )
    return completed.returncode, completed.stdout.decode(errors="replace")


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(("flag", "version"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
def test_supported_tls_versions(router: Router, flag: str, version: str) -> None:
    code, output = s_client(https_port(router), flag, "-alpn", "h2,http/1.1")
    assert code == 0, output
    assert re.search(rf"New, {re.escape(version)}, Cipher is \S+", output)
    assert "ALPN protocol: http/1.1" in output
    assert "Compression: NONE" in output
    assert version == "TLSv1.3" or "Secure Renegotiation IS" in output  # TLS 1.3 has none


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("flag", ["-tls1", "-tls1_1"])
def test_unsupported_tls_versions_are_rejected(router: Router, flag: str) -> None:
    code, output = s_client(https_port(router), flag, "-cipher", "ALL:@SECLEVEL=0")
    assert code != 0
    assert "Cipher is (NONE)" in output


WEAK = [
    *("DES-CBC3-SHA", "ECDHE-ECDSA-DES-CBC3-SHA", "RC4-SHA", "RC4-MD5", "NULL-SHA256", "ECDHE-ECDSA-NULL-SHA"),
    *("AECDH-AES256-SHA", "ADH-AES256-GCM-SHA384", "AES128-SHA", "AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-SHA"),
    *("ECDHE-ECDSA-AES128-SHA256", "DHE-RSA-AES256-GCM-SHA384", "CAMELLIA256-SHA", "SEED-SHA", "IDEA-CBC-SHA"),
    *("PSK-AES128-CBC-SHA", "ECDHE-ECDSA-AES128-CCM8"),
]


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("cipher", WEAK)
def test_weak_ciphers_are_rejected(router: Router, cipher: str) -> None:
    code, output = s_client(https_port(router), "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")
    assert code != 0
    assert "Cipher is (NONE)" in output or "no cipher match" in output


@pytest.mark.needs("openssl")
def test_supported_ciphers(router: Router) -> None:
    for cipher in ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"):
        code, output = s_client(https_port(router), "-tls1_2", "-cipher", cipher)
        assert code == 0, output
        assert f"Cipher is {cipher}" in output


@pytest.mark.needs("openssl")
def test_renegotiation_is_rejected(router: Router) -> None:
    """`s_client` requests a renegotiation for a line with `R`."""
    with subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{https_port(router)}", "-tls1_2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        output = b""
        while b"Verify return code" not in output:
            output += process.stdout.read(4096)
        process.stdin.write(b"R\n")
        while piece := process.stdout.read(4096):
            output += piece
    assert b"RENEGOTIATING" in output
    assert b"no renegotiation" in output


@pytest.mark.needs("openssl")
def test_sessions_are_resumed(router: Router, tmp_path: Path) -> None:
    for flag in ("-tls1_2", "-tls1_3"):
        session = str(tmp_path / f"session{flag}")
        request = b"GET / HTTP/1.1\r\nHost: fe\r\nConnection: close\r\n\r\n"
        arguments = (flag, "-quiet", "-no_ign_eof") if flag == "-tls1_2" else (flag, "-ign_eof")
        s_client(https_port(router), *arguments, "-sess_out", session, stdin=request)
        _, output = s_client(https_port(router), flag, "-ign_eof", "-sess_in", session, stdin=request)
        assert f"Reused, TLSv1.{flag[-1]}" in output, output


def test_http_on_the_https_port_gets_400_that_says_so(router: Router) -> None:
    with socket.create_connection(("127.0.0.1", https_port(router)), timeout=TIMEOUT_SECONDS) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: fe\r\n\r\n")
        with line.makefile("rb") as response:
            head, _, text = response.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"HTTPS" in text


# Changed certificates.


def test_changed_secret_is_used_by_all_workers_and_no_request_fails(start: StartRouter, tmp_path: Path) -> None:
    mount = SecretMount(tmp_path / "tls", FIRST)
    router = start({"echo": open_echo_service(replica_max_concurrent_requests=8)}, workers=2, **settings(mount))
    port = https_port(router)
    kept = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS, context=client_context())
    send_request_over(kept, ECHO, b"[1]")
    with tls_load(port) as load:
        load.wait_for_responses()
        for pair in (SECOND, THIRD):
            mount.update(pair)
            wait_until_served(port, pair)
            load.wait_for_responses()
            router.wait_for_stderr("new certificate in use")
            # The supervisor sends it to all workers at once.
            assert {served_certificate(port) for _ in range(30)} == {leaf_certificate(pair.chain)}
            load.wait_for_responses()
        line = kept.sock
        assert send_request_over(kept, ECHO, b"[1]").status == 200
        assert kept.sock is line, "an open connection stays open"
    kept.close()
    assert load.all_succeeded, load
    assert len(router.log("new certificate in use")) == 2


def test_invalid_pairs_are_rejected_and_the_previous_one_stays(start: StartRouter, tmp_path: Path) -> None:
    mount = SecretMount(tmp_path / "tls", FIRST)
    router = start({"echo": open_echo_service()}, **settings(mount))
    port = https_port(router)
    expiry = router.metric("certificate_expiry_timestamp_seconds", certificate="server")
    invalid = {
        "is not the key of the certificate": replace(SECOND, key=FIRST.key),
        "expired at": issue(AUTHORITY, "127.0.0.1", not_after=1_600_000_000.0),
    }
    with tls_load(port, clients=2) as load:
        for number, (reason, pair) in enumerate(invalid.items(), 1):
            mount.update(pair)
            router.wait_for_stderr(REJECTED, times=number)
            assert reason in router.log(REJECTED)[-1]["error"]
            assert served_certificate(port) == leaf_certificate(FIRST.chain)
            assert router.metric("certificate_errors_total", certificate="server") == number
            assert router.metric("certificate_last_reload_success", certificate="server") == 0
            assert router.metric("certificate_expiry_timestamp_seconds", certificate="server") == expiry
        mount.update(SECOND)
        wait_until_served(port, SECOND)
        wait_until(lambda: router.metric("certificate_last_reload_success", certificate="server") == 1, "success")
        load.wait_for_responses()
    assert load.all_succeeded, load


REJECTED = "certificate rejected, the previous one stays in use"


def test_replaced_worker_serves_the_latest_certificate(start: StartRouter, tmp_path: Path) -> None:
    mount = SecretMount(tmp_path / "tls", FIRST)
    router = start({"echo": open_echo_service()}, **settings(mount))
    port = https_port(router)
    mount.update(SECOND)
    wait_until_served(port, SECOND)
    (worker,) = router.workers
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: router.workers not in ([], [worker]), "another worker")
    assert score(port).status == 200
    assert served_certificate(port) == leaf_certificate(SECOND.chain)


def test_private_key_is_not_in_logs_processes_or_files(start: StartRouter, tmp_path: Path) -> None:
    mount = SecretMount(tmp_path / "tls", FIRST)
    router = start({"echo": open_echo_service()}, "--log-level", "debug", **settings(mount))
    assert score(https_port(router)).status == 200
    secret = max(FIRST.key.splitlines(), key=len)
    assert len(secret) > 30
    for pid in router.process_tree:
        for name in ("environ", "cmdline"):
            assert secret not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert secret.decode() not in router.stderr
    assert not [path for path in router.state_dir.rglob("*") if path.is_file() and secret in path.read_bytes()]


# Start.


def start_error(tmp_path: Path, **router: object) -> str:
    """Return the error of a router that does not start."""
    file = tmp_path / "models.yaml"
    service = {"addresses": ["127.0.0.1:9"], "auth_enabled": False}
    defaults = {"port": 0, "admin_port": 0, "peer_port": 0, "state_dir": str(tmp_path / "state")}
    file.write_text(json.dumps({"services": {"echo": service}, "router": defaults | router}))
    command = ["azureml-fe", "local", str(file)]
    completed = subprocess.run(
        command, capture_output=True, text=True, env=router_environment(), timeout=TIMEOUT_SECONDS, check=False
    )
    assert completed.returncode == 2, completed.stderr
    (line,) = [line for line in completed.stderr.splitlines() if line.startswith("azureml-fe: ")]
    return line


def test_start_without_tls_must_be_allowed(tmp_path: Path) -> None:
    error = start_error(tmp_path, host="0.0.0.0")
    assert "is reachable from outside: set tls_cert_file and tls_key_file, or allow_insecure_connections" in error
    assert "models.yaml, line 1: router: host = '0.0.0.0': " in error
    assert "allow_insecure_connections = False" in start_error(tmp_path, allow_insecure_connections=False)


def test_invalid_certificate_at_the_start_is_an_error(tmp_path: Path) -> None:
    mount = SecretMount(tmp_path / "tls", replace(FIRST, key=SECOND.key))
    assert "tls_key_file" in start_error(tmp_path, **settings(mount))
    mount.update(issue(AUTHORITY, not_after=1_600_000_000.0))
    assert "tls_cert_file" in start_error(tmp_path, **settings(mount))
    assert "cannot be read: No such file" in start_error(
        tmp_path, tls_cert_file=str(tmp_path / "none"), tls_key_file=mount.key
    )
    assert "tls_key_file: must be given" in start_error(tmp_path, tls_cert_file=mount.certificate)


def test_only_https_is_served_without_insecure_connections(start: StartRouter, tmp_path: Path) -> None:
    mount = SecretMount(tmp_path / "tls", FIRST)
    router = start({"echo": open_echo_service()}, serving=False, allow_insecure_connections=False, **settings(mount))
    port = int(router.wait_for_stderr(r"serves .+ at https://127\.0\.0\.1:(\d+)\n")[1])
    router.admin_port = int(router.wait_for_stderr(r"status page: http://127\.0\.0\.1:(\d+)/")[1])
    router.wait_for_stderr(rf"echo is ready: https://127\.0\.0\.1:{port}/api/v1/service/echo/")
    assert "http://127.0.0.1:0" not in router.stderr
    assert score(port).status == 200


# Links between routers.


def test_routers_use_mounted_certificates_for_their_links(start: StartRouter, tmp_path: Path) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    mount = SecretMount(tmp_path / "peers", issue(authority, "router"))
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    tls = {
        "peer_tls_cert_file": mount.certificate,
        "peer_tls_key_file": mount.key,
        "peer_tls_ca_file": str(tmp_path / "ca.pem"),
    }
    first = start({"echo": open_echo_service()}, peer_port=0, **tls)
    host, port = first.wait_for_stderr(r"joins with: .+ local --peer (\S+):(\d+) ").groups()
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_SECONDS) as stranger:
        stranger.sendall(b"no TLS handshake")
        assert MAGIC not in stranger.recv(1000)  # the first bytes of a link without TLS
    with joined(first, tmp_path, **tls) as second:
        assert send_request(second, ECHO, b"[2]").body == b"[2]"
        assert [line["tls"] for line in first.log("peer is up")] == ["TLSv1.3"]


def test_routers_encrypt_their_links_without_mounted_certificates(start: StartRouter, tmp_path: Path) -> None:
    first = start({"echo": open_echo_service()}, peer_port=0)
    with joined(first, tmp_path) as second:
        assert send_request(second, ECHO, b"[2]").body == b"[2]"
        assert [line["tls"] for line in first.log("peer is up")] == ["TLSv1.3"]
        assert first.metric("peers_unencrypted") == 0
    with joined(first, tmp_path, peer_tls="off") as third:
        assert send_request(third, ECHO, b"[3]").body == b"[3]"
        assert first.metric("peers_unencrypted") == 1


@contextlib.contextmanager
def joined(first: Router, directory: Path, **settings: object) -> Iterator[int]:
    """Run a router that joins `first`; yields its port once it is ready."""
    peer = first.wait_for_stderr(r"joins with: .+ local --peer (\S+) ")[1]
    all_settings = {"port": 0, "admin_port": 0, "workers": 1, "state_dir": first.state_dir, **settings}
    variables = {f"AZUREML_FE_{name.upper()}": str(value) for name, value in all_settings.items()}
    command = [sys.executable, "-m", "router", "local", "--peer", peer]
    log_file = directory / "joined.txt"
    with (
        log_file.open("w") as errors,
        subprocess.Popen(command, env=router_environment() | variables, stderr=errors) as second,
    ):
        try:
            wait_until(lambda: "echo is ready" in log_file.read_text(), "the second router")
            match = re.search(r"serves .+ at http://127\.0\.0\.1:(\d+)", log_file.read_text())
            assert match is not None
            yield int(match[1])
        finally:
            second.send_signal(signal.SIGINT)
        assert second.wait(TIMEOUT_SECONDS) == 0
