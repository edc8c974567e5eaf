"""A release of the router's chart in a cluster: the rendered objects, with pods run by the tests' kubelet."""

import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

from tests.deploy.chart import CHART
from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.cluster import ROUTER, Cluster
from tests.kube_standin.controller_manager import ControllerManager
from tests.kube_standin.fault_proxy import FaultProxy
from tests.kube_standin.rollout import is_active, is_ready
from tests.kubernetes.traffic import Traffic, get
from tests.processes import Response, wait_until

PORT, ADMIN_PORT = 8080, 9090
_chart = Chart.load(CHART)
# Pods of the tests share one machine, so each needs its own address, state directory and kubeconfig.
_POD_ENVIRONMENT = {
    "AZUREML_FE_HOST": "$(AZUREML_FE_POD_IP)",
    "AZUREML_FE_ADMIN_HOST": "$(AZUREML_FE_POD_IP)",
    "AZUREML_FE_STATE_DIR": "/var/lib/azureml-fe",
    "AZUREML_FE_KUBECONFIG": "$(KUBECONFIG)",
    "AZUREML_FE_WORKERS": "1",
}


def manifests(namespace: str, **values: Any) -> list[Object]:
    """Return all objects of a release that serves its own namespace, without those of `helm test`."""
    all_values = {
        "image": {"repository": "azureml-fe", "tag": "test"},
        "allowInsecureConnections": True,
        "clusterPurpose": "DevTest",
        "namespaces": [namespace],
        "shutdown": {"preStopSeconds": 1, "delaySeconds": 0, "drainSeconds": 10, "marginSeconds": 15},
        "extraEnv": [{"name": name, "value": value} for name, value in _POD_ENVIRONMENT.items()],
        **values,
    }
    rendered = _chart.render(all_values, name=ROUTER, namespace=namespace, is_install=True, is_upgrade=False)
    objects = []
    for name, text in rendered.items():
        if not name.endswith("NOTES.txt"):
            objects += [document for document in yaml.safe_load_all(text) if document]
    return [each for each in objects if "helm.sh/hook" not in (each["metadata"].get("annotations") or {})]


class HelmRelease:
    """The router pods of one release. Each uses the API server through the proxy, with its own token."""

    def __init__(
        self, cluster: Cluster, controller: ControllerManager, proxy: FaultProxy, replicas: int, **values: Any
    ) -> None:
        self.cluster = cluster
        self.controller = controller
        self.proxy = proxy
        self.namespace = cluster.namespace
        controller.kubelet.entrypoints["azureml-fe"] = [sys.executable, "-m", "router"]
        controller.kubelet.kubeconfig_of = self._kubeconfig
        objects = manifests(self.namespace, **values)
        deployment = next(each for each in objects if each["kind"] == "Deployment")
        deployment["spec"]["replicas"] = replicas
        cluster.apply(objects)
        self.wait_ready(replicas)

    def _kubeconfig(self, account: str) -> Path:
        try:
            return self.cluster.write_kubeconfig(account, self.proxy.access)
        finally:
            self.cluster.client.close()  # the connection of the pod's thread

    def wait_ready(self, count: int) -> None:
        """Wait until the release has exactly `count` ready pods."""
        self.controller.wait_ready(ROUTER, count)

    def uninstall(self) -> None:
        """Delete the routers. Check that all ended within their grace period, without a warning or a traceback."""
        self.cluster.client.delete("deployments", self.namespace, ROUTER)
        wait_until(lambda: not self.controller.pods(ROUTER), "the removal of all routers")
        assert self.controller.kubelet.killed == []
        assert not [record for record in self.proxy.records if record.warnings], "the server got unknown fields"
        for log in self.controller.kubelet.directory.glob(f"{ROUTER}-*.log"):
            assert "Traceback" not in log.read_text(), log.read_text()

    # Its state.

    def pods(self) -> list[Object]:
        """Return the ready router pods: the endpoints of the Service."""
        return [pod for pod in self.controller.pods(ROUTER) if is_active(pod) and is_ready(pod)]

    def addresses(self) -> list[str]:
        """Return the addresses of the ready router pods."""
        return [pod["status"]["podIP"] for pod in self.pods()]

    def leader(self) -> Object:
        """Wait until a ready pod holds the Lease, and return the pod."""
        leaders: list[Object] = []

        def has_leader() -> bool:
            lease = self.cluster.client.find("leases", self.namespace, ROUTER)
            holder = (lease or {}).get("spec", {}).get("holderIdentity") or ""
            leaders[:] = [pod for pod in self.pods() if holder.startswith(pod["metadata"]["name"])]
            return bool(leaders)

        wait_until(has_leader, "a leader")
        return leaders[0]

    def metric(self, address: str, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        total = 0.0
        for line in get(address, ADMIN_PORT, "/metrics").body.decode().splitlines():
            sample, _, value = line.rpartition(" ")
            sample_name, _, sample_labels = sample.partition("{")
            if sample_name == f"azureml_fe_{name}" and all(
                f'{key}="{text}"' in sample_labels for key, text in labels.items()
            ):
                total += float(value)
        return total

    def status(self, address: str) -> Mapping[str, Any]:
        """Return `/status.json` of one router."""
        status: Mapping[str, Any] = json.loads(get(address, ADMIN_PORT, "/status.json").body)
        return status

    def readiness(self, address: str) -> Response:
        """Return the response of one router's readiness probe."""
        return get(address, ADMIN_PORT, "/readyz")

    def log(self, pod: str) -> str:
        """Return the log of a router pod."""
        return (self.controller.kubelet.directory / f"{pod}.log").read_text()

    # Requests.

    def score(self, service: str, body: bytes = b"[1]", key: str = "", address: str = "") -> Response:
        """Send one request, to any router unless `address` is given."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return get(address or self.addresses()[0], PORT, f"/api/v1/service/{service}/score", body, headers)

    def wait_scores(self, service: str, key: str = "", status: int = 200, body: bytes = b"[1]") -> None:
        """Wait until all routers respond to scoring requests with this status."""
        for address in self.addresses():
            wait_until(
                functools.partial(self._has_status, service, body, key, address, status), f"{status} of {service}"
            )

    def _has_status(self, service: str, body: bytes, key: str, address: str, status: int) -> bool:
        return self.score(service, body, key=key, address=address).status == status

    def traffic(self, service: str, clients: int = 4, routers: Callable[[], list[str]] | None = None) -> Traffic:
        """Return clients that send requests continuously, to the routers in turn."""
        return Traffic(routers or self.addresses, PORT, f"/api/v1/service/{service}/score", clients)
