"""The cost of authentication: requests/s and latency without any, with a key, a cached token, and new tokens.

HAProxy and nginx are measured where they support a case. HAProxy compares a key and verifies tokens (`jwt_verify`,
issuer, audience, expiry), each time, because it has no cache; nginx compares a key. Each engine must reject a
credential with one changed character.

One engine has a service for each case; the cases of a round are run one after another. A worker caches 10,000 valid
tokens and drops the oldest first, so when more tokens than that are sent in turn, each one is verified completely. The
run fails if the router's counter of verified tokens disagrees.
"""

import http.client
import http.server
import json
import secrets
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from benchmarks.harness.backends import nginx_backend
from benchmarks.harness.engines import READY_SECONDS, Launch, Running, owner, render, responds, scoring_path
from benchmarks.harness.processes import BenchmarkError, free_port, run_json, running_child, wait_until
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import BODY, SCRIPTS, Rate, rate_of
from router.auth.tokens import MAX_CACHED_TOKENS

CONNECTIONS: Final = 32
WARM_UP_SECONDS: Final = 1
LATENCY_RATE: Final = 1_000
LATENCY_CONNECTIONS: Final = 16
NEW_TOKENS: Final = MAX_CACHED_TOKENS * 6 // 5
LIFETIME_SECONDS: Final = 3600
COUNTERS_SECONDS: Final = 1.5  # a worker's counters reach the supervisor once a second
CASES: Final = {
    "haproxy": ("none", "key", "new-es256", "new-rs256"),
    "nginx": ("none", "key"),
    "router": ("none", "key", "cached", "new-es256", "new-rs256"),
}
Counter = Callable[[str], float]
"""Reads a counter of the router, given the start of its line in the metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to authenticate. `credentials` follow "Bearer" in requests, in turn; "-" stands for no header."""

    name: str
    title: str
    service: str
    credentials: Sequence[str]
    verified_share: float  # of requests

    def credentials_after(self, sent: int) -> Sequence[str]:
        """Return the credentials in turn, beginning after the first `sent` requests."""
        first = sent % len(self.credentials)
        return [*self.credentials[first:], *self.credentials[:first]]


def issuer_keys() -> Mapping[str, tuple[Any, dict[str, Any]]]:
    """Return a key pair and its published key for each algorithm."""
    keys: dict[str, tuple[Any, dict[str, Any]]] = {}
    for algorithm, key in (
        ("RS256", rsa.generate_private_key(65537, 2048)),
        ("ES256", ec.generate_private_key(ec.SECP256R1())),
    ):
        algorithm_class: Any = RSAAlgorithm if algorithm == "RS256" else ECAlgorithm
        public_jwk = algorithm_class.to_jwk(key.public_key(), as_dict=True)
        keys[algorithm] = key, {**public_jwk, "kid": algorithm, "use": "sig", "key_ops": ["verify"]}
    return keys


def tokens(algorithm: str, key: Any, count: int) -> list[str]:
    """Return different tokens with the claims that Entra ID uses."""
    now = int(time.time())
    claims = {
        "iss": f"https://{algorithm}.example.com",
        "aud": "api://bench",
        "iat": now,
        "nbf": now,
        "exp": now + LIFETIME_SECONDS,
        "azp": "8d7f6b2a-1111-4222-8333-944455556666",
        "oid": "0f0e0d0c-1111-4222-8333-944455556666",
        "tid": "7f0b0e9e-1111-4222-8333-944455556666",
        "roles": ["Models.Score"],
        "ver": "2.0",
    }
    headers = {"kid": algorithm}
    return [jwt.encode({**claims, "uti": secrets.token_urlsafe(16)}, key, algorithm, headers) for _ in range(count)]


def cases(keys: Mapping[str, tuple[Any, dict[str, Any]]], key: str, count: int) -> list[Case]:
    """Return all cases."""
    new = {algorithm: tokens(algorithm, pair, count) for algorithm, (pair, _) in keys.items()}
    return [
        Case(name="none", title="no authentication", service="open", credentials=["-"], verified_share=0.0),
        Case(name="key", title="key", service="keyed", credentials=[key], verified_share=0.0),
        Case(
            name="cached",
            title="cached token (RS256)",
            service="rs256",
            credentials=new["RS256"][:1],
            verified_share=0.0,
        ),
        Case(name="new-es256", title="new token, ES256", service="es256", credentials=new["ES256"], verified_share=1.0),
        Case(name="new-rs256", title="new token, RS256", service="rs256", credentials=new["RS256"], verified_share=1.0),
    ]


