"""The router in a cluster: how soon it scales and routes, what it asks of the API server, what many models cost.

    python -m benchmarks.cluster [--rounds N] [--idle-seconds S] [--models N] [--pods N] [--only PART ...]

The API server is the double of the tests behind the proxy that counts requests; router pods are processes as the chart
starts them, models are processes on addresses of their own. The parts:

    scaling   load step -> patch of the number of replicas; a pod is ready -> first request at it     (three routers)
    calls     requests per minute to the API server: no model, 100 models, no traffic                 (three routers)
    memory    supervisor with many models and pods: start, memory, CPU at rest                        (one router)
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
from tests.kubernetes.cluster import Cluster, cluster_of
from tests.kubernetes.controller import controlling
from tests.kubernetes.double.resources import Object
from tests.kubernetes.double.running import running
from tests.kubernetes.installed import PORT, Installed
from tests.kubernetes.models import deploy_echo
from tests.kubernetes.proxy import proxying
from tests.kubernetes.traffic import get
from tests.processes import until

PARTS = ("scaling", "calls", "memory")
SETTINGS = {"auth-enabled": "false"}
LOOK_SECONDS = 0.002


@contextlib.contextmanager
def installed(routers: int, before: Callable[[Cluster], str] | None = None) -> Iterator[Installed]:
    """A cluster with routers; `before` fills a namespace, which they serve beside their own, before they start."""
    with contextlib.ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        cluster = ends.enter_context(cluster_of(ends.enter_context(running(folder)), folder))
        served = [cluster.namespace, *([before(cluster)] if before is not None else [])]
        proxy = ends.enter_context(proxying(cluster.access))
        controller = ends.enter_context(controlling(cluster, folder))
        yield Installed(cluster, controller, proxy, routers, namespaces=served)


# How soon.


def load_step(stage: Installed, name: str) -> float:
    """Seconds from the first request of a load that needs more replicas to the patch that asks for them."""
    deploy_echo(stage.cluster, name, settings={**SETTINGS, "max-request-wait-time": 5_000}, delay=0.1)
    stage.controller.ready(name, 1)
    stage.scores(name)
    begin = time.monotonic()
    with stage.traffic(name, clients=8) as traffic:
        until(lambda: patches(stage, name, begin), "a patch")
        traffic.goes_on(1)
    return patches(stage, name, begin)[0] - begin


def patches(stage: Installed, name: str, since: float) -> list[float]:
    """When the number of replicas was written."""
    writes = [each for each in stage.proxy.records if each.method == "PATCH" and each.path.endswith(f"/{name}/scale")]
    return [each.time for each in writes if each.time >= since]


def first_request(stage: Installed, name: str) -> float:
    """Seconds from the answer to the kubelet's word that the first pod is ready to the first answer of a client.

    Each router is asked again and again; the slowest one counts.
    """
    kubelet = stage.controller.kubelet
    moments: list[float] = []
    say = kubelet.say

    def listen(pod: str, status: Object) -> None:
        say(pod, status)
        if pod.startswith(name) and all(each["ready"] for each in status["containerStatuses"]):
            moments.append(time.monotonic())

    kubelet.say = listen  # type: ignore[method-assign,assignment]
    with ThreadPoolExecutor() as pool:
        firsts = [pool.submit(first_answer, address, name) for address in stage.addresses()]
        deploy_echo(stage.cluster, name, settings={**SETTINGS, "num-replicas": 1})
        latest = max(first.result() for first in firsts)
    until(lambda: moments, "the kubelet's word")
    kubelet.say = say  # type: ignore[method-assign]
    return max(latest - moments[0], 0.0)


def first_answer(address: str, name: str) -> float:
    """When a router has answered first for a model."""
    while get(address, PORT, f"/api/v1/service/{name}/score", b"[1]").status != 200:
        time.sleep(LOOK_SECONDS)
    return time.monotonic()


def scaling(rounds: int) -> dict[str, object]:
    """Both, again and again with fresh models."""
    with installed(3) as stage:
        steps, firsts = [], []
        for number in range(rounds):
            steps.append(load_step(stage, f"step-{number}"))
            firsts.append(first_request(stage, f"first-{number}"))
            for name in (f"step-{number}", f"first-{number}"):
                stage.cluster.client.delete("deployments", stage.namespace, name)
        stage.end()
    return {"load_step_to_patch_s": summary(steps), "ready_to_first_request_s": summary(firsts)}


def summary(values: list[float]) -> dict[str, float]:
    """Median, lowest, highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "rounds": len(values)}


