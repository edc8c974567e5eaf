"""Removes from an installed environment what the router's image does not need.

    python deploy/image/slim.py /opt/azureml-fe

- Symbols of extension modules, with `strip` from binutils. Without them uvloop takes 2 MB instead of 16.
- The clients of the Kubernetes APIs in kubernetes-asyncio, 47 MB. The router only uses its reader of kubeconfig files.
"""

import shutil
import subprocess
import sys
from pathlib import Path

_NOTE = "# Reduced to what kubernetes_asyncio.config needs.\n"

_KUBERNETES_PACKAGES = {
    "__init__.py": "",
    "client/__init__.py": (
        "from kubernetes_asyncio.client.api_client import ApiClient\n"
        "from kubernetes_asyncio.client.configuration import Configuration\n"
    ),
    "client/models/__init__.py": "",
}
_UNUSED_KUBERNETES_PACKAGES = ("client/api", "client/models", "dynamic", "leaderelection", "stream", "utils", "watch")


def strip_extensions(environment: Path) -> None:
    """Remove the symbols of all extension modules. Raises `subprocess.CalledProcessError`.

    Shared libraries that wheels carry (`*.libs`) are left alone: their layout was patched, and strip may break it.
    """
    modules = [each for each in environment.rglob("*.so") if not each.parent.name.endswith(".libs")]
    if modules:
        subprocess.run(["strip", "--strip-unneeded", *modules], check=True)


def slim_kubernetes_client(site_packages: Path) -> None:
    """Remove the API clients of kubernetes-asyncio, but not its reader of kubeconfig files."""
    package = site_packages / "kubernetes_asyncio"
    for name in _UNUSED_KUBERNETES_PACKAGES:
        shutil.rmtree(package / name)
    for test in package.rglob("*test.py*"):
        test.unlink()
    for name, content in _KUBERNETES_PACKAGES.items():
        module = package / name
        module.parent.mkdir(exist_ok=True)
        module.write_text(_NOTE + content)


def main() -> None:
    """Reduce the environment in the argument."""
    environment = Path(sys.argv[1])
    strip_extensions(environment)
    for package in environment.glob("lib/python*/site-packages/kubernetes_asyncio"):
        slim_kubernetes_client(package.parent)


if __name__ == "__main__":
    main()
