"""The summary of a configuration file for `azureml-fe check`. It has no keys and no arguments of commands."""

from collections.abc import Mapping

from router.auth.issuers import Issuer
from router.cluster.local.config_file import LocalConfig
from router.cluster.local.launch import LaunchSettings
from router.model.services import Service, Version
from router.net.address import host_port


def config_summary(config: LocalConfig) -> list[str]:
    """Return one line for each service, and one for each of its versions."""
    lines = []
    for service in config.services.values():
        lines.append(f"service {service.name}: {_authentication(service, config)}")
        for version, share in service.traffic_shares():
            launch = config.launches[service.name, version.name]
            parts = (f"{share} % of traffic", _scaling(version, launch), _concurrency(version), _launch_method(launch))
            lines.append(f"  version {version.name}: {'; '.join(parts)}")
    return lines


def router_file_summary(given: Mapping[str, object], issuers: Mapping[str, Issuer]) -> list[str]:
    """Return the summary of the file of `azureml-fe serve`, which has no services. It has names but no values of
    settings."""
    return [
        f"router in a cluster: sets {', '.join(sorted(given)) or 'nothing'}",
        *(f"token issuer {issuer.name}: {issuer.issuer}" for issuer in issuers.values()),
    ]


def _authentication(service: Service, config: LocalConfig) -> str:
    if service.token_auth_enabled:
        own = ["the router"] if config.router.get("token_issuing", True) else []
        issuers = own + [issuer.issuer for issuer in config.token_issuers.values() if issuer.serves(service.name)]
        return "tokens of " + (", ".join(issuers) or "no issuer")
    if not service.auth_enabled:
        return "no authentication"
    keys = (("primary", service.primary_key), ("secondary", service.secondary_key))
    return "keys (" + ", ".join(f"{name} {'given' if key else 'generated'}" for name, key in keys) + ")"


def _scaling(version: Version, launch: LaunchSettings) -> str:
    if launch.addresses:
        return f"{_replicas(len(launch.addresses))}, not scaled"
    if not version.autoscale_enabled:
        return f"{_replicas(version.num_replicas or 0)}, fixed"
    least, most = version.autoscale_min_replicas, version.autoscale_max_replicas
    return f"{least} to {most} replicas at {version.autoscale_target_utilization} % utilization"


def _replicas(count: int) -> str:
    return f"{count} replica{'' if count == 1 else 's'}"


def _concurrency(version: Version) -> str:
    limit = version.replica_max_concurrent_requests
    if not limit:
        return "any number of requests at a time each"
    return f"at most {limit} request{'s' if limit > 1 else ''} at a time each"


def _launch_method(launch: LaunchSettings) -> str:
    if launch.entry_script:
        return f"entry script {launch.entry_script}"
    if launch.command:
        return f"command {launch.command[0]}"
    return "at " + ", ".join(host_port(host, port) for host, port in launch.addresses)
