"""Conformance of the stand-in and of a real API server: lists, selectors, watches."""

import itertools
from collections.abc import Iterator

import pytest

from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.client import path_of
from tests.kube_standin.cluster import NODES, Cluster


def _configmap(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}}


@pytest.fixture
def maps(cluster: Cluster) -> Cluster:
    """A namespace with three ConfigMaps that have different labels."""
    cluster.client.create("configmaps", cluster.namespace, _configmap("a", tier="front", env="prod"))
    cluster.client.create("configmaps", cluster.namespace, _configmap("b", tier="back", env="test"))
    cluster.client.create("configmaps", cluster.namespace, _configmap("c"))
    return cluster


def _names(cluster: Cluster, **query: str) -> str:
    found = cluster.client.list("configmaps", cluster.namespace, **query)
    return "".join(obj["metadata"]["name"] for obj in found if len(obj["metadata"]["name"]) == 1)


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("tier=front", "a"),
        ("tier==front,env=prod", "a"),
        ("tier!=front", "bc"),
        ("tier in (front, back)", "ab"),
        ("tier notin (front)", "bc"),
        ("tier", "ab"),
        ("!tier", "c"),
        ("tier,env!=prod", "b"),
        ("tier=nope", ""),
    ],
)
def test_label_selectors(maps: Cluster, selector: str, names: str) -> None:
    assert _names(maps, labelSelector=selector) == names


def test_field_selectors(maps: Cluster) -> None:
    assert _names(maps, fieldSelector="metadata.name=b") == "b"
    assert "b" not in _names(maps, fieldSelector="metadata.name!=b")
    assert _names(maps, fieldSelector=f"metadata.namespace={maps.namespace},metadata.name=a") == "a"
    maps.create_pod("on", {})
    selector = {"fieldSelector": f"spec.nodeName={NODES[0]},status.phase=Pending"}
    assert len(maps.client.list("pods", maps.namespace, **selector)) == 1
    assert maps.client.list("pods", maps.namespace, fieldSelector="status.phase=Running") == []


def test_invalid_selectors_are_refused(maps: Cluster) -> None:
    path = path_of("configmaps", maps.namespace)
    for query in ({"fieldSelector": "data.a=1"}, {"labelSelector": "a in"}):
        reply = maps.client.request("GET", path, **query)
        assert (reply.status, reply.body["reason"]) == (400, "BadRequest")


def test_pages_have_one_resource_version(cluster: Cluster) -> None:
    for index in range(5):
        cluster.client.create("secrets", cluster.namespace, {"metadata": {"name": f"s{index}"}})
    path = path_of("secrets", cluster.namespace)
    page = cluster.client.request("GET", path, limit=2).ok()
    version = page["metadata"]["resourceVersion"]
    names = [obj["metadata"]["name"] for obj in page["items"]]
    cluster.client.delete("secrets", cluster.namespace, "s3")
    cluster.client.create("secrets", cluster.namespace, {"metadata": {"name": "s9"}})
    while token := page["metadata"].get("continue"):
        page = cluster.client.request("GET", path, limit=2, **{"continue": token}).ok()
        assert page["metadata"]["resourceVersion"] == version
        names += [obj["metadata"]["name"] for obj in page["items"]]
    assert names == [f"s{index}" for index in range(5)]
    assert page["kind"] == "SecretList"


def test_list_items_have_no_kind(maps: Cluster) -> None:
    items = maps.client.list("configmaps", maps.namespace)
    assert all("kind" not in obj and "apiVersion" not in obj for obj in items)
    assert maps.client.get("configmaps", maps.namespace, "a")["kind"] == "ConfigMap"


def _version(cluster: Cluster, plural: str) -> str:
    version: str = cluster.client.request("GET", path_of(plural, cluster.namespace)).ok()["metadata"]["resourceVersion"]
    return version


def _take(watch: Iterator[tuple[str, Object]], count: int) -> list[tuple[str, str]]:
    return [(kind, obj["metadata"]["name"]) for kind, obj in itertools.islice(watch, count)]


def test_watch_continues_after_a_list(cluster: Cluster) -> None:
    version = _version(cluster, "secrets")
    cluster.create_secret("a", {"k": "1"})
    cluster.client.patch("secrets", cluster.namespace, "a", {"metadata": {"labels": {"x": "y"}}})
    cluster.client.delete("secrets", cluster.namespace, "a")
    watch = cluster.client.watch("secrets", cluster.namespace, resourceVersion=version)
    events = list(itertools.islice(watch, 3))
    assert [kind for kind, _ in events] == ["ADDED", "MODIFIED", "DELETED"]
    versions = [int(obj["metadata"]["resourceVersion"]) for _, obj in events]
    assert versions == sorted(set(versions))
    assert all(obj["kind"] == "Secret" for _, obj in events)
    cluster.create_secret("b", {"k": "1"})
    assert _take(watch, 1) == [("ADDED", "b")]


