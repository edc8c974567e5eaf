"""What only the double can be made to do: a short history, frequent bookmarks. Watches of a real server behave the
same, but nobody can wait for them to."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.client import path_of
from tests.kubernetes.cluster import Cluster, cluster_of
from tests.kubernetes.controller import controlling
from tests.kubernetes.double.defaults import PLUGINS
from tests.kubernetes.double.running import running
from tests.kubernetes.models import deploy_echo


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A double that remembers three writes and sends many bookmarks."""
    with running(tmp_path_factory.mktemp("forgetful"), "--history", "3", "--bookmark-seconds", "0.05") as kubeconfig:
        yield kubeconfig


@pytest.fixture
def cluster(forgetful: Path, tmp_path: Path) -> Iterator[Cluster]:
    """A namespace in it."""
    with cluster_of(forgetful, tmp_path) as found:
        yield found


def test_bookmarks_say_how_far_a_watch_has_come(cluster: Cluster) -> None:
    version = cluster.client.ask("GET", path_of("pods", cluster.namespace)).ok()["metadata"]["resourceVersion"]
    watch = cluster.client.watch("pods", cluster.namespace, resourceVersion=version, allowWatchBookmarks="true")
    kind, bookmark = next(watch)
    assert (kind, bookmark["kind"], bookmark["metadata"]["resourceVersion"]) == ("BOOKMARK", "Pod", version)
    cluster.secret("s", {})  # none of the watch's, and yet it comes further
    later = (kind for kind, mark in watch if int(mark["metadata"]["resourceVersion"]) > int(version))
    assert next(later) == "BOOKMARK"


def test_pods_of_a_server_without_admission_plugins_run(tmp_path: Path) -> None:
    flags = [word for plugin in sorted(PLUGINS) for word in ("--disable-admission-plugin", plugin)]
    with (
        running(tmp_path, *flags) as kubeconfig,
        cluster_of(kubeconfig, tmp_path) as bare,
        controlling(bare, tmp_path) as controller,
    ):

        def kubeconfig_of(account: str) -> Path:
            try:
                return bare.kubeconfig(account)
            finally:
                bare.client.close()  # of the thread that is a pod's life

        controller.kubelet.kubeconfig_of = kubeconfig_of
        deploy_echo(bare, "iris")
        (pod,) = controller.ready("iris", 1)
        assert pod["spec"].keys().isdisjoint({"serviceAccountName", "priority", "tolerations", "volumes"})
        bare.node("ready")


def test_history_that_is_forgotten(cluster: Cluster) -> None:
    version = int(cluster.secret("s", {})["metadata"]["resourceVersion"])
    for number in range(3):
        cluster.client.patch("secrets", cluster.namespace, "s", {"metadata": {"labels": {"n": str(number)}}})
    watch = cluster.client.watch("secrets", cluster.namespace, resourceVersion=str(version))
    assert [kind for kind, _ in itertools.islice(watch, 3)] == ["MODIFIED"] * 3
    cluster.client.patch("secrets", cluster.namespace, "s", {"metadata": {"labels": {"n": "last"}}})
    (kind, refusal), *more = cluster.client.watch("secrets", cluster.namespace, resourceVersion=str(version))
    assert (kind, refusal["code"], refusal["reason"], more) == ("ERROR", 410, "Expired", [])
    assert refusal["message"].startswith(f"too old resource version: {version} (")


def test_pages_of_a_list_that_is_forgotten(cluster: Cluster) -> None:
    for name in "abcd":
        cluster.secret(name, {})
    path = path_of("secrets", cluster.namespace)
    page = cluster.client.ask("GET", path, limit=1).ok()
    for number in range(4):
        cluster.client.patch("secrets", cluster.namespace, "d", {"metadata": {"labels": {"n": str(number)}}})
    reply = cluster.client.ask("GET", path, limit=1, **{"continue": page["metadata"]["continue"]})
    assert (reply.status, reply.body["reason"]) == (410, "Expired")
    rest = cluster.client.ask("GET", path, **{"continue": reply.body["metadata"]["continue"]}).ok()
    assert [thing["metadata"]["name"] for thing in rest["items"]] == ["b", "c", "d"]
