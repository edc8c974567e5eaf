"""The proxy forwards requests, records them and injects faults."""

import contextlib
import http.client
from collections.abc import Iterator

import pytest

from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.client import Client, path_of
from tests.kube_standin.cluster import Cluster
from tests.kube_standin.fault_proxy import FaultProxy, RecordedRequest


@pytest.fixture
def client(cluster: Cluster, proxy: FaultProxy) -> Iterator[Client]:
    """A client of the proxy that can read pods."""
    cluster.create_service_account("reader")
    cluster.grant("reader", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}])
    client = Client(proxy.access._replace(token=cluster.create_token("reader")), "reader/1")
    yield client
    client.close()


def _is_pod_list(record: RecordedRequest) -> bool:
    return record.path.endswith("/pods") and not record.is_watch


def _remaining_events(watch: Iterator[tuple[str, Object]]) -> list[str]:
    """Return the types of the events until the connection breaks."""
    kinds = []
    with contextlib.suppress(OSError, http.client.HTTPException):
        kinds += [kind for kind, _ in watch]
    return kinds


def test_requests_are_forwarded_and_recorded(cluster: Cluster, proxy: FaultProxy, client: Client) -> None:
    assert client.list("pods", cluster.namespace, labelSelector="a=b") == []
    record = proxy.records[-1]
    assert (record.method, record.path, record.status) == ("GET", path_of("pods", cluster.namespace), 200)
    assert (record.query, record.user_agent) == ({"labelSelector": "a=b"}, "reader/1")
    assert client.request("DELETE", path_of("pods", cluster.namespace, "a")).status == 403
    assert proxy.records[-1].status == 403


def test_outage_refuses_connections_until_it_ends(cluster: Cluster, proxy: FaultProxy, client: Client) -> None:
    version = client.request("GET", path_of("pods", cluster.namespace)).ok()["metadata"]["resourceVersion"]
    watch = client.watch("pods", cluster.namespace, resourceVersion=version)
    cluster.create_pod("a", {})
    assert next(watch)[0] == "ADDED"
    with proxy.outage():
        assert _remaining_events(watch) == []
        client.close()
        with pytest.raises(OSError, match="refused"):
            client.list("pods", cluster.namespace)
    assert [pod["metadata"]["name"] for pod in client.list("pods", cluster.namespace)] == ["a"]


def test_injected_responses(cluster: Cluster, proxy: FaultProxy, client: Client) -> None:
    with proxy.fault(_is_pod_list, times=1, status=429, headers={"Retry-After": "1"}) as fault:
        reply = client.request("GET", path_of("pods", cluster.namespace))
        assert (reply.status, reply.headers["Retry-After"], reply.body["code"]) == (429, "1", 429)
        assert client.list("pods", cluster.namespace) == []
        assert fault.hit == 1
    with proxy.expire_watches():
        assert [(kind, obj["code"]) for kind, obj in client.watch("pods", cluster.namespace)] == [("ERROR", 410)]


def test_broken_connections(cluster: Cluster, proxy: FaultProxy, client: Client) -> None:
    watch = client.watch("pods", cluster.namespace)
    cluster.create_pod("a", {})
    assert next(watch)[0] == "ADDED"
    proxy.break_connections(lambda record: record.is_watch)
    assert _remaining_events(watch) == []
