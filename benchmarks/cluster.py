"""The router in a cluster: latency of scaling and routing, requests to the API server, cost of many models.

    python -m benchmarks.cluster [--rounds N] [--idle-seconds S] [--models N] [--pods N] [--only PART ...]

The API server is the stand-in of the tests, behind a proxy that counts requests. Router pods are processes with the
command line of the chart, and models are processes on their own addresses. The parts:

    scaling   load step -> patch of the number of replicas; ready pod -> first request at it          (three routers)
    calls     requests per minute to the API server: without models, with 100 models, no traffic      (three routers)
    memory    supervisor with many models and pods: start, memory, CPU when idle                      (one router)
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

import tests.processes
from benchmarks.harness.session import DEFAULT_OUT
from tests.kube_standin.api_server.process import running_api_server
from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.cluster import Cluster, temporary_cluster
from tests.kube_standin.controller_manager import running_controller_manager
from tests.kube_standin.echo_model import deploy_echo
from tests.kube_standin.fault_proxy import running_fault_proxy
from tests.kubernetes.helm_release import PORT, HelmRelease
from tests.kubernetes.traffic import get
from tests.processes import wait_until

PARTS = ("scaling", "calls", "memory")
SETTINGS = {"auth-enabled": "false"}
POLL_SECONDS = 0.002


@contextlib.contextmanager
def installed_release(routers: int, prepare: Callable[[Cluster], str] | None = None) -> Iterator[HelmRelease]:
    """Run a cluster with routers. `prepare` fills and returns a namespace that they serve in addition to their own. It
    runs before they start."""
    with contextlib.ExitStack() as cleanup:
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        cluster = cleanup.enter_context(
            temporary_cluster(cleanup.enter_context(running_api_server(directory)), directory)
        )
        namespaces = [cluster.namespace, *([prepare(cluster)] if prepare is not None else [])]
        proxy = cleanup.enter_context(running_fault_proxy(cluster.access))
        controller = cleanup.enter_context(running_controller_manager(cluster, directory))
        yield HelmRelease(cluster, controller, proxy, routers, namespaces=namespaces)


# Latency.


def measure_load_step(release: HelmRelease, name: str) -> float:
    """Return the seconds from the first request of a load that needs more replicas to the patch of their number."""
    deploy_echo(release.cluster, name, settings={**SETTINGS, "max-request-wait-time": 5_000}, delay=0.1)
    release.controller.wait_ready(name, 1)
    release.wait_scores(name)
    started_at = time.monotonic()
    with release.traffic(name, clients=8) as traffic:
        wait_until(lambda: patch_times(release, name, started_at), "patch of the number of replicas")
        traffic.wait_responses(1)
    return patch_times(release, name, started_at)[0] - started_at


def patch_times(release: HelmRelease, name: str, since: float) -> list[float]:
    """Return the times at which the number of replicas was patched."""
    patches = [
        each for each in release.proxy.records if each.method == "PATCH" and each.path.endswith(f"/{name}/scale")
    ]
    return [each.time for each in patches if each.time >= since]


def measure_first_response(release: HelmRelease, name: str) -> float:
    """Return the seconds from the kubelet's report that the first pod is ready to the first successful response.

    Clients poll each router. The slowest router determines the result.
    """
    kubelet = release.controller.kubelet
    ready_at: list[float] = []
    write_status = kubelet.write_status

    def write_and_record(pod: str, status: Object) -> None:
        write_status(pod, status)
        if pod.startswith(name) and all(each["ready"] for each in status["containerStatuses"]):
            ready_at.append(time.monotonic())

    kubelet.write_status = write_and_record  # type: ignore[method-assign,assignment]
    with ThreadPoolExecutor() as pool:
        responses = [pool.submit(wait_for_response, address, name) for address in release.addresses()]
        deploy_echo(release.cluster, name, settings={**SETTINGS, "num-replicas": 1})
        latest = max(response.result() for response in responses)
    wait_until(lambda: ready_at, "ready pod")
    kubelet.write_status = write_status  # type: ignore[method-assign]
    return max(latest - ready_at[0], 0.0)


def wait_for_response(address: str, name: str) -> float:
    """Poll a router until a request to a model succeeds, and return the time."""
    while get(address, PORT, f"/api/v1/service/{name}/score", b"[1]").status != 200:
        time.sleep(POLL_SECONDS)
    return time.monotonic()


def scaling(rounds: int) -> dict[str, object]:
    """Measure both latencies several times, with new models each time."""
    with installed_release(3) as release:
        load_steps, first_responses = [], []
        for number in range(rounds):
            load_steps.append(measure_load_step(release, f"step-{number}"))
            first_responses.append(measure_first_response(release, f"first-{number}"))
            for name in (f"step-{number}", f"first-{number}"):
                release.cluster.client.delete("deployments", release.namespace, name)
        release.uninstall()
    return {"load_step_to_patch_s": summary(load_steps), "ready_to_first_request_s": summary(first_responses)}


def summary(values: list[float]) -> dict[str, float]:
    """Return the median, the minimum and the maximum."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "rounds": len(values)}