def test_watch_continues_after_any_event(cluster: Cluster) -> None:
    version = _version(cluster, "secrets")
    for name in "abc":
        cluster.create_secret(name, {})
    first = next(cluster.client.watch("secrets", cluster.namespace, resourceVersion=version))[1]
    later = cluster.client.watch("secrets", cluster.namespace, resourceVersion=first["metadata"]["resourceVersion"])
    assert _take(later, 2) == [("ADDED", "b"), ("ADDED", "c")]


def test_watch_with_a_selector_reports_matches_as_added_and_deleted(cluster: Cluster) -> None:
    cluster.client.create("configmaps", cluster.namespace, _configmap("a", on="no"))
    version = _version(cluster, "configmaps")
    watch = cluster.client.watch("configmaps", cluster.namespace, resourceVersion=version, labelSelector="on=yes")
    for value in ("yes", "yes", "no"):
        patch = {"metadata": {"labels": {"on": value}, "annotations": {"n": value}}}
        cluster.client.patch("configmaps", cluster.namespace, "a", patch)
    cluster.client.patch("configmaps", cluster.namespace, "a", {"metadata": {"labels": {"on": "yes"}}})
    cluster.client.patch("configmaps", cluster.namespace, "a", {"data": {"b": "2"}})
    cluster.client.delete("configmaps", cluster.namespace, "a")
    # The second "yes" changes nothing, so there is no event.
    assert [kind for kind, _ in _take(watch, 5)] == ["ADDED", "DELETED", "ADDED", "MODIFIED", "DELETED"]


def test_watch_without_a_version_starts_with_existing_objects(maps: Cluster) -> None:
    watch = maps.client.watch("configmaps", maps.namespace, labelSelector="tier")
    assert sorted(_take(watch, 2)) == [("ADDED", "a"), ("ADDED", "b")]
    maps.client.delete("configmaps", maps.namespace, "a")
    assert _take(watch, 1) == [("DELETED", "a")]


def test_streaming_list_ends_with_a_bookmark(maps: Cluster) -> None:
    # A server whose store cannot report progress sends the bookmark only if it needs no later version.
    version = max(int(obj["metadata"]["resourceVersion"]) for obj in maps.client.list("configmaps", maps.namespace))
    options = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    options["resourceVersion"] = str(version)
    watch = maps.client.watch("configmaps", maps.namespace, labelSelector="tier", **options)
    assert sorted(_take(watch, 2)) == [("ADDED", "a"), ("ADDED", "b")]
    kind, bookmark = next(watch)
    assert (kind, bookmark["kind"]) == ("BOOKMARK", "ConfigMap")
    assert bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"
    maps.client.delete("configmaps", maps.namespace, "b")
    again = maps.client.watch(
        "configmaps", maps.namespace, resourceVersion=bookmark["metadata"]["resourceVersion"], labelSelector="tier"
    )
    assert _take(again, 1) == [("DELETED", "b")]


def test_watch_from_an_expired_version(cluster: Cluster) -> None:
    query = {"resourceVersion": "1", "timeoutSeconds": 1}
    events = list(cluster.client.watch("configmaps", cluster.namespace, **query))
    # A new server may still have its complete history.
    if any(kind == "ERROR" for kind, _ in events):
        assert [(kind, obj["reason"], obj["code"]) for kind, obj in events] == [("ERROR", "Expired", 410)]
    else:
        assert {kind for kind, _ in events} <= {"ADDED"}


def test_list_at_a_future_version(cluster: Cluster) -> None:
    version = int(_version(cluster, "configmaps")) + 1_000_000
    reply = cluster.client.request("GET", path_of("configmaps", cluster.namespace), resourceVersion=version)
    assert (reply.status, reply.body["reason"]) == (504, "Timeout")
    assert reply.body["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"


def test_watch_ends_after_its_timeout(cluster: Cluster) -> None:
    # The label excludes what a distribution creates in each namespace, such as the ConfigMap kube-root-ca.crt.
    query = {"resourceVersion": _version(cluster, "configmaps"), "labelSelector": "on=yes", "timeoutSeconds": 1}
    assert list(cluster.client.watch("configmaps", cluster.namespace, **query)) == []


def test_watch_of_all_namespaces(cluster: Cluster) -> None:
    version = _version(cluster, "secrets")
    other = cluster.create_namespace()
    label = f"of={cluster.namespace}"
    watch = cluster.client.watch("secrets", resourceVersion=version, labelSelector=label)
    for namespace in (cluster.namespace, other):
        obj = {"metadata": {"name": "s", "labels": {"of": cluster.namespace}}}
        cluster.client.create("secrets", namespace, obj)
    found = [obj["metadata"]["namespace"] for _, obj in itertools.islice(watch, 2)]
    assert found == [cluster.namespace, other]
