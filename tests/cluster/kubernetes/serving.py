"""`azureml-fe serve` as processes beside an API server, and the rights that it needs there."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from router.cluster.kubernetes.access import ACCESS
from tests.kubernetes.client import Access
from tests.kubernetes.cluster import ROUTER, Cluster
from tests.processes import Answer, Load, Pending, all_gone, ask, descendants, until
from tests.routers import environment

_METRIC = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")

SECRET = "azureml-fe-keys-iris"
OPEN = {"azureml-fe/auth-enabled": "false"}


def rules() -> list[dict[str, Any]]:
    """What `access` says, as rules of one namespace that is both the router's and the models'."""
    found = []
    for access in ACCESS:
        rule = {"apiGroups": [access.group], "resources": [access.resource], "verbs": list(access.verbs)}
        found.append(rule | ({"resourceNames": [access.name]} if access.name else {}))
    return found


class RouterPod:
    """One router: its process, and its pod as the API server knows it."""

    def __init__(
        self, cluster: Cluster, kubeconfig: Path, folder: Path, number: int, secret: Path, **settings: Any
    ) -> None:
        self.name = f"azureml-fe-{number}"
        self.ip = f"127.77.{secrets.randbelow(250) + 1}.{secrets.randbelow(250) + 1}"
        self._cluster = cluster
        self._errors = folder / f"{self.name}.txt"
        variables = {
            "pod_name": self.name,
            "pod_namespace": cluster.namespace,
            "namespaces": cluster.namespace,
            "pod_ip": self.ip,
            "host": "127.0.0.1",
            "port": 0,
            "admin_host": "127.0.0.1",
            "admin_port": 0,
            "peer_secret_file": secret,
            "kubeconfig": kubeconfig,
            "workers": 1,
            "drain_seconds": 20,
            **settings,
        }
        cluster.pod(self.name, {"azuremlappname": ROUTER})
        cluster.pod_runs(self.name, self.ip)
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "router", "serve"],
                cwd=folder,
                env=environment() | {f"AZUREML_FE_{name.upper()}": str(value) for name, value in variables.items()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        self.port = self.admin_port = 0

    @property
    def said(self) -> str:
        """All of its log so far."""
        return self._errors.read_text()

    def log(self, message: str) -> list[dict[str, Any]]:
        """The lines of its log with this message."""
        lines = [json.loads(line) for line in self.said.splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"] == message]

    def serves(self) -> None:
        """Wait until it is ready."""
        until(lambda: self.log("serving") or self.process.poll() is not None, f"start of {self.name}: {self.said}")
        assert self.process.poll() is None, self.said
        (line,) = self.log("serving")
        self.port, self.admin_port = line["port"], line["admin_port"]
        until(lambda: self.readiness().status == 200, "readiness")

    def readiness(self) -> Answer:
        """What the kubelet is told."""
        return ask(self.admin_port, "/readyz")

    def score(self, service: str, body: bytes = b"[1]", **headers: str) -> Answer:
        """One request."""
        return ask(self.port, f"/api/v1/service/{service}/score", body, **headers)

    def load(self, service: str, **options: Any) -> Load:
        """Clients that ask again and again."""
        return Load(self.port, f"/api/v1/service/{service}/score", **options)

    def pending(self, service: str) -> Pending:
        """A request under way."""
        return Pending(self.port, f"/api/v1/service/{service}/score")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        total = 0.0
        for line in ask(self.admin_port, "/metrics").body.decode().splitlines():
            found = None if line.startswith("#") else _METRIC.fullmatch(line)
            if found is not None and found[1] == f"azureml_fe_{name}":
                its = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
                if labels.items() <= its.items():
                    total += float(found[3])
        return total

    @property
    def leads(self) -> bool:
        """Whether it is the one that scales."""
        return self.metric("leader") == 1

    def kill(self) -> None:
        """As a node that dies."""
        family = {self.process.pid, *descendants(self.process.pid)}
        self.process.kill()
        self.process.wait()
        until(lambda: all_gone(family), "end of all processes")

    def stop(self) -> int:
        """As the kubelet ends a pod. The exit code."""
        family = {self.process.pid, *descendants(self.process.pid)}
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        until(lambda: all_gone(family), "end of all processes")
        self._cluster.client.delete("pods", self._cluster.namespace, self.name, gracePeriodSeconds=0)
        return code

    def end(self) -> None:
        """See that it ends as it should."""
        if self.process.poll() is None:
            try:
                assert self.stop() == 0, self.said
            finally:
                if self.process.poll() is None:
                    self.process.kill()
                    self.process.wait()
        assert "Traceback" not in self.said, self.said


class Routers:
    """Starts routers of one cluster, which find one another."""

    def __init__(
        self, cluster: Cluster, folder: Path, ends: contextlib.ExitStack, access: Access | None = None
    ) -> None:
        self._cluster = cluster
        self._folder = folder
        self._ends = ends
        self._count = 0
        self._secret = folder / "peer-secret"
        self._secret.write_bytes(secrets.token_bytes(32))
        cluster.account(ROUTER)
        cluster.allow(ROUTER, rules())
        self._kubeconfig = cluster.kubeconfig(ROUTER, access)

    def start(self, *, serving: bool = True, **settings: Any) -> RouterPod:
        """One more."""
        self._count += 1
        router = RouterPod(self._cluster, self._kubeconfig, self._folder, self._count, self._secret, **settings)
        self._ends.callback(router.end)
        if serving:
            router.serves()
        return router


@contextlib.contextmanager
def routers_in(cluster: Cluster, folder: Path, access: Access | None = None) -> Iterator[Routers]:
    """What starts routers, and sees to their end."""
    with contextlib.ExitStack() as ends:
        yield Routers(cluster, folder, ends, access)


def deploy(cluster: Cluster, port: int, name: str = "iris", replicas: int = 1, **annotations: str) -> None:
    """A model with one ready pod."""
    own = {f"azureml-fe/{key.replace('_', '-')}": value for key, value in annotations.items()}
    cluster.deployment(name, replicas, annotations={"azureml-fe/port": str(port), **OPEN, **own})
    cluster.model_pod(name, f"{name}-abc-1", "127.0.0.1")


def key(cluster: Cluster, field: str = "primaryKey") -> str:
    """A key of the model `iris`."""
    data = cluster.client.get("secrets", cluster.namespace, SECRET)["data"]
    return base64.b64decode(data[field]).decode()
