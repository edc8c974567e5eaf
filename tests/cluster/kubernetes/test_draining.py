"""Two routers in a cluster: a pod whose streams outlive its drain time is removed, and all routers cut what is left."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cluster.kubernetes.router_processes import RouterStarter
from tests.kube_standin.cluster import Cluster
from tests.processes import free_ports, send_request, wait_until
from tests.test_draining import TOKEN_SERVER, Stream, wait_for_first_tokens

HOSTS = ("127.79.0.1", "127.79.0.2")
SETTINGS = {"scoring-timeout-ms": "1000", "replica-drain-seconds": "2"}


@pytest.fixture
def token_port() -> Iterator[int]:
    """The port of two model servers, at `HOSTS`."""
    (port,) = free_ports(HOSTS[0], 1)
    with contextlib.ExitStack() as cleanup:
        for host in HOSTS:
            command = [sys.executable, str(TOKEN_SERVER), "--port", str(port), "--host", host]
            process = cleanup.enter_context(subprocess.Popen(command))
            cleanup.callback(process.kill)
        yield port


def test_streams_of_all_routers_are_cut_at_the_drain_limit(
    cluster: Cluster, routers: RouterStarter, token_port: int
) -> None:
    both = [routers.start(), routers.start()]
    settings = SETTINGS | {"port": str(token_port), "auth-enabled": "false"}
    annotations = {f"azureml-fe/{name}": value for name, value in settings.items()}
    cluster.create_deployment("llm", 2, annotations=annotations | {"azureml-fe/num-replicas": "2"})
    for number, host in enumerate(HOSTS):
        cluster.create_model_pod("llm", f"llm-abc-{number}", host)
    wait_until(
        lambda: [router.metric("replicas", service="llm", state="ready") for router in both] == [2, 2], "two replicas"
    )
    # One slot each: one stream of each router, at different replicas.
    streams = [Stream(router.port, "/tokens/100/0.1") for router in both]
    wait_for_first_tokens(*streams)
    change = {"metadata": {"annotations": {"azureml-fe/num-replicas": "1"}}}
    cluster.client.patch("deployments", cluster.namespace, "llm", change)
    for stream in streams:
        stream.wait()
    assert sorted(bool(stream.complete) for stream in streams) == [False, True]
    (cut,) = [stream for stream in streams if not stream.complete]
    wait_until(lambda: cluster.desired_replicas("llm") == 1, "the number of replicas")
    assert sum(router.metric("requests_total", service="llm", error="drain-timeout") for router in both) == 1
    for router in both:
        explained = json.loads(send_request(router.admin_port, f"/explain/{cut.request_id}").body)
        assert "replica_drain_seconds" in json.dumps(explained)
    leader = next(router for router in both if router.leads)
    assert leader.log_lines("drain time is over, aborting the requests of a replica")
