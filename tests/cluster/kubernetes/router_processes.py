"""Routers as processes (`azureml-fe serve`) with the stand-in of an API server."""

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

from tests.cluster.kubernetes.roles import serving_rules
from tests.kube_standin.client import Access
from tests.kube_standin.cluster import ROUTER, Cluster
from tests.processes import Load, PendingRequest, Response, all_ended, descendants, send_request, wait_until
from tests.routers import router_environment

_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")

KEYS_SECRET = "azureml-fe-keys-iris"


class RouterProcess:
    """One router: its process, and its pod at the API server."""

    def __init__(
        self,
        cluster: Cluster,
        kubeconfig: Path,
        directory: Path,
        number: int,
        secret: Path,
        namespace: str,
        **settings: Any,
    ) -> None:
        self.namespace = namespace
        self.name = f"azureml-fe-{number}"
        self.ip = f"127.77.{secrets.randbelow(250) + 1}.{secrets.randbelow(250) + 1}"
        self._cluster = cluster
        self._log_file = directory / f"{self.name}.txt"
        variables = {
            "pod_name": self.name,
            "pod_namespace": namespace,
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
        labels = {"azuremlappname": settings.get("router_name", ROUTER)}
        cluster.create_pod(self.name, labels, self.ip, namespace=namespace)
        with self._log_file.open("w") as log_file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "router", "serve"],
                cwd=directory,
                env=router_environment()
                | {f"AZUREML_FE_{name.upper()}": str(value) for name, value in variables.items()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log_file,
                start_new_session=True,
            )
        self.port = self.admin_port = 0

    @property
    def log(self) -> str:
        """Its log so far."""
        return self._log_file.read_text()

    def log_lines(self, message: str) -> list[dict[str, Any]]:
        """Return the log lines with this message."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"] == message]

    def wait_until_ready(self) -> None:
        """Wait until it is ready."""
        wait_until(
            lambda: self.log_lines("serving") or self.process.poll() is not None, f"start of {self.name}: {self.log}"
        )
        assert self.process.poll() is None, self.log
        (line,) = self.log_lines("serving")
        self.port, self.admin_port = line["port"], line["admin_port"]
        wait_until(lambda: self.readiness().status == 200, "readiness")

    def readiness(self) -> Response:
        """Return the response to the kubelet's readiness probe."""
        return send_request(self.admin_port, "/readyz")

    def score(self, service: str, body: bytes = b"[1]", **headers: str) -> Response:
        """Send one request."""
        return send_request(self.port, f"/api/v1/service/{service}/score", body, **headers)

    def load(self, service: str, **options: Any) -> Load:
        """Return clients that send requests until they are stopped."""
        return Load(self.port, f"/api/v1/service/{service}/score", **options)

    def pending(self, service: str) -> PendingRequest:
        """Send a request and do not wait for its response."""
        return PendingRequest(self.port, f"/api/v1/service/{service}/score")

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels."""
        total = 0.0
        for line in send_request(self.admin_port, "/metrics").body.decode().splitlines():
            sample = None if line.startswith("#") else _SAMPLE.fullmatch(line)
            if sample is not None and sample[1] == f"azureml_fe_{name}":
                sample_labels = dict(re.findall(r'(\w+)="([^"]*)"', sample[2] or ""))
                if labels.items() <= sample_labels.items():
                    total += float(sample[3])
        return total

    @property
    def leads(self) -> bool:
        """True if it is the leader."""
        return self.metric("leader") == 1

    def kill(self) -> None:
        """Kill the supervisor, as if its node failed, and wait until all its processes have ended."""
        family = {self.process.pid, *descendants(self.process.pid)}
        self.process.kill()
        self.process.wait()
        wait_until(lambda: all_ended(family), "end of all processes")

    def stop(self) -> int:
        """Stop it as the kubelet does, and delete its pod. Return the exit code."""
        family = {self.process.pid, *descendants(self.process.pid)}
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(20)
        wait_until(lambda: all_ended(family), "end of all processes")
        self._cluster.client.delete("pods", self.namespace, self.name, gracePeriodSeconds=0)
        return code

    def close(self) -> None:
        """Stop it if it runs. Raise `AssertionError` if it does not exit cleanly."""
        if self.process.poll() is None:
            try:
                assert self.stop() == 0, self.log
            finally:
                if self.process.poll() is None:
                    self.process.kill()
                    self.process.wait()
        assert "Traceback" not in self.log, self.log


class RouterStarter:
    """Starts the routers of one release, which connect to each other. They serve the models of the cluster's
    namespace."""

    def __init__(
        self,
        cluster: Cluster,
        directory: Path,
        cleanup: contextlib.ExitStack,
        access: Access | None = None,
        namespace: str = "",
    ) -> None:
        """`namespace` is that of the routers, by default that of the models."""
        self._cluster = cluster
        self._namespace = namespace or cluster.namespace
        self._directory = directory
        self._cleanup = cleanup
        self._count = 0
        self._secret = directory / "peer-secret"
        self._secret.write_bytes(secrets.token_bytes(32))
        cluster.create_service_account(ROUTER)
        cluster.grant(ROUTER, serving_rules())
        if namespace:
            cluster.grant(ROUTER, serving_rules(), namespace)
        self._kubeconfig = cluster.write_kubeconfig(ROUTER, access)

    @property
    def release(self) -> str:
        """The name of the release."""
        return f"{self._namespace}/{ROUTER}"

    def start(self, *, ready: bool = True, **settings: Any) -> RouterProcess:
        """Start one more router. `ready`: wait until it is ready."""
        self._count += 1
        router = RouterProcess(
            self._cluster, self._kubeconfig, self._directory, self._count, self._secret, self._namespace, **settings
        )
        self._cleanup.callback(router.close)
        if ready:
            router.wait_until_ready()
        return router


@contextlib.contextmanager
def starting_routers(
    cluster: Cluster, directory: Path, access: Access | None = None, namespace: str = ""
) -> Iterator[RouterStarter]:
    """Yield a starter, and stop its routers at the end."""
    with contextlib.ExitStack() as cleanup:
        yield RouterStarter(cluster, directory, cleanup, access, namespace)


def deploy_model(
    cluster: Cluster, port: int, name: str = "iris", replicas: int = 1, *, namespace: str = "", **annotations: str
) -> None:
    """Create a model with one ready pod, which is a server at `port`. `annotations` have setting names."""
    settings = {"port": str(port), "auth_enabled": "false", **annotations}
    own = {f"azureml-fe/{setting.replace('_', '-')}": value for setting, value in settings.items()}
    cluster.create_deployment(name, replicas, annotations=own, namespace=namespace)
    cluster.create_model_pod(name, f"{name}-abc-1", "127.0.0.1", namespace=namespace)


def key_of_iris(cluster: Cluster, field: str = "primaryKey") -> str:
    """Return a key of the model `iris`."""
    data = cluster.client.get("secrets", cluster.namespace, KEYS_SECRET)["data"]
    return base64.b64decode(data[field]).decode()
