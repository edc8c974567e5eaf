"""The stand-in with a short history and frequent bookmarks.

Watches of a real server behave the same, but a test cannot wait for that.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube_standin.api_server.defaults import PLUGINS
from tests.kube_standin.api_server.process import running_api_server
from tests.kube_standin.client import path_of
from tests.kube_standin.cluster import Cluster, temporary_cluster
from tests.kube_standin.controller_manager import running_controller_manager
from tests.kube_standin.echo_model import deploy_echo


@pytest.fixture(scope="module")
def short_history_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An API server stand-in that keeps three writes and sends bookmarks every 0.05 s."""
    with running_api_server(
        tmp_path_factory.mktemp("api_server"), "--history", "3", "--bookmark-seconds", "0.05"
    ) as kubeconfig:
        yield kubeconfig


@pytest.fixture
def cluster(short_history_server: Path, tmp_path: Path) -> Iterator[Cluster]:
    """A namespace in that server."""
    with temporary_cluster(short_history_server, tmp_path) as cluster:
        yield cluster


def test_bookmarks_have_the_latest_version(cluster: Cluster) -> None:
    version = cluster.client.request("GET", path_of("pods", cluster.namespace)).ok()["metadata"]["resourceVersion"]
    watch = cluster.client.watch("pods", cluster.namespace, resourceVersion=version, allowWatchBookmarks="true")
    kind, bookmark = next(watch)
    assert (kind, bookmark["kind"], bookmark["metadata"]["resourceVersion"]) == ("BOOKMARK", "Pod", version)
    cluster.create_secret("s", {})  # not of the watched resource
    later = (kind for kind, mark in watch if int(mark["metadata"]["resourceVersion"]) > int(version))
    assert next(later) == "BOOKMARK"


def test_pods_run_without_admission_plugins(tmp_path: Path) -> None:
    flags = [word for plugin in sorted(PLUGINS) for word in ("--disable-admission-plugin", plugin)]
    with (
        running_api_server(tmp_path, *flags) as kubeconfig,
        temporary_cluster(kubeconfig, tmp_path) as without_plugins,
        running_controller_manager(without_plugins, tmp_path) as controller,
    ):

        def kubeconfig_of(account: str) -> Path:
            try:
                return without_plugins.write_kubeconfig(account)
            finally:
                without_plugins.client.close()  # the connection of the pod's thread

        controller.kubelet.kubeconfig_of = kubeconfig_of
        deploy_echo(without_plugins, "iris")
        (pod,) = controller.wait_ready("iris", 1)
        assert pod["spec"].keys().isdisjoint({"serviceAccountName", "priority", "tolerations", "volumes"})
        without_plugins.create_node("ready")


def test_watch_from_a_version_before_the_history(cluster: Cluster) -> None:
    version = int(cluster.create_secret("s", {})["metadata"]["resourceVersion"])
    for number in range(3):
        cluster.client.patch("secrets", cluster.namespace, "s", {"metadata": {"labels": {"n": str(number)}}})
    watch = cluster.client.watch("secrets", cluster.namespace, resourceVersion=str(version))
    assert [kind for kind, _ in itertools.islice(watch, 3)] == ["MODIFIED"] * 3
    cluster.client.patch("secrets", cluster.namespace, "s", {"metadata": {"labels": {"n": "last"}}})
    (kind, error), *more = cluster.client.watch("secrets", cluster.namespace, resourceVersion=str(version))
    assert (kind, error["code"], error["reason"], more) == ("ERROR", 410, "Expired", [])
    assert error["message"].startswith(f"too old resource version: {version} (")


def test_continue_token_from_before_the_history(cluster: Cluster) -> None:
    for name in "abcd":
        cluster.create_secret(name, {})
    path = path_of("secrets", cluster.namespace)
    page = cluster.client.request("GET", path, limit=1).ok()
    for number in range(4):
        cluster.client.patch("secrets", cluster.namespace, "d", {"metadata": {"labels": {"n": str(number)}}})
    reply = cluster.client.request("GET", path, limit=1, **{"continue": page["metadata"]["continue"]})
    assert (reply.status, reply.body["reason"]) == (410, "Expired")
    rest = cluster.client.request("GET", path, **{"continue": reply.body["metadata"]["continue"]}).ok()
    assert [obj["metadata"]["name"] for obj in rest["items"]] == ["b", "c", "d"]
