"""The proxy before the API server makes the faults that it says it makes."""

import contextlib
import http.client
from collections.abc import Iterator

import pytest

from tests.kubernetes.client import Client, path_of
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.double.resources import Object
from tests.kubernetes.proxy import Proxy, Record


@pytest.fixture
def client(cluster: Cluster, proxy: Proxy) -> Iterator[Client]:
    """Somebody who asks through the proxy and may read pods."""
    cluster.account("reader")
    cluster.allow("reader", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}])
    found = Client(proxy.access._replace(token=cluster.token("reader")), "reader/1")
    yield found
    found.close()


def _lists(record: Record) -> bool:
    return record.path.endswith("/pods") and not record.is_watch


def _rest(watch: Iterator[tuple[str, Object]]) -> list[str]:
    """What a watch still brings before it breaks; it hangs if it does not."""
    kinds = []
    with contextlib.suppress(OSError, http.client.HTTPException):
        kinds += [kind for kind, _ in watch]
    return kinds


def test_requests_pass_and_are_recorded(cluster: Cluster, proxy: Proxy, client: Client) -> None:
    assert client.list("pods", cluster.namespace, labelSelector="a=b") == []
    record = proxy.records[-1]
    assert (record.method, record.path, record.status) == ("GET", path_of("pods", cluster.namespace), 200)
    assert (record.query, record.user_agent) == ({"labelSelector": "a=b"}, "reader/1")
    assert client.ask("DELETE", path_of("pods", cluster.namespace, "a")).status == 403
    assert proxy.records[-1].status == 403


def test_server_is_away_and_comes_back(cluster: Cluster, proxy: Proxy, client: Client) -> None:
    version = client.ask("GET", path_of("pods", cluster.namespace)).ok()["metadata"]["resourceVersion"]
    watch = client.watch("pods", cluster.namespace, resourceVersion=version)
    cluster.pod("a", {})
    assert next(watch)[0] == "ADDED"
    with proxy.away():
        assert _rest(watch) == []
        client.close()
        with pytest.raises(OSError, match="refused"):
            client.list("pods", cluster.namespace)
    assert [pod["metadata"]["name"] for pod in client.list("pods", cluster.namespace)] == ["a"]


def test_answers_of_its_own(cluster: Cluster, proxy: Proxy, client: Client) -> None:
    with proxy.fault(_lists, times=1, status=429, headers={"Retry-After": "1"}) as fault:
        reply = client.ask("GET", path_of("pods", cluster.namespace))
        assert (reply.status, reply.headers["Retry-After"], reply.body["code"]) == (429, "1", 429)
        assert client.list("pods", cluster.namespace) == []
        assert fault.hit == 1
    with proxy.expired():
        assert [(kind, thing["code"]) for kind, thing in client.watch("pods", cluster.namespace)] == [("ERROR", 410)]


def test_connections_that_break(cluster: Cluster, proxy: Proxy, client: Client) -> None:
    watch = client.watch("pods", cluster.namespace)
    cluster.pod("a", {})
    assert next(watch)[0] == "ADDED"
    proxy.cut(lambda record: record.is_watch)
    assert _rest(watch) == []
