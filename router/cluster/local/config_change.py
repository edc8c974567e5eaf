"""What a new configuration changes: services, versions and launch settings. No I/O.

Most changes of a file concern one of its services. So unchanged services are found by comparison, and nothing is done
about them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from router.cluster.local.key_store import KeyStore
from router.cluster.local.launch import LaunchSettings
from router.model.services import Service, Version, VersionKey

Launches = Mapping[VersionKey, LaunchSettings]


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """The difference between two configurations."""

    services: Mapping[str, Service]
    """All services of the new configuration."""
    changes_services: bool
    """True if a service was added, changed or removed."""
    versions: Mapping[VersionKey, Version | None]
    """The versions that were removed (None), then those that were added or have changed settings or launch settings."""


def with_keys(services: Mapping[str, Service], store: KeyStore) -> dict[str, Service]:
    """Return the services, with keys of the store for those without keys. Raises the errors of `KeyStore.keys_for`."""
    incomplete = [
        name
        for name, service in services.items()
        if service.uses_keys and not (service.primary_key and service.secondary_key)
    ]
    keys = store.keys_for(incomplete) if incomplete else {}
    return {
        name: replace(
            service,
            primary_key=service.primary_key or keys[name][0],
            secondary_key=service.secondary_key or keys[name][1],
        )
        if name in keys
        else service
        for name, service in services.items()
    }


def change_between(
    services_before: Mapping[str, Service],
    services: Mapping[str, Service],
    launches_before: Launches,
    launches: Launches,
) -> ConfigChange:
    """Return the change from one configuration to another. Its unchanged services are the objects of
    `services_before`."""
    same = {name for name, service in services.items() if services_before.get(name) == service}
    versions_before, versions = _versions_of(services_before), _versions_of(services)
    changed: dict[VersionKey, Version | None] = {key: None for key in versions_before if key not in versions}
    for key, version in versions.items():
        is_same = key[0] in same or versions_before.get(key) == version
        if not is_same or launches_before.get(key) != launches[key]:
            changed[key] = version
    return ConfigChange(
        {name: services_before[name] if name in same else service for name, service in services.items()},
        len(same) < max(len(services), len(services_before)),
        changed,
    )


def _versions_of(services: Mapping[str, Service]) -> dict[VersionKey, Version]:
    return {(service.name, version.name): version for service in services.values() for version in service.versions}
