"""Lists, selectors and watches are what Kubernetes says they are: of the double, and of a real API server."""

import itertools
from collections.abc import Iterator

import pytest

from tests.kubernetes.client import path_of
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.double.resources import Object


def _configmap(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}}


@pytest.fixture
def maps(cluster: Cluster) -> Cluster:
    """With three objects that differ in their labels."""
    cluster.client.create("configmaps", cluster.namespace, _configmap("a", tier="front", env="prod"))
    cluster.client.create("configmaps", cluster.namespace, _configmap("b", tier="back", env="test"))
    cluster.client.create("configmaps", cluster.namespace, _configmap("c"))
    return cluster


def _names(cluster: Cluster, **query: str) -> str:
    found = cluster.client.list("configmaps", cluster.namespace, **query)
    return "".join(thing["metadata"]["name"] for thing in found if len(thing["metadata"]["name"]) == 1)


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
    maps.pod("on", {})
    where = {"fieldSelector": "spec.nodeName=node-1,status.phase=Pending"}
    assert len(maps.client.list("pods", maps.namespace, **where)) == 1
    assert maps.client.list("pods", maps.namespace, fieldSelector="status.phase=Running") == []


def test_selectors_that_cannot_be_understood(maps: Cluster) -> None:
    path = path_of("configmaps", maps.namespace)
    for query in ({"fieldSelector": "data.a=1"}, {"labelSelector": "a in"}):
        reply = maps.client.ask("GET", path, **query)
        assert (reply.status, reply.body["reason"]) == (400, "BadRequest")


def test_pages_show_one_moment(cluster: Cluster) -> None:
    for index in range(5):
        cluster.client.create("secrets", cluster.namespace, {"metadata": {"name": f"s{index}"}})
    path = path_of("secrets", cluster.namespace)
    page = cluster.client.ask("GET", path, limit=2).ok()
    version = page["metadata"]["resourceVersion"]
    seen = [thing["metadata"]["name"] for thing in page["items"]]
    cluster.client.delete("secrets", cluster.namespace, "s3")
    cluster.client.create("secrets", cluster.namespace, {"metadata": {"name": "s9"}})
    while token := page["metadata"].get("continue"):
        page = cluster.client.ask("GET", path, limit=2, **{"continue": token}).ok()
        assert page["metadata"]["resourceVersion"] == version
        seen += [thing["metadata"]["name"] for thing in page["items"]]
    assert seen == [f"s{index}" for index in range(5)]
    assert page["kind"] == "SecretList"


def test_items_of_a_list_name_no_kind(maps: Cluster) -> None:
    items = maps.client.list("configmaps", maps.namespace)
    assert all("kind" not in thing and "apiVersion" not in thing for thing in items)
    assert maps.client.get("configmaps", maps.namespace, "a")["kind"] == "ConfigMap"


def _version(cluster: Cluster, plural: str) -> str:
    version: str = cluster.client.ask("GET", path_of(plural, cluster.namespace)).ok()["metadata"]["resourceVersion"]
    return version


def _take(watch: Iterator[tuple[str, Object]], count: int) -> list[tuple[str, str]]:
    return [(kind, thing["metadata"]["name"]) for kind, thing in itertools.islice(watch, count)]


def test_watch_goes_on_where_a_list_ended(cluster: Cluster) -> None:
    version = _version(cluster, "secrets")
    cluster.secret("a", {"k": "1"})
    cluster.client.patch("secrets", cluster.namespace, "a", {"metadata": {"labels": {"x": "y"}}})
    cluster.client.delete("secrets", cluster.namespace, "a")
    watch = cluster.client.watch("secrets", cluster.namespace, resourceVersion=version)
    events = list(itertools.islice(watch, 3))
    assert [kind for kind, _ in events] == ["ADDED", "MODIFIED", "DELETED"]
    versions = [int(thing["metadata"]["resourceVersion"]) for _, thing in events]
    assert versions == sorted(set(versions))
    assert all(thing["kind"] == "Secret" for _, thing in events)
    cluster.secret("b", {"k": "1"})
    assert _take(watch, 1) == [("ADDED", "b")]


