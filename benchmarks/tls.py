"""HTTPS compared with nginx and HAProxy: full and resumed handshakes, and requests over kept-alive connections.

Throughput is measured, and latency at a fixed rate. All engines have the same certificate (ECDSA P-256), TLS 1.2 and
1.3 and one CPU. Several `openssl s_time` processes make handshakes; compare the CPU time that a handshake costs the
engine, as the clients need as much and limit the rate. Over kept-alive connections wrk sends a small JSON POST, which
the engine forwards to nginx.

Each latency starts when the request over a kept-alive connection was due (`benchmarks.load.openloop`), or when the new
connection with one request was due (`benchmarks.load.connections`, TLS 1.3).
"""

import datetime
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from benchmarks.harness.backends import nginx_backend
from benchmarks.harness.engines import Launch, Running, Target, owner, render, responds, scoring_path
from benchmarks.harness.processes import BenchmarkError, Child, free_port, run_json, running_child, wait_until
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import BODY, measure, script

ENGINES: Final = ("haproxy", "nginx", "router")
CONNECTIONS: Final = (1, 32)
HANDSHAKES: Final = {
    "full, TLS 1.3": ("-new", "-tls1_3"),
    "full, TLS 1.2": ("-new", "-tls1_2"),
    "resumed, TLS 1.2": ("-reuse", "-tls1_2"),
}
CLIENTS: Final = 4
RATE: Final = 1_000
RATE_CONNECTIONS: Final = 16
NEW_PER_SECOND: Final = 100
WARM_UP_SECONDS: Final = 1.0
READY_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshakes:
    """Handshakes per second, and the CPU time that one costs the engine, in microseconds."""

    per_second: float
    cpu_microseconds: float


def write_certificate(directory: Path) -> Path:
    """Write a private key and its self-signed certificate into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    certificate = builder.sign(key, SHA256())
    path = directory / "tls.pem"
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    )
    return path


def launch(name: str, directory: Path, values: dict[str, object], workers: int) -> Launch:
    """Return how to start an engine with TLS."""
    port = int(str(values["PORT"]))
    if name == "router":
        admin = free_port()
        path = render("router-tls.yaml", directory, **values)
        flags = ("--workers", str(workers), "--port", str(port), "--admin-port", str(admin), "--access-log", "off")
        return Launch(argv=(sys.executable, "-m", "router", "local", str(path), *flags), ready=(admin, "/readyz"))
    if name == "nginx":
        path = render("nginx-tls.conf", directory, DIR=directory, **values, **owner())
        return Launch(argv=("nginx", "-e", "stderr", "-c", str(path)), ready=(port, "/"))
    return Launch(argv=("haproxy", "-db", "-f", str(render("haproxy-tls.cfg", directory, **values))), ready=(port, "/"))


@contextmanager
def running_tls_engine(
    name: str, current: Session, backend: str, pem: Path, *, tls: bool = True, workers: int = 1
) -> Iterator[Running]:
    """Start an engine; yield it when it is ready, with its TLS port or its plain one. `workers`: of the router."""
    port, tls_port = free_port(), free_port()
    values: dict[str, object] = {"PORT": port, "TLS_PORT": tls_port, "PEM": pem, "BACKEND": backend, "KEY": current.key}
    launched = launch(name, current.directory, values, workers)
    with running_child(launched.argv, name=name, cpus=current.cpus.engine, directory=current.directory) as child:
        seconds = wait_until(lambda: responds(*launched.ready), child=child, seconds=READY_SECONDS)
        yield Running(name=name, port=tls_port if tls else port, child=child, ready_seconds=seconds)


def measure_handshakes(engine: Running, flags: tuple[str, ...], current: Session) -> Handshakes:
    """Measure handshakes alone. Raises BenchmarkError when there were none."""
    child: Child | None = engine.child
    assert child is not None
    pinned = ("taskset", "-c", ",".join(map(str, current.cpus.load)))
    target = ("-connect", f"127.0.0.1:{engine.port}", "-time", str(current.seconds))
    command = (*pinned, "openssl", "s_time", *target, *flags)
    before = child.cpu_seconds()
    clients = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(CLIENTS)
    ]
    outputs = [client.communicate(timeout=current.seconds + 30)[0] for client in clients]
    cpu_seconds = child.cpu_seconds() - before
    matches = [re.search(r"(\d+) connections in (\d+) real seconds", text) for text in outputs]
    count = sum(int(match[1]) for match in matches if match)
    if not count:
        raise BenchmarkError(f"{engine.name}: no handshake with {' '.join(flags)}")
    return Handshakes(per_second=count / current.seconds, cpu_microseconds=cpu_seconds / count * 1e6)


def latency(engine: Running, current: Session) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield latencies in microseconds over kept-alive connections, and of new ones.

    Raises BenchmarkError for a response that is missing or not a 200, and for a session that was not resumed.
    """
    request = (
        f"POST {scoring_path()} HTTP/1.1\r\nHost: 127.0.0.1:{engine.port}\r\nAuthorization: Bearer {current.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}"
    )
    job = {"host": "127.0.0.1", "port": engine.port, "request": request, "seconds": current.seconds}

    def generate(module: str, **more: object) -> dict[str, float]:
        argv = (sys.executable, "-m", f"benchmarks.load.{module}")
        output = run_json(argv, job=json.dumps(job | more), cpus=current.cpus.load, timeout=current.seconds + 40)
        result: dict[str, float] = json.loads(output)
        return result

    kept = generate("openloop", rate=RATE, warmup_seconds=WARM_UP_SECONDS, connections=RATE_CONNECTIONS, tls=True)
    if kept["not_200"] or kept["lost"]:
        raise BenchmarkError(f"{engine.name}: {kept['not_200']} responses not 200, {kept['lost']} connections lost")
    yield "latency, kept", kept
    for what, resumed in (("full", False), ("resumed", True)):
        found = generate("connections", rate=NEW_PER_SECOND, resumed=resumed)
        if found["resumed"] != (found["connections"] if resumed else 0):
            raise BenchmarkError(f"{engine.name}: {found['resumed']} of {found['connections']} sessions were resumed")
        yield f"latency, {what}", found