@contextmanager
def issuer(keys: Mapping[str, tuple[Any, dict[str, Any]]]) -> Iterator[str]:
    """Publish the keys; yield their URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"keys": [public_jwk for _, public_jwk in keys.values()]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing: the output of a run is its results."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/keys"
    finally:
        server.shutdown()
        server.server_close()


def write_settings(directory: Path, backend: str, key: str, url: str) -> Path:
    """Write the settings file of the router."""
    service = {"addresses": [backend], "replica_max_concurrent_requests": 1000}
    document = {
        "services": {
            "open": {**service, "auth_enabled": False},
            "keyed": {**service, "primary_key": key},
            **{name: {**service, "token_auth_enabled": True} for name in ("rs256", "es256")},
        },
        "token_issuers": {
            algorithm.lower(): {
                "issuer": f"https://{algorithm}.example.com",
                "audience": "api://bench",
                "jwks_url": url,
                "algorithms": [algorithm],
                "required_roles": ["Models.Score"],
                "services": [algorithm.lower()],
            }
            for algorithm in ("RS256", "ES256")
        },
    }
    path = directory / "tokens.yaml"
    path.touch(mode=0o600)
    path.write_text(json.dumps(document))
    return path


def write_keys(directory: Path, keys: Mapping[str, tuple[Any, dict[str, Any]]]) -> None:
    """Write the public keys for HAProxy."""
    for algorithm, (pair, _) in keys.items():
        pem = pair.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (directory / f"{algorithm}.pem").write_bytes(pem)


def launch(name: str, port: int, file: Path, backend: str, current: Session) -> Launch:
    """Return how to start an engine; `file` is the settings file of the router."""
    if name == "router":
        admin = free_port()
        flags = ("--workers", "1", "--port", str(port), "--admin-port", str(admin), "--access-log", "off")
        return Launch(argv=(sys.executable, "-m", "router", "local", str(file), *flags), ready=(admin, "/readyz"))
    values = {"DIR": current.directory, "PORT": port, "BACKEND": backend, "KEY": current.key}
    if name == "nginx":
        path = render("nginx-tokens.conf", current.directory, **values, **owner())
        return Launch(argv=("nginx", "-e", "stderr", "-c", str(path)), ready=(port, "/"))
    path = render("haproxy-tokens.cfg", current.directory, **values)
    return Launch(argv=("haproxy", "-db", "-f", str(path)), ready=(port, "/"))


@contextmanager
def running_tls_engine(name: str, file: Path, backend: str, current: Session) -> Iterator[tuple[Running, Counter]]:
    """Start an engine; yield it when it is ready, with a reader of the router's counters."""
    port = free_port()
    launched = launch(name, port, file, backend, current)
    with running_child(launched.argv, name=name, cpus=current.cpus.engine, directory=current.directory) as child:
        seconds = wait_until(lambda: responds(*launched.ready), child=child, seconds=READY_SECONDS)

        def counter(line: str) -> float:
            text = urllib.request.urlopen(f"http://127.0.0.1:{launched.ready[0]}/metrics", timeout=10).read().decode()
            return next((float(each.rpartition(" ")[2]) for each in text.splitlines() if each.startswith(line)), 0.0)

        yield Running(name=name, port=port, child=child, ready_seconds=seconds), counter


def check_rejection(engine: Running, case: Case) -> None:
    """Raise BenchmarkError unless the engine rejects a credential with one changed character."""
    if case.credentials[0] == "-":
        return
    credential = case.credentials[0]
    position = len(credential) - 10
    other = "A" if credential[position] != "A" else "B"
    changed = credential[:position] + other + credential[position + 1 :]
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=10)
    connection.request("POST", scoring_path(case.service), BODY, {"Authorization": f"Bearer {changed}"})
    status = connection.getresponse().status
    connection.close()
    if status != 401:
        raise BenchmarkError(f"{engine.name}, {case.title}: a changed credential got {status}, not 401")


def script(case: Case, credentials: Sequence[str], directory: Path) -> Path:
    """Write wrk's script for a case; the credentials are in a separate file that only this user can read."""
    file = directory / f"{case.name}.txt"
    file.touch(mode=0o600)
    file.write_text("\n".join(credentials) + "\n")
    text = (SCRIPTS / "score_tokens.lua").read_text() + "\n" + (SCRIPTS / "result.lua").read_text()
    path = directory / f"{case.name}.lua"
    path.write_text(text.replace("@TOKENS@", str(file)).replace("@BODY@", BODY))
    return path


