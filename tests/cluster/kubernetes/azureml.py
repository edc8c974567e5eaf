"""What Azure ML leaves in a cluster: Deployments of its services, and its router, which writes replica counts."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from tests.kube_standin.client import Client
from tests.kube_standin.cluster import Cluster

AZURE_MANAGER = "scoring-fe"
"""The field manager of the writes of Azure ML's router in these tests."""


def deploy_azureml_service(
    cluster: Cluster, port: int, name: str = "iris", *, namespace: str = "", replicas: int = 2,
    annotations: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Create a web service of Azure ML's first SDK with one ready pod, which is a server at `port`."""
    cluster.create_deployment(
        name, replicas, annotations=annotations, namespace=namespace, ports=[{"containerPort": port}]
    )
    cluster.create_model_pod(name, f"{name}-abc-1", "127.0.0.1", namespace=namespace)


def deploy_azureml_deployment(cluster: Cluster, port: int, endpoint: str, deployment: str) -> str:
    """Create one deployment of an online endpoint of Azure ML's second SDK, with one ready pod. Return its name."""
    app = f"{deployment}-{endpoint}"
    labels = {"ml.azure.com/endpoint-name": endpoint, "ml.azure.com/deployment-name": deployment}
    cluster.create_deployment(app, 1, labels=labels, ports=[{"containerPort": port}])
    cluster.create_model_pod(app, f"{app}-abc-1", "127.0.0.1")
    return app


class AzureRouter:
    """A router of Azure ML that keeps a Deployment at `replicas`."""

    def __init__(self, cluster: Cluster, deployment: str, replicas: int) -> None:
        self.replicas = replicas
        self.writes = 0
        self.namespace = cluster.create_namespace()
        self._cluster = cluster
        self._deployment = deployment
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        """Start its pods, and write the number of replicas from then on."""
        labels = {"azuremlappname": "azureml-fe", "azuremlappversion": "v2", "pod-template-hash": "5d8"}
        for number in range(2):
            owner: dict[str, Any] = {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {"name": "azureml-fe-v2-5d8", "uid": secrets.token_hex(8)},
            }
            name = f"azureml-fe-v2-5d8-{number}"
            self._cluster.create_pod(name, labels, "127.0.0.9", namespace=self.namespace, owner=owner)
        self._stop.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End as if it were scaled to zero."""
        if self._thread.ident is not None:
            self._stop.set()
            self._thread.join()
            for number in range(2):
                name = f"azureml-fe-v2-5d8-{number}"
                self._cluster.client.delete("pods", self.namespace, name, gracePeriodSeconds=0)

    def _run(self) -> None:
        client = Client(self._cluster.access)
        namespace = self._cluster.namespace
        try:
            while not self._stop.wait(0.05):
                deployment = client.get("deployments", namespace, self._deployment)
                if deployment["spec"]["replicas"] != self.replicas:
                    patch = {"spec": {"replicas": self.replicas}}
                    client.patch(
                        "deployments", namespace, self._deployment, patch, sub="scale", fieldManager=AZURE_MANAGER
                    )
                    self.writes += 1
        finally:
            client.close()


@contextlib.contextmanager
def azure_router(cluster: Cluster, deployment: str, replicas: int) -> Iterator[AzureRouter]:
    """Run Azure ML's router, and stop it at the end."""
    router = AzureRouter(cluster, deployment, replicas)
    router.start()
    try:
        yield router
    finally:
        router.stop()
