"""What the image's environment is reduced to still works."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.image.slim import slim_kubernetes_client, strip_extensions

_LOAD = """
import asyncio, sys
from pathlib import Path
import kubernetes_asyncio
from router.cluster.kubernetes.credentials import load_credentials
credentials = asyncio.run(load_credentials(Path(sys.argv[1])))
print(kubernetes_asyncio.__file__, credentials.url, asyncio.run(credentials.headers())["Authorization"])
"""


ROOT = Path(__file__).parents[2]


def test_pinned_versions_are_those_that_the_package_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "deploy/image/constraints.txt").read_text().splitlines()
    pinned = {
        canonicalize_name(each.name): each.specifier
        for each in (Requirement(line) for line in lines if not line.startswith("#"))
    }
    extras = project["optional-dependencies"]
    for text in (*project["dependencies"], *extras["example"], *extras["otel"], *extras["azure-monitor"]):
        required = Requirement(text)
        (version,) = pinned[canonicalize_name(required.name)]
        assert required.specifier.contains(version.version, prereleases=True), text


def test_image_has_byte_code_of_all_processes() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "router").rglob("*.py"))
    spawned = set(re.findall(r"""\bspawn\(\s*"([\w.]+)\"""", sources))
    imported = re.search(r"\./python -O -c \"import ([^\"]+)\"", (ROOT / "Dockerfile").read_text())
    assert imported is not None
    assert len(spawned) >= 2
    assert spawned == set(imported[1].split(", "))


def directory_size(directory: Path) -> int:
    return sum(each.stat().st_size for each in directory.rglob("*") if each.is_file())


def site_packages_with(package: str, directory: Path) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    return directory


def test_kubeconfig_with_a_login_program_can_be_used_without_the_api_clients(tmp_path: Path) -> None:
    site_packages = site_packages_with("kubernetes_asyncio", tmp_path / "site")
    slim_kubernetes_client(site_packages)
    assert directory_size(site_packages) < 1_000_000
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "from-a-program"},
    }
    login = {"apiVersion": credential["apiVersion"], "command": "/bin/echo", "args": [json.dumps(credential)]}
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "it",
                "clusters": [{"name": "it", "cluster": {"server": "https://127.0.0.1:6443"}}],
                "users": [{"name": "it", "user": {"exec": login}}],
                "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, kubeconfig],
        env={"PYTHONPATH": f"{site_packages}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.split() == [
        str(site_packages / "kubernetes_asyncio/__init__.py"),
        "https://127.0.0.1:6443",
        "Bearer",
        "from-a-program",
    ]


@pytest.mark.needs("strip")
def test_stripped_event_loop_runs(tmp_path: Path) -> None:
    site_packages = site_packages_with("uvloop", tmp_path / "site")
    before = directory_size(site_packages)
    strip_extensions(tmp_path)
    assert directory_size(site_packages) < before / 2
    program = "import uvloop, asyncio; print(uvloop.__file__); uvloop.run(asyncio.sleep(0))"
    environ = {"PYTHONPATH": str(site_packages)}
    output = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, check=True).stdout
    assert output.decode().strip() == str(site_packages / "uvloop/__init__.py")