def throughput(engine: Running, case: Case, credentials: Sequence[str], current: Session, seconds: int) -> Rate:
    """Measure the requests per second of a case."""
    url = f"http://127.0.0.1:{engine.port}{scoring_path(case.service)}"
    lua = script(case, credentials, current.directory)
    argv = ("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(lua), url)
    return rate_of(argv, engine, connections=CONNECTIONS, seconds=seconds, cpus=current.cpus)


def latency(engine: Running, case: Case, credentials: Sequence[str], current: Session) -> dict[str, float]:
    """Measure the latency of a case at a fixed rate, in microseconds."""
    fields = f"Host: 127.0.0.1:{engine.port}\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}"
    requests = [
        f"POST {scoring_path(case.service)} HTTP/1.1\r\n{fields}\r\n"
        + ("" if credential == "-" else f"Authorization: Bearer {credential}\r\n")
        + f"\r\n{BODY}"
        for credential in credentials
    ]
    job = {
        "host": "127.0.0.1",
        "port": engine.port,
        "request": requests[0],
        "others": requests[1:],
        "rate": LATENCY_RATE,
        "seconds": current.seconds,
        "warmup_seconds": WARM_UP_SECONDS,
        "connections": LATENCY_CONNECTIONS,
    }
    argv = (sys.executable, "-m", "benchmarks.load.openloop")
    output = run_json(argv, job=json.dumps(job), cpus=current.cpus.load, timeout=current.seconds + 40)
    result: dict[str, float] = json.loads(output)
    if result["not_200"] or result["lost"]:
        raise BenchmarkError(f"{case.title}: {result['not_200']} responses not 200, {result['lost']} connections lost")
    return result


def measure(engine: Running, case: Case, current: Session, counter: Counter) -> dict[str, object]:
    """Measure one case in one round."""
    counted = engine.name == "router" and "token" in case.title

    def lookups() -> dict[str, float]:
        if not counted:
            return {"hit": 0.0, "miss": 0.0}
        time.sleep(COUNTERS_SECONDS)
        return {name: counter(f'azureml_fe_token_cache_lookups_total{{result="{name}"}}') for name in ("hit", "miss")}

    check_rejection(engine, case)
    start = lookups()
    throughput(engine, case, case.credentials, current, WARM_UP_SECONDS)
    before = lookups()
    new = int(before["miss"] - start["miss"])
    rate = throughput(engine, case, case.credentials_after(new), current, current.seconds)
    new = int(lookups()["miss"] - start["miss"])
    latencies = latency(engine, case, case.credentials_after(new), current)
    found = {name: number - before[name] for name, number in lookups().items()}
    verified = found["miss"] / sum(found.values()) if any(found.values()) else 0.0
    if counted and abs(verified - case.verified_share) > 0.01:
        raise BenchmarkError(f"{case.title}: {verified:.1%} of the tokens were verified, not {case.verified_share:.0%}")
    current.log(
        f"  {engine.name:8} {case.title:26} {rate.requests_per_second:9,.0f} requests/s, "
        f"p50 {latencies['p50']:5,.0f} us, p99 {latencies['p99']:6,.0f} us{rate.disturbance}"
    )
    return {"engine": engine.name, "case": case.name, "title": case.title, **asdict(rate), **latencies}


def main() -> None:
    """Run the benchmark from the command line."""
    arguments = parser(__doc__, engines=tuple(CASES), rounds=5, seconds=3)
    parsed = arguments.parse_args()
    with session("tokens", parsed) as current, nginx_backend(cpus=current.cpus, directory=current.directory) as port:
        keys = issuer_keys()
        current.log(f"signing {NEW_TOKENS:,} tokens of each kind")
        measured = cases(keys, current.key, NEW_TOKENS)
        cells: list[dict[str, object]] = []
        with issuer(keys) as url:
            backend = f"127.0.0.1:{port}"
            file = write_settings(current.directory, backend, current.key, url)
            write_keys(current.directory, keys)
            for number in range(1, current.rounds + 1):
                current.log(f"round {number} of {current.rounds}")
                for name in current.engines:
                    supported = [case for case in measured if case.name in CASES[name]]
                    with running_tls_engine(name, file, backend, current) as (engine, counter):
                        cells += ({"round": number, **measure(engine, case, current, counter)} for case in supported)
        current.store(cells)


if __name__ == "__main__":
    main()