# What is asked.


def calls(seconds: float, models: int = 100) -> dict[str, object]:
    """Requests per minute of three routers together."""
    with installed(3) as stage:
        found: dict[str, object] = {"no_model": per_minute(stage, seconds)}
        stage.controller.capacity = 0  # their pods stay pending: this is about what is asked, not about work
        for number in range(models):
            deploy_echo(stage.cluster, f"model-{number}", 1, {**SETTINGS, "num-replicas": 1})
        stage.scores(f"model-{models - 1}", status=503)
        found[f"{models}_models"] = per_minute(stage, seconds)
        for number in range(models):
            stage.cluster.client.delete("deployments", stage.namespace, f"model-{number}")
        stage.end()
    return found


def per_minute(stage: Installed, seconds: float) -> dict[str, float]:
    """By verb and resource, after a while of rest."""
    time.sleep(2)
    begin = len(stage.proxy.records)
    time.sleep(seconds)
    kinds: Counter[str] = Counter()
    for each in stage.proxy.records[begin:]:
        words = each.path.split("/namespaces/")[-1].split("/")
        resource = "/".join(words[1:2] + words[3:4])
        kinds[f"{'watch' if each.is_watch else each.method} {resource}"] += 1
    return {kind: count * 60 / seconds for kind, count in kinds.items()}


# What many models cost.


def fill(cluster: Cluster, models: int, pods: int) -> str:
    """A namespace with models and pods that say that they are ready, at addresses where nobody is."""
    namespace = cluster.another_namespace()  # where no controller does anything

    def one(number: int) -> None:
        name = f"model-{number}"
        cluster.deployment(name, pods, {"azureml-fe/auth-enabled": "false"}, namespace=namespace)
        for index in range(pods):
            flat = number * pods + index
            address = f"10.{flat >> 16 & 255}.{flat >> 8 & 255}.{flat & 255}"
            labels = {"isazuremlapp": "true", "azuremlappname": name, "app": name}
            cluster.pod(f"{name}-{index}", labels, address, namespace=namespace)
        cluster.client.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(models)))
    return namespace


def memory(models: int, pods: int) -> dict[str, object]:
    """One router with so many models of so many pods each, and with none."""
    return {"empty": cost(0, 0), f"{models} models x {pods} pods": cost(models, pods)}


def cost(models: int, pods: int) -> dict[str, float]:
    """Memory, in MiB, and CPU of the processes of one router that has so much to know."""
    with installed(1, lambda cluster: fill(cluster, models, pods)) as stage:
        (pod,) = stage.pods()
        process = stage.controller.pod_of(pod["metadata"]["name"]).process
        assert process is not None
        supervisor = psutil.Process(process.pid)
        workers = supervisor.children()
        started = sum(supervisor.cpu_times()[:2])
        time.sleep(2)
        before = sum(supervisor.cpu_times()[:2])
        time.sleep(10)
        after = sum(supervisor.cpu_times()[:2])
        return {
            "supervisor_rss_mib": supervisor.memory_info().rss / 2**20,
            "worker_rss_mib": max(worker.memory_info().rss for worker in workers) / 2**20,
            "cpu_seconds_until_ready": started,
            "cpu_percent_at_rest": (after - before) * 10,
        }


def main() -> None:
    """Measure, print, and keep the figures as JSON."""
    words = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    words.add_argument("--rounds", type=int, default=7)
    words.add_argument("--idle-seconds", type=float, default=30.0)
    words.add_argument("--models", type=int, default=1000)
    words.add_argument("--pods", type=int, default=10)
    words.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    words.add_argument("--out", type=Path, default=DEFAULT_OUT)
    given = words.parse_args()
    tests.processes.PATIENCE_SECONDS = 120.0  # thousands of objects take their time
    parts: dict[str, Callable[[], dict[str, object]]] = {
        "scaling": lambda: scaling(given.rounds),
        "calls": lambda: calls(given.idle_seconds),
        "memory": lambda: memory(given.models, given.pods),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        found = parts[name]()
        text = json.dumps({name: found}, indent=1)
        print(text, flush=True)
        (given.out / f"cluster-{name}.json").write_text(text)


if __name__ == "__main__":
    main()
