"""The router in a cluster as `helm install` puts it there: the chart's objects, its pods run by the tests' kubelet."""

import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

from tests.deploy.chart import CHART
from tests.kubernetes.cluster import ROUTER, Cluster
from tests.kubernetes.controller import Controller
from tests.kubernetes.double.resources import Object
from tests.kubernetes.proxy import Proxy
from tests.kubernetes.rollout import is_active, is_ready
from tests.kubernetes.traffic import Traffic, get
from tests.processes import Answer, until

PORT, ADMIN_PORT = 8080, 9090
_chart = Chart.load(CHART)
# What a pod has to itself, and routers on one machine have not.
_PLACE = {
    "AZUREML_FE_HOST": "$(AZUREML_FE_POD_IP)",
    "AZUREML_FE_ADMIN_HOST": "$(AZUREML_FE_POD_IP)",
    "AZUREML_FE_STATE_DIR": "/var/lib/azureml-fe",
    "AZUREML_FE_KUBECONFIG": "$(KUBECONFIG)",
    "AZUREML_FE_WORKERS": "1",
}


def manifests(namespace: str, **values: Any) -> list[Object]:
    """All objects of a release that serves its own namespace, less those of `helm test`."""
    all_values = {
        "image": {"repository": "azureml-fe", "tag": "test"},
        "allowInsecureConnections": True,
        "clusterPurpose": "DevTest",
        "namespaces": [namespace],
        "shutdown": {"preStopSeconds": 1, "delaySeconds": 0, "drainSeconds": 10, "marginSeconds": 15},
        "extraEnv": [{"name": name, "value": value} for name, value in _PLACE.items()],
        **values,
    }
    rendered = _chart.render(all_values, name=ROUTER, namespace=namespace, is_install=True, is_upgrade=False)
    found = []
    for name, text in rendered.items():
        if not name.endswith("NOTES.txt"):
            found += [document for document in yaml.safe_load_all(text) if document]
    return [each for each in found if "helm.sh/hook" not in (each["metadata"].get("annotations") or {})]


class Installed:
    """Routers of one release. Each asks the API server through the proxy, with a token of its own."""

    def __init__(self, cluster: Cluster, controller: Controller, proxy: Proxy, replicas: int, **values: Any) -> None:
        self.cluster = cluster
        self.controller = controller
        self.proxy = proxy
        self.namespace = cluster.namespace
        self.objects = manifests(self.namespace, **values)
        controller.kubelet.programs["azureml-fe"] = [sys.executable, "-m", "router"]
        controller.kubelet.kubeconfig_of = self._kubeconfig
        deployment = next(each for each in self.objects if each["kind"] == "Deployment")
        deployment["spec"]["replicas"] = replicas
        cluster.apply(self.objects)
        self.all_ready(replicas)

    def _kubeconfig(self, account: str) -> Path:
        try:
            return self.cluster.kubeconfig(account, self.proxy.access)
        finally:
            self.cluster.client.close()  # of the thread that is a pod's life

    def all_ready(self, count: int) -> None:
        """Wait for so many routers."""
        self.controller.ready(ROUTER, count)

    def end(self) -> None:
        """Uninstall: each router leaves by itself, and has never been at a loss."""
        self.cluster.client.delete("deployments", self.namespace, ROUTER)
        until(lambda: not self.controller.pods(ROUTER), "the end of all routers")
        assert self.controller.kubelet.killed == []
        assert not [record for record in self.proxy.records if record.warnings], "the server knows all that is sent"
        for log in self.controller.kubelet.folder.glob(f"{ROUTER}-*.log"):
            assert "Traceback" not in log.read_text(), log.read_text()

    # What is seen of it.

    def pods(self) -> list[Object]:
        """The routers that clients are sent to, as a Service would."""
        return [pod for pod in self.controller.pods(ROUTER) if is_active(pod) and is_ready(pod)]

    def addresses(self) -> list[str]:
        """Theirs."""
        return [pod["status"]["podIP"] for pod in self.pods()]

    def leader(self) -> Object:
        """The router that scales, by its Lease; waits until there is one that lives."""
        found: list[Object] = []

        def known() -> bool:
            lease = self.cluster.client.find("leases", self.namespace, ROUTER)
            holder = (lease or {}).get("spec", {}).get("holderIdentity") or ""
            found[:] = [pod for pod in self.pods() if holder.startswith(pod["metadata"]["name"])]
            return bool(found)

        until(known, "a leader")
        return found[0]

    def metric(self, address: str, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        total = 0.0
        for line in get(address, ADMIN_PORT, "/metrics").body.decode().splitlines():
            sample, _, value = line.rpartition(" ")
            its_name, _, rest = sample.partition("{")
            if its_name == f"azureml_fe_{name}" and all(f'{key}="{text}"' in rest for key, text in labels.items()):
                total += float(value)
        return total

    def status(self, address: str) -> Mapping[str, Any]:
        """`/status.json` of one router."""
        found: Mapping[str, Any] = json.loads(get(address, ADMIN_PORT, "/status.json").body)
        return found

    def readiness(self, address: str) -> Answer:
        """What the kubelet is told by one router."""
        return get(address, ADMIN_PORT, "/readyz")

    # What it does.

    def score(self, service: str, body: bytes = b"[1]", key: str = "", address: str = "") -> Answer:
        """One request, by any router."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        where = address or self.addresses()[0]
        return get(where, PORT, f"/api/v1/service/{service}/score", body, headers)

    def scores(self, service: str, key: str = "", status: int = 200, body: bytes = b"[1]") -> None:
        """Wait until every router answers so."""
        for address in self.addresses():
            until(functools.partial(self._answers, service, body, key, address, status), f"{status} of {service}")

    def _answers(self, service: str, body: bytes, key: str, address: str, status: int) -> bool:
        return self.score(service, body, key=key, address=address).status == status

    def traffic(self, service: str, clients: int = 4, routers: Callable[[], list[str]] | None = None) -> Traffic:
        """Clients that ask again and again, one router after the other."""
        return Traffic(routers or self.addresses, PORT, f"/api/v1/service/{service}/score", clients)

    def log(self, pod: str) -> str:
        """What a router has said."""
        return (self.controller.kubelet.folder / f"{pod}.log").read_text()
