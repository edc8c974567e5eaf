"""Plays the kubelet: a pod on its node is a process on an address of its own, until its grace is over.

The container's `command` and `args` are what is run, with `env` as Kubernetes resolves it: values, `$(NAME)`, and the
fields `metadata.name`, `metadata.namespace` and `status.podIP`. Volumes of ConfigMaps, Secrets and nothing are folders;
where the container names a path in one of them, it gets that of the folder. It honours readiness probes (httpGet),
`preStop` and the grace period, and a process that has ended is started again.
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

from tests.kubernetes.client import Client
from tests.kubernetes.cluster import running_status
from tests.kubernetes.double.resources import Object
from tests.kubernetes.double.running import ROOT
from tests.kubernetes.follower import Follower

_LOOK_SECONDS = 0.02
_RESTART_SECONDS = 0.2
# From the word that a pod is to end to the signal. A kubelet needs as long to reach its container runtime, while others
# that watch pods hear of it; the tests' one may hear before all others, as it may be who has deleted the pod.
_STOP_SECONDS = 0.1


class Running:
    """The life of one pod on its node, in a thread of its own."""

    def __init__(self, kubelet: "Kubelet", pod: Object, address: str) -> None:
        self.name: str = pod["metadata"]["name"]
        self.uid: str = pod["metadata"]["uid"]
        self.address = address
        self.process: subprocess.Popen[bytes] | None = None
        self.grace: float | None = None  # seconds, once it is to end
        self._kubelet = kubelet
        self._pod = pod
        self._container: Object = pod["spec"]["containers"][0]
        self._restarts = 0
        self._ending = threading.Event()
        self.thread = threading.Thread(target=self._live, daemon=True)

    def end(self, grace: float) -> None:
        """Its pod is being deleted."""
        if self.grace is None:
            self.grace = grace
            self._ending.set()

    def kill_process(self) -> None:
        """As the kernel does when memory runs out; the kubelet starts it again."""
        assert self.process is not None
        self.process.kill()

    def kill(self) -> None:
        """At once, whatever its grace: the test is over."""
        self.end(0.0)
        if self.process:
            self.process.kill()
        self.thread.join()

    def _live(self) -> None:
        try:
            while not self._ending.is_set():
                self._start()
                if self._until_ready():
                    self._say(ready=True)
                while not self._ending.wait(_LOOK_SECONDS * 5) and self._runs():
                    pass
                if not self._ending.is_set():
                    self._restarts += 1
                    self._say(ready=False)
                    self._ending.wait(_RESTART_SECONDS)
            self._end()
        except Exception as error:
            self._kubelet.errors.append(f"{self.name}: {error!r}")
            raise
        finally:
            self._kubelet.client.close()

    def _runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _start(self) -> None:
        mounts = self._mounts()
        environment = self._environment(mounts)
        image = self._container["image"].rpartition(":")[0]
        given = [*self._container.get("command", []), *self._container.get("args", [])]
        # An image's program is this machine's, where a path below a mount is what it says.
        program = [] if "command" in self._container else self._kubelet.programs.get(image, [])
        words = [*program, *(_resolved(word, environment, mounts) for word in given)]
        with (self._kubelet.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                words, env=environment, cwd=self._kubelet.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._say(ready=False)

    def _mounts(self) -> dict[str, str]:
        """The folder of each path at which the container has a volume."""
        folders = {}
        for volume in self._pod["spec"].get("volumes") or []:
            folder = self._kubelet.folder / self.name / volume["name"]
            folder.mkdir(parents=True, exist_ok=True)
            folders[volume["name"]] = str(folder)
            for name, content in self._kubelet.content_of(self._pod["metadata"]["namespace"], volume).items():
                (folder / name).write_bytes(content)
        return {mount["mountPath"]: folders[mount["name"]] for mount in self._container.get("volumeMounts") or []}

    def _environment(self, mounts: Mapping[str, str]) -> dict[str, str]:
        fields = {
            "metadata.name": self.name,
            "metadata.namespace": self._pod["metadata"]["namespace"],
            "status.podIP": self.address,
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        found = {"PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "POD_IP": self.address}
        if self._kubelet.kubeconfig_of is not None:
            # Admission fills in an account; a server may run without that.
            account = self._pod["spec"].get("serviceAccountName", "default")
            found["KUBECONFIG"] = str(self._kubelet.kubeconfig_of(account))
        for entry in self._container.get("env") or []:
            if "value" in entry:
                found[entry["name"]] = _resolved(entry["value"], found, mounts)
            else:
                found[entry["name"]] = fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        return found

    def _until_ready(self) -> bool:
        probe: Mapping[str, object] = (self._container.get("readinessProbe") or {}).get("httpGet") or {}
        named = {each.get("name"): each["containerPort"] for each in self._container.get("ports") or []}
        port, path = probe.get("port", 5001), str(probe.get("path", "/"))
        port = int(str(named.get(port, port)))
        while not self._ending.wait(_LOOK_SECONDS) and self._runs():
            connection = http.client.HTTPConnection(self.address, port, timeout=2)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", path)
                if connection.getresponse().status < 400:
                    connection.close()
                    return True
            connection.close()
        return False

    def _say(self, ready: bool) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        status = running_status(self._container, self.address, ready, now)
        status["containerStatuses"][0]["restartCount"] = self._restarts
        self._kubelet.say(self.name, status)

    def _end(self) -> None:
        assert self.grace is not None
        deadline = time.monotonic() + self.grace
        hook = (self._container.get("lifecycle") or {}).get("preStop") or {}
        if self.process:
            if self._runs():
                time.sleep(min(_STOP_SECONDS, self.grace))
            with contextlib.suppress(subprocess.TimeoutExpired):
                if "sleep" in hook:
                    self.process.wait(min(hook["sleep"]["seconds"], self.grace))
                elif "exec" in hook:
                    subprocess.run(hook["exec"]["command"], timeout=self.grace, check=False)
            self.process.terminate()
            try:
                self.process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                self._kubelet.killed.append(self.name)
                self.process.kill()
                self.process.wait()
        self._kubelet.gone(self.name)


class Kubelet:
    """Runs the pods of one namespace. `killed` names those whose grace was too short.

    `programs` are what images run that name no command; `kubeconfig_of` makes a kubeconfig with a fresh token of a
    service account, which a container finds by `$(KUBECONFIG)`.
    """

    def __init__(self, client: Client, namespace: str, pods: Follower, folder: Path, network: str) -> None:
        self.client = client
        self.folder = folder
        self.killed: list[str] = []
        self.errors: list[str] = []
        self.programs: dict[str, list[str]] = {}
        self.kubeconfig_of: Callable[[str], Path] | None = None
        self._namespace = namespace
        self._pods = pods
        self._network = network
        self._count = 0
        self._running: dict[str, Running] = {}  # by uid

    def reconcile(self) -> None:
        """Start what is new, end what is being deleted or is gone."""
        there = {pod["metadata"]["uid"]: pod for pod in self._pods.all()}
        for uid, pod in there.items():
            life = self._running.get(uid)
            if life is None and pod["spec"].get("nodeName") and "deletionTimestamp" not in pod["metadata"]:
                self._begin(pod)
            elif life is not None and "deletionTimestamp" in pod["metadata"]:
                life.end(pod["metadata"]["deletionGracePeriodSeconds"])
            elif life is None and "deletionTimestamp" in pod["metadata"]:
                self.gone(pod["metadata"]["name"])
        for uid, life in list(self._running.items()):
            if uid not in there:
                life.end(0.0)
                del self._running[uid]

    def _begin(self, pod: Object) -> None:
        self._count += 1
        assert self._count < 250, "one network has 250 addresses"
        life = self._running[pod["metadata"]["uid"]] = Running(self, pod, f"{self._network}.{self._count}")
        life.thread.start()

    def content_of(self, namespace: str, volume: Object) -> dict[str, bytes]:
        """The files of a volume."""
        if "configMap" in volume:
            data = self.client.get("configmaps", namespace, volume["configMap"]["name"]).get("data") or {}
            return {name: text.encode() for name, text in data.items()}
        if "secret" in volume:
            data = self.client.get("secrets", namespace, volume["secret"]["secretName"]).get("data") or {}
            return {name: base64.b64decode(text) for name, text in data.items()}
        return {}

    def life(self, name: str) -> Running:
        """That of a pod."""
        return next(life for life in self._running.values() if life.name == name)

    def say(self, name: str, status: Object) -> None:
        """Write a pod's status, if it is still there. What its container was given since it began stays."""
        known = self._pods.get(name)
        for own in (known or {}).get("status", {}).get("containerStatuses") or []:
            status["containerStatuses"][0]["resources"] = own.get("resources", {})
        reply = self.client.ask("PATCH", _path(self._namespace, name, "status"), {"status": status}, _MERGE)
        if reply.status == 200:
            self._pods.note(reply.body)

    def gone(self, name: str) -> None:
        """A pod's processes have ended: remove it."""
        reply = self.client.delete("pods", self._namespace, name, gracePeriodSeconds=0)
        if reply.status == 200:
            self._pods.forget(reply.body)

    def stop(self) -> None:
        """Kill all."""
        for life in list(self._running.values()):
            life.kill()


def _resolved(text: str, environment: Mapping[str, str], mounts: Mapping[str, str]) -> str:
    """With variables filled in, and paths in volumes as those of their folders."""
    for path, folder in mounts.items():
        if text == path or text.startswith(f"{path}/"):
            text = folder + text.removeprefix(path)
            break
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)


_MERGE = "application/merge-patch+json"


def _path(namespace: str, name: str, sub: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{name}/{sub}"
