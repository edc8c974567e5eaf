"""`azureml-fe check FILE...`: checks a configuration file, or files of Azure ML, and the programs, certificates and
addresses in them.

Does not contain: the rules of the file (`cluster.local.config_file`). It starts no replica and changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from router.cluster.local.config_file import LocalConfig
from router.cluster.local.key_warnings import key_warnings
from router.cluster.local.probe import probe
from router.cluster.local.program import check_program_runs, check_server_installed
from router.cluster.local.service_files import ServiceFiles
from router.cluster.local.summary import config_summary
from router.collection.stores import check_store
from router.config.router import RouterSettings, load_settings
from router.config.schema import ErrorCollector, SettingsError
from router.net.address import host_port
from router.net.certificate_files import server_certificate_files
from router.net.certificate_reloader import CertificateReloader
from router.peers.tls import peer_tls
from router.telemetry.exporters import ExportTargets, span_exporter
from router.workers.listeners import check_client_listeners


def check_local(files: ServiceFiles, environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return two lists of lines: a summary of the files; and warnings about keys, about addresses of replicas that do
    not respond now, and about keys of Azure ML's files that have no effect.

    A warning is not an error of the files. Raises SettingsError for all faults that would prevent the router or a
    replica from running. Faults of programs and certificates are looked for only if the file itself has none.
    """
    config = files.load(environ=environ)
    errors = ErrorCollector()
    for key, launch in config.launches.items():
        with errors.collect():
            check_server_installed(key, launch)
            check_program_runs(key, launch)
    settings = load_settings(environ=environ, file=config.router)
    check_router(settings, environ, errors)
    errors.raise_errors(config.router.locations)
    keys = {each.name: (each.primary_key, each.secondary_key) for each in config.services.values() if each.uses_keys}
    warnings = [*config.losses, *key_warnings(keys), *_ignored_percentiles(config)]
    warnings += _app_insights_warnings(config, ExportTargets(settings, environ))
    return config_summary(config), warnings + asyncio.run(_unresponsive_addresses(config))


def check_router(settings: RouterSettings, environ: Mapping[str, str], errors: ErrorCollector) -> None:
    """Check what the settings of the router name: listeners, certificates, exporters, the store
    for collected data. Collects errors."""
    now = time.time()
    with errors.collect():
        check_client_listeners(settings)
    with errors.collect():
        if (files := server_certificate_files(settings)) is not None:
            CertificateReloader(files, now)
    with errors.collect():
        peer_tls(settings, now)
    with errors.collect():
        ExportTargets(settings, environ).check()
    with errors.collect():
        check_store(settings, environ)


def _ignored_percentiles(config: LocalConfig) -> list[str]:
    """Return a line for each default version with a `traffic_percentile`, which has no effect."""
    return [
        f"service {service.name}, version {service.default_version.name}: traffic_percentile has no effect, as this is "
        "the default version, which gets the rest of the traffic"
        for service in config.services.values()
        if service.default_version.traffic_percentile
    ]


def _app_insights_warnings(config: LocalConfig, targets: ExportTargets) -> list[str]:
    """Return a line if versions use Application Insights, and it cannot get their requests."""
    if any(version.enable_app_insights for service in config.services.values() for version in service.versions):
        try:
            span_exporter(targets.app_insights).shutdown()
        except SettingsError as error:
            return [f"Application Insights gets no requests: {error}"]
    return []


async def _unresponsive_addresses(config: LocalConfig) -> list[str]:
    """Probe all fixed addresses once. Return a line for each one that is not ready."""
    replicas = [
        (service.name, version, launch.readiness_path, host, port)
        for service in config.services.values()
        for version in service.versions
        for launch in (config.launches[service.name, version.name],)
        for host, port in launch.addresses
    ]
    failures = await asyncio.gather(
        *(probe(host, port, path, version.readiness_timeout_seconds) for _, version, path, host, port in replicas)
    )
    return [
        f"service {name}, version {version.name}: {host_port(host, port)} does not respond to GET {path} now: "
        f"{failure.reason}"
        for (name, version, path, host, port), failure in zip(replicas, failures, strict=True)
        if failure is not None
    ]