def test_watch_goes_on_from_any_event(cluster: Cluster) -> None:
    version = _version(cluster, "secrets")
    for name in "abc":
        cluster.secret(name, {})
    first = next(cluster.client.watch("secrets", cluster.namespace, resourceVersion=version))[1]
    later = cluster.client.watch("secrets", cluster.namespace, resourceVersion=first["metadata"]["resourceVersion"])
    assert _take(later, 2) == [("ADDED", "b"), ("ADDED", "c")]


def test_watch_with_a_selector_sees_objects_come_and_go(cluster: Cluster) -> None:
    cluster.client.create("configmaps", cluster.namespace, _configmap("a", on="no"))
    version = _version(cluster, "configmaps")
    watch = cluster.client.watch("configmaps", cluster.namespace, resourceVersion=version, labelSelector="on=yes")
    for value in ("yes", "yes", "no"):
        patch = {"metadata": {"labels": {"on": value}, "annotations": {"n": value}}}
        cluster.client.patch("configmaps", cluster.namespace, "a", patch)
    cluster.client.patch("configmaps", cluster.namespace, "a", {"metadata": {"labels": {"on": "yes"}}})
    cluster.client.patch("configmaps", cluster.namespace, "a", {"data": {"b": "2"}})
    cluster.client.delete("configmaps", cluster.namespace, "a")
    # The second "yes" changes nothing, so it is no write.
    assert [kind for kind, _ in _take(watch, 5)] == ["ADDED", "DELETED", "ADDED", "MODIFIED", "DELETED"]


def test_watch_without_a_version_begins_with_what_is_there(maps: Cluster) -> None:
    watch = maps.client.watch("configmaps", maps.namespace, labelSelector="tier")
    assert sorted(_take(watch, 2)) == [("ADDED", "a"), ("ADDED", "b")]
    maps.client.delete("configmaps", maps.namespace, "a")
    assert _take(watch, 1) == [("DELETED", "a")]


def test_watch_that_streams_the_list_says_when_it_is_over(maps: Cluster) -> None:
    options = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
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


def test_watch_from_a_version_that_is_too_old(cluster: Cluster) -> None:
    query = {"resourceVersion": "1", "timeoutSeconds": 1}
    events = list(cluster.client.watch("configmaps", cluster.namespace, **query))
    # A server that is as young as its store may still know of all that has been.
    if any(kind == "ERROR" for kind, _ in events):
        assert [(kind, thing["reason"], thing["code"]) for kind, thing in events] == [("ERROR", "Expired", 410)]
    else:
        assert {kind for kind, _ in events} <= {"ADDED"}


def test_version_that_has_not_been_yet(cluster: Cluster) -> None:
    version = int(_version(cluster, "configmaps")) + 1_000_000
    reply = cluster.client.ask("GET", path_of("configmaps", cluster.namespace), resourceVersion=version)
    assert (reply.status, reply.body["reason"]) == (504, "Timeout")
    assert reply.body["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"


def test_watch_ends_when_its_time_is_over(cluster: Cluster) -> None:
    version = _version(cluster, "configmaps")
    assert list(cluster.client.watch("configmaps", cluster.namespace, resourceVersion=version, timeoutSeconds=1)) == []


def test_watch_of_all_namespaces(cluster: Cluster) -> None:
    version = _version(cluster, "secrets")
    other = cluster.another_namespace()
    label = f"of={cluster.namespace}"
    watch = cluster.client.watch("secrets", resourceVersion=version, labelSelector=label)
    for namespace in (cluster.namespace, other):
        thing = {"metadata": {"name": "s", "labels": {"of": cluster.namespace}}}
        cluster.client.create("secrets", namespace, thing)
    found = [thing["metadata"]["namespace"] for _, thing in itertools.islice(watch, 2)]
    assert found == [cluster.namespace, other]