# Requests to the API server.


def calls(seconds: float, models: int = 100) -> dict[str, object]:
    """Return the requests per minute of three routers together."""
    with installed_release(3) as release:
        rates: dict[str, object] = {"no_model": per_minute(release, seconds)}
        release.controller.capacity = 0  # pods stay pending: only the requests are measured
        for number in range(models):
            deploy_echo(release.cluster, f"model-{number}", 1, {**SETTINGS, "num-replicas": 1})
        release.wait_scores(f"model-{models - 1}", status=503)
        rates[f"{models}_models"] = per_minute(release, seconds)
        for number in range(models):
            release.cluster.client.delete("deployments", release.namespace, f"model-{number}")
        release.uninstall()
    return rates


def per_minute(release: HelmRelease, seconds: float) -> dict[str, float]:
    """Return the requests per minute of idle routers, by verb and resource."""
    time.sleep(2)
    first = len(release.proxy.records)
    time.sleep(seconds)
    kinds: Counter[str] = Counter()
    for each in release.proxy.records[first:]:
        parts = each.path.split("/namespaces/")[-1].split("/")
        resource = "/".join(parts[1:2] + parts[3:4])
        kinds[f"{'watch' if each.is_watch else each.method} {resource}"] += 1
    return {kind: count * 60 / seconds for kind, count in kinds.items()}


# Cost of many models.


def create_models(cluster: Cluster, models: int, pods: int) -> str:
    """Create a namespace with models and ready pods at unused addresses, and return its name."""
    namespace = cluster.create_namespace()  # the controllers ignore it

    def create_model(number: int) -> None:
        name = f"model-{number}"
        cluster.create_deployment(name, pods, {"azureml-fe/auth-enabled": "false"}, namespace=namespace)
        for index in range(pods):
            pod_number = number * pods + index
            address = f"10.{pod_number >> 16 & 255}.{pod_number >> 8 & 255}.{pod_number & 255}"
            labels = {"isazuremlapp": "true", "azuremlappname": name, "app": name}
            cluster.create_pod(f"{name}-{index}", labels, address, namespace=namespace)
        cluster.client.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create_model, range(models)))
    return namespace


def memory(models: int, pods: int) -> dict[str, object]:
    """Measure one router without models, and with `models` of `pods` each."""
    return {"empty": router_cost(0, 0), f"{models} models x {pods} pods": router_cost(models, pods)}


def router_cost(models: int, pods: int) -> dict[str, float]:
    """Return the memory in MiB and the CPU use of the processes of one router."""
    with installed_release(1, lambda cluster: create_models(cluster, models, pods)) as release:
        (pod,) = release.pods()
        process = release.controller.pod_process(pod["metadata"]["name"]).process
        assert process is not None
        supervisor = psutil.Process(process.pid)
        workers = supervisor.children()
        start_cpu_seconds = sum(supervisor.cpu_times()[:2])
        time.sleep(2)
        before = sum(supervisor.cpu_times()[:2])
        time.sleep(10)
        after = sum(supervisor.cpu_times()[:2])
        return {
            "supervisor_rss_mib": supervisor.memory_info().rss / 2**20,
            "worker_rss_mib": max(worker.memory_info().rss for worker in workers) / 2**20,
            "cpu_seconds_until_ready": start_cpu_seconds,
            "cpu_percent_at_rest": (after - before) * 10,
        }


def main() -> None:
    """Measure, print the results, and write them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    arguments = parser.parse_args()
    tests.processes.TIMEOUT_SECONDS = 120.0  # for thousands of objects
    parts: dict[str, Callable[[], dict[str, object]]] = {
        "scaling": lambda: scaling(arguments.rounds),
        "calls": lambda: calls(arguments.idle_seconds),
        "memory": lambda: memory(arguments.models, arguments.pods),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        text = json.dumps({name: parts[name]()}, indent=1)
        print(text, flush=True)
        (arguments.out / f"cluster-{name}.json").write_text(text)


if __name__ == "__main__":
    main()
