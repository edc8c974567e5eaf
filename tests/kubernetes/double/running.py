"""A double as a process of its own: how it is started, and the kubeconfig by which it is reached."""

import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.kubernetes.double.resources import Object

ROOT = Path(__file__).parents[3]


def kubeconfig(
    url: str, authority: bytes, token: str = "", namespace: str = "default", certificate: bytes = b"", key: bytes = b""
) -> Object:
    """A kubeconfig of one server and one user, who has a token or a certificate."""
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


@contextlib.contextmanager
def running(folder: Path, *flags: str) -> Iterator[Path]:
    """A double in a process; the kubeconfig of its master. It ends with this process, whatever becomes of that."""
    file = folder / "kubeconfig"
    words = [sys.executable, "-m", "tests.kubernetes.double", "--kubeconfig", str(file), "--until-stdin-ends", *flags]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("serves "), f"the double did not start: {said}"
        try:
            yield file
        finally:
            process.communicate()


def write(file: Path, config: Object) -> None:
    """JSON is YAML."""
    file.write_text(json.dumps(config, indent=1))
