"""The API server stand-in as its own process, and kubeconfig files."""

import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.kube_standin.api_server.resources import Object

ROOT = Path(__file__).parents[3]


def kubeconfig(
    url: str, authority: bytes, token: str = "", namespace: str = "default", certificate: bytes = b"", key: bytes = b""
) -> Object:
    """Return a kubeconfig of one server and one user with a token or a client certificate."""
    user = {"token": token} if token else {}
    for name, data in (("certificate", certificate), ("key", key)):
        if data:
            user[f"client-{name}-data"] = base64.b64encode(data).decode()
    cluster = {"server": url, "certificate-authority-data": base64.b64encode(authority).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user", "namespace": namespace}}],
        "current-context": "context",
    }


def write_config(file: Path, config: Object) -> None:
    """Write a kubeconfig as JSON, which is valid YAML."""
    file.write_text(json.dumps(config, indent=1))


@contextlib.contextmanager
def running_api_server(directory: Path, *flags: str) -> Iterator[Path]:
    """Run an API server stand-in inside the `with` block. Yield the kubeconfig of its administrator.

    The server ends with this process, even if this process is killed.
    """
    file = directory / "kubeconfig"
    command = [sys.executable, "-m", "tests.kube_standin.api_server", "--kubeconfig", str(file)]
    command += ["--until-stdin-ends", *flags]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serves "), f"the API server stand-in did not start: {line}"
        try:
            yield file
        finally:
            process.communicate()