def measure_engine(name: str, current: Session, backend: str, pem: Path) -> list[dict[str, object]]:
    """Measure one engine in one round."""
    target = Target(backends=(backend,), key=current.key)
    lua = script(current.directory, target, cycle=False)
    cells: list[dict[str, object]] = []
    with running_tls_engine(name, current, backend, pem) as engine:
        for what, flags in HANDSHAKES.items():
            handshakes = measure_handshakes(engine, flags, current)
            cells.append({"engine": name, "what": what, **asdict(handshakes)})
            detail = f"{handshakes.cpu_microseconds:6,.0f} us of CPU each"
            current.log(f"  {name:8} {what:18} {handshakes.per_second:8,.0f}/s, {detail}")
        for count in CONNECTIONS:
            rate = measure(
                engine, target, lua=lua, connections=count, seconds=current.seconds, cpus=current.cpus, scheme="https"
            )
            cells.append({"engine": name, "what": f"kept, {count} connections", **asdict(rate)})
            detail = f"{rate.requests_per_second:8,.0f} requests/s{rate.disturbance}"
            current.log(f"  {name:8} kept, {count:3} connections {detail}")
        for what, latencies in latency(engine, current):
            cells.append({"engine": name, "what": what, **latencies})
            current.log(f"  {name:8} {what:18} p50 {latencies['p50']:7,.0f} us, p99 {latencies['p99']:7,.0f} us")
    return cells


def main() -> None:
    """Run the benchmark from the command line."""
    parsed = parser(__doc__ or "", engines=ENGINES, rounds=2, seconds=2).parse_args()
    with (
        session("tls", parsed) as current,
        nginx_backend(cpus=current.cpus, directory=current.directory) as port,
    ):
        pem = write_certificate(current.directory)
        cells: list[dict[str, object]] = []
        for number in range(1, current.rounds + 1):
            current.log(f"round {number} of {current.rounds}: {scoring_path()}")
            for name in current.engines:
                cells += ({"round": number, **cell} for cell in measure_engine(name, current, f"127.0.0.1:{port}", pem))
        current.store(cells)


if __name__ == "__main__":
    main()
