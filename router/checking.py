"""Whether what a local file sets up could run here: what `check FILE` says beyond the file's own rules.

Lives here: the look at what a file refers to: programs, certificates, ways for clients to connect, addresses of
replicas. Must not live here: the rules of the file (`cluster.local`); anything that starts or changes something.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from router.authority import authority
from router.certificates import Certificates, server_files
from router.cluster.local.file import LocalConfig, load_local
from router.cluster.local.probe import probe
from router.cluster.local.program import check_can_run, check_program
from router.cluster.local.summary import summary
from router.peer_tls import peer_tls
from router.ports import check_ports
from router.settings import load_settings


def check_local(path: Path, environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What a local file sets up, and what does not answer right now, which may be no fault of the file: lines for
    people. Raises `SettingsError` for whatever would keep it, or one of its replicas, from running."""
    config = load_local(path, environ=environ)
    for key, launch in config.launches.items():
        check_can_run(key, launch)
        check_program(key, launch)
    settings = load_settings(environ=environ, file=config.router)
    check_ports(settings)
    now = time.time()
    if (files := server_files(settings)) is not None:
        Certificates(files, now)
    peer_tls(settings, now)
    return summary(config), asyncio.run(_silent(config))


async def _silent(config: LocalConfig) -> list[str]:
    """Addresses that are not ready now."""
    places = [
        (service.name, version, launch.readiness_path, host, port)
        for service in config.services.values()
        for version in service.versions
        for launch in (config.launches[service.name, version.name],)
        for host, port in launch.addresses
    ]
    answers = await asyncio.gather(
        *(probe(host, port, path, version.timeout_seconds) for _, version, path, host, port in places)
    )
    return [
        f"service {name}, version {version.name}: {authority(host, port)} does not answer GET {path} now: {reason}"
        for (name, version, path, host, port), reason in zip(places, answers, strict=True)
        if reason is not None
    ]
