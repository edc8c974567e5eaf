"""A kubelet: runs each pod of its node as a process on its own loopback address.

It runs the container's `command` and `args` with its `env`: values, `$(NAME)`, keys of Secrets, and the fields
`metadata.name`, `metadata.namespace` and `status.podIP`. Volumes of ConfigMaps, Secrets and empty directories are
directories, and paths below a mount are replaced by paths in the directory. It supports readiness probes (httpGet),
`preStop` and the grace period, and restarts processes that end.
"""

import base64
import contextlib
import http.client
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.kube_standin.api_server.process import ROOT
from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.client import MERGE, Client, path_of
from tests.kube_standin.cluster import running_pod_status
from tests.kube_standin.informer import Informer

_POLL_SECONDS = 0.02
_RESTART_SECONDS = 0.2
# From the deletion of a pod to SIGTERM. A real kubelet needs this long to reach its container runtime, and meanwhile
# other clients see the deletion. This kubelet could be first, because its process may have deleted the pod.
_STOP_DELAY_SECONDS = 0.1


class PodProcess:
    """One pod on its node, run by a thread."""

    def __init__(self, kubelet: "Kubelet", pod: Object, address: str) -> None:
        self.name: str = pod["metadata"]["name"]
        self.uid: str = pod["metadata"]["uid"]
        self.address = address
        self.process: subprocess.Popen[bytes] | None = None
        self.grace_seconds: float | None = None  # set when the pod is being deleted
        self._kubelet = kubelet
        self._pod = pod
        self._container: Object = pod["spec"]["containers"][0]
        self._restarts = 0
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def stop(self, grace_seconds: float) -> None:
        """Begin to stop, because the pod is being deleted."""
        if self.grace_seconds is None:
            self.grace_seconds = grace_seconds
            self._stopping.set()

    def crash(self) -> None:
        """Kill the process, as the kernel does when memory is short. The kubelet restarts it."""
        assert self.process is not None
        self.process.kill()

    def kill(self) -> None:
        """Kill the process without grace and wait for the thread: the test is over."""
        self.stop(0.0)
        if self.process:
            self.process.kill()
        self.thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._start()
                if self._wait_ready():
                    self._write_status(ready=True)
                while not self._stopping.wait(_POLL_SECONDS * 5) and self._is_running():
                    pass
                if not self._stopping.is_set():
                    self._restarts += 1
                    self._write_status(ready=False)
                    self._stopping.wait(_RESTART_SECONDS)
            self._terminate()
        except Exception as error:
            self._kubelet.errors.append(f"{self.name}: {error!r}")
            raise
        finally:
            self._kubelet.client.close()

    def _is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _start(self) -> None:
        mounts = self._mounts()
        environment = self._environment(mounts)
        image = self._container["image"].rpartition(":")[0]
        arguments = [*self._container.get("command", []), *self._container.get("args", [])]
        # The image's entrypoint has no paths below a mount.
        entrypoint = [] if "command" in self._container else self._kubelet.entrypoints.get(image, [])
        command = [*entrypoint, *(_expand(argument, environment, mounts) for argument in arguments)]
        with (self._kubelet.directory / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=self._kubelet.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._write_status(ready=False)

    def _mounts(self) -> dict[str, str]:
        """Write the volumes' files. Return the directory of each mount path."""
        directories = {}
        for volume in self._pod["spec"].get("volumes") or []:
            directory = self._kubelet.directory / self.name / volume["name"]
            directory.mkdir(parents=True, exist_ok=True)
            directories[volume["name"]] = str(directory)
            for name, content in self._kubelet.volume_files(self._pod["metadata"]["namespace"], volume).items():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (directory / name).write_bytes(content)
        return {mount["mountPath"]: directories[mount["name"]] for mount in self._container.get("volumeMounts") or []}

    def _environment(self, mounts: Mapping[str, str]) -> dict[str, str]:
        fields = {
            "metadata.name": self.name,
            "metadata.namespace": self._pod["metadata"]["namespace"],
            "status.podIP": self.address,
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {"PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "POD_IP": self.address}
        if self._kubelet.kubeconfig_of is not None:
            # An admission plugin sets the account. The server may run without it.
            account = self._pod["spec"].get("serviceAccountName", "default")
            environment["KUBECONFIG"] = str(self._kubelet.kubeconfig_of(account))
        for entry in self._container.get("env") or []:
            if "value" in entry:
                environment[entry["name"]] = _expand(entry["value"], environment, mounts)
            elif "secretKeyRef" in entry["valueFrom"]:
                reference = entry["valueFrom"]["secretKeyRef"]
                files = self._kubelet.volume_files(
                    fields["metadata.namespace"], {"secret": {"secretName": reference["name"]}}
                )
                environment[entry["name"]] = files[reference["key"]].decode()
            else:
                environment[entry["name"]] = fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        return environment

    def _wait_ready(self) -> bool:
        probe: Mapping[str, object] = (self._container.get("readinessProbe") or {}).get("httpGet") or {}
        ports = {each.get("name"): each["containerPort"] for each in self._container.get("ports") or []}
        port, path = probe.get("port", 5001), str(probe.get("path", "/"))
        port = int(str(ports.get(port, port)))
        while not self._stopping.wait(_POLL_SECONDS) and self._is_running():
            connection = http.client.HTTPConnection(self.address, port, timeout=2)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", path)
                if connection.getresponse().status < 400:
                    connection.close()
                    return True
            connection.close()
        return False

    def _write_status(self, ready: bool) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        status = running_pod_status(self._container, self.address, ready, now)
        status["containerStatuses"][0]["restartCount"] = self._restarts
        self._kubelet.write_status(self.name, status)

    def _terminate(self) -> None:
        assert self.grace_seconds is not None
        deadline = time.monotonic() + self.grace_seconds
        hook = (self._container.get("lifecycle") or {}).get("preStop") or {}
        if self.process:
            if self._is_running():
                time.sleep(min(_STOP_DELAY_SECONDS, self.grace_seconds))
            with contextlib.suppress(subprocess.TimeoutExpired):
                if "sleep" in hook:
                    self.process.wait(min(hook["sleep"]["seconds"], self.grace_seconds))
                elif "exec" in hook:
                    subprocess.run(hook["exec"]["command"], timeout=self.grace_seconds, check=False)
            self.process.terminate()
            try:
                self.process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                self._kubelet.killed.append(self.name)
                self.process.kill()
                self.process.wait()
        self._kubelet.remove_pod(self.name)


class Kubelet:
    """Runs the pods of one namespace. `killed` has the names of pods that outlived their grace period.

    `entrypoints` has those of images, for containers without a `command`. `kubeconfig_of` creates a kubeconfig
    with a new token of a service account, which containers find at `$(KUBECONFIG)`.
    """

    def __init__(self, client: Client, namespace: str, pods: Informer, directory: Path, network: str) -> None:
        self.client = client
        self.directory = directory
        self.killed: list[str] = []
        self.errors: list[str] = []
        self.entrypoints: dict[str, list[str]] = {}
        self.kubeconfig_of: Callable[[str], Path] | None = None
        self._namespace = namespace
        self._pods = pods
        self._network = network
        self._address_count = 0
        self._running: dict[str, PodProcess] = {}  # by uid

    def reconcile(self) -> None:
        """Start new pods, and stop those that are being deleted or were removed."""
        pods = {pod["metadata"]["uid"]: pod for pod in self._pods.all()}
        for uid, pod in pods.items():
            running = self._running.get(uid)
            if running is None and pod["spec"].get("nodeName") and "deletionTimestamp" not in pod["metadata"]:
                self._start(pod)
            elif running is not None and "deletionTimestamp" in pod["metadata"]:
                running.stop(pod["metadata"]["deletionGracePeriodSeconds"])
            elif running is None and "deletionTimestamp" in pod["metadata"]:
                self.remove_pod(pod["metadata"]["name"])
        for uid, running in list(self._running.items()):
            if uid not in pods:
                running.stop(0.0)
                del self._running[uid]

    def _start(self, pod: Object) -> None:
        self._address_count += 1
        assert self._address_count < 250, "one network has 250 addresses"
        running = PodProcess(self, pod, f"{self._network}.{self._address_count}")
        self._running[pod["metadata"]["uid"]] = running
        running.thread.start()

    def volume_files(self, namespace: str, volume: Object) -> dict[str, bytes]:
        """Return the files of a volume."""
        if "configMap" in volume:
            config_map = self.client.get("configmaps", namespace, volume["configMap"]["name"])
            files = {name: text.encode() for name, text in (config_map.get("data") or {}).items()}
            files |= {name: base64.b64decode(text) for name, text in (config_map.get("binaryData") or {}).items()}
            items = volume["configMap"].get("items")
            return files if items is None else {each["path"]: files[each["key"]] for each in items}
        if "secret" in volume:
            data = self.client.get("secrets", namespace, volume["secret"]["secretName"]).get("data") or {}
            return {name: base64.b64decode(text) for name, text in data.items()}
        return {}

    def pod_process(self, name: str) -> PodProcess:
        """Return the process of a pod."""
        return next(running for running in self._running.values() if running.name == name)

    def write_status(self, name: str, status: Object) -> None:
        """Write a pod's status if it still exists. Keep the resources that the status already has."""
        pod = self._pods.get(name)
        for container_status in (pod or {}).get("status", {}).get("containerStatuses") or []:
            status["containerStatuses"][0]["resources"] = container_status.get("resources", {})
        path = path_of("pods", self._namespace, name, "status")
        reply = self.client.request("PATCH", path, {"status": status}, MERGE)
        if reply.status == 200:
            self._pods.store(reply.body)

    def remove_pod(self, name: str) -> None:
        """Remove a pod whose processes have ended."""
        reply = self.client.delete("pods", self._namespace, name, gracePeriodSeconds=0)
        if reply.status == 200:
            self._pods.remove(reply.body)

    def stop(self) -> None:
        """Kill all processes."""
        for running in list(self._running.values()):
            running.kill()


def _expand(text: str, environment: Mapping[str, str], mounts: Mapping[str, str]) -> str:
    """Expand `$(NAME)`, and replace a path below a mount with the path in the volume's directory."""
    for path, directory in mounts.items():
        if text == path or text.startswith(f"{path}/"):
            text = directory + text.removeprefix(path)
            break
    return re.sub(r"\$\((\w+)\)", lambda match: environment.get(match[1], match[0]), text)
