"""Latency of one service while another one collects all its requests and responses, and storage is away.

One worker serves two services: `busy` gets requests with bodies of 2 KiB at a fixed rate, `calm` ordinary requests at a
fixed rate. Only the latencies of `calm` are measured, which collects nothing. The router is started anew for each case:
`busy` collects nothing, collects into a folder, or into storage that accepts connections and never responds. Each round
has all cases. The ratios are those of the medians to the case without collection.
"""

import json
import socket
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.harness.backends import nginx_backend
from benchmarks.harness.engines import responds, scoring_path
from benchmarks.harness.processes import free_port, run_json, running_child, wait_until
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import BODY

CALM_RATE: Final = 300
BUSY_RATE: Final = 300
BUSY_BODY: Final = json.dumps({"data": "x" * 2048})
CASES: Final = ("off", "folder", "away")
READY_SECONDS: Final = 30.0


@contextmanager
def running(case: str, current: Session, backend: str) -> Iterator[int]:
    """Run a router. Yield its port."""
    port, admin = free_port(), free_port()
    service = {"addresses": [backend], "primary_key": current.key, "replica_max_concurrent_requests": 100}
    services = {"busy": service | {"collect_model_data": case != "off"}, "calm": service}
    router: dict[str, object] = {"state_dir": str(current.directory / f"state-{port}"), "drain_seconds": 1}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        if case == "away":
            router["collection_container"] = f"http://127.0.0.1:{silent.getsockname()[1]}/account/container"
        path = current.directory / f"collection-{port}.yaml"
        path.write_text(json.dumps({"services": services, "router": router}))  # JSON is valid YAML
        flags = ("--workers", "1", "--port", str(port), "--admin-port", str(admin), "--access-log", "off")
        argv = ("env", "AZURE_STORAGE_SAS_TOKEN=sv=1", sys.executable, "-m", "router", "local", str(path), *flags)
        with running_child(argv, name=case, cpus=current.cpus.engine, directory=current.directory) as child:
            wait_until(lambda: responds(admin, "/readyz"), child=child, seconds=READY_SECONDS)
            yield port


def measure(current: Session, port: int) -> dict[str, float]:
    """Send requests to both services in turn. Return p50 and p99 of `calm` in milliseconds, and all failures."""
    calm_request, busy_request = (_request(*each, current.key) for each in (("calm", BODY), ("busy", BUSY_BODY)))
    job = {
        "host": "127.0.0.1", "port": port, "request": calm_request, "rate": CALM_RATE, "seconds": current.seconds,
        "warmup_seconds": 1.0, "connections": 8,
    }  # fmt: skip
    load = job | {"request": busy_request, "rate": BUSY_RATE, "seconds": current.seconds + 1.0}
    code = (
        "import json, subprocess, sys\n"
        "jobs = json.load(sys.stdin)\n"
        "children = [subprocess.Popen([sys.executable, '-m', 'benchmarks.load.openloop'], stdin=subprocess.PIPE, "
        "stdout=subprocess.PIPE, text=True) for _ in jobs]\n"
        "for child, job in zip(children, jobs):\n"
        "    child.stdin.write(json.dumps(job)); child.stdin.close()\n"
        "print(json.dumps([json.loads(child.stdout.read()) for child in children]))\n"
    )
    argv = (sys.executable, "-c", code)
    calm, beside = json.loads(
        run_json(argv, job=json.dumps([job, load]), cpus=current.cpus.load, timeout=current.seconds + 60)
    )
    failed = sum(each["not_200"] + each["lost"] for each in (calm, beside))
    return {"p50": calm["p50"] / 1e3, "p99": calm["p99"] / 1e3, "failed": failed}


def _request(service: str, body: str, key: str) -> str:
    head = (
        f"POST {scoring_path(service)} HTTP/1.1", "Host: fe", f"Authorization: Bearer {key}",
        "Content-Type: application/json", f"Content-Length: {len(body)}", "", body,
    )  # fmt: skip
    return "\r\n".join(head)


def main() -> None:
    """Run from the command line."""
    parsed = parser(__doc__ or "", engines=("router",), rounds=5, seconds=5).parse_args()
    cells: list[dict[str, object]] = []
    found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    with (
        session("collection", parsed) as current,
        nginx_backend(cpus=current.cpus, directory=current.directory) as nginx,
    ):
        for number in range(1, current.rounds + 1):
            for case in CASES:
                with running(case, current, f"127.0.0.1:{nginx}") as port:
                    result = measure(current, port)
                found[case].append(result)
                cells.append({"round": number, "case": case, **result})
                current.log(
                    f"  {number} {case:6} p50 {result['p50']:6.2f} ms, p99 {result['p99']:6.2f} ms, "
                    f"{result['failed']:.0f} failed"
                )
        for case in CASES:
            medians = {part: statistics.median(each[part] for each in found[case]) for part in ("p50", "p99")}
            ratio = {part: medians[part] / statistics.median(e[part] for e in found["off"]) for part in medians}
            current.log(
                f"{case:6} p50 {medians['p50']:.2f} ms ({ratio['p50']:.2f}), p99 {medians['p99']:.2f} ms "
                f"({ratio['p99']:.2f})"
            )
        current.store(cells)


if __name__ == "__main__":
    main()
