"""Builds the dynamic configuration of a router from its settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from router.config.router import RouterSettings
from router.config.schema import SettingsError
from router.dynamic.follower import DynamicConfig
from router.dynamic.last_valid import LastValidFile
from router.dynamic.source import FileSource, Source

if TYPE_CHECKING:
    from router.cluster.kubernetes.client import ApiClient
    from router.cluster.kubernetes.objects import NamespacedName
    from router.dynamic.config_map import LastValidConfigMap


class ClusterDynamicConfig(NamedTuple):
    """The dynamic configuration of a router in a pod, and its store for all pods."""

    config: DynamicConfig
    store: LastValidConfigMap


def make_cluster_dynamic_config(
    settings: RouterSettings, api: ApiClient, router: NamespacedName
) -> ClusterDynamicConfig | None:
    """Return the dynamic configuration of a router in a pod, None if it has none. `router` is the namespace of the
    router and its name. Raises `SettingsError`."""
    from router.cluster.kubernetes.access import SETTINGS_CONFIG_MAP
    from router.cluster.kubernetes.objects import NamespacedName, named_after
    from router.dynamic.config_map import ConfigMapSource, LastValidConfigMap

    source: Source
    if settings.dynamic_config_map is not None:
        source = ConfigMapSource(api, NamespacedName(router.namespace, settings.dynamic_config_map))
    elif (found := _source(settings)) is not None:
        source = found
    else:
        return None
    store = LastValidConfigMap(api, NamespacedName(router.namespace, named_after(router.name, SETTINGS_CONFIG_MAP)))
    return ClusterDynamicConfig(DynamicConfig(source, store, settings), store)


def make_local_dynamic_config(settings: RouterSettings) -> DynamicConfig | None:
    """Return the dynamic configuration of a router on this machine, None if it has none. Raises `SettingsError`."""
    if settings.dynamic_config_map is not None:
        problem = "not possible outside of a Kubernetes cluster"
        raise SettingsError("dynamic_config_map", settings.dynamic_config_map, problem)
    source = _source(settings)
    if source is None:
        return None
    return DynamicConfig(source, LastValidFile(settings.state_dir, source.name), settings)


def _source(settings: RouterSettings) -> Source | None:
    """Return the source that does not depend on a cluster, None if there is none. Raises `SettingsError`."""
    if settings.dynamic_config_blob is not None:
        from router.dynamic.blob import BlobSource

        return BlobSource(settings.dynamic_config_blob, settings)
    return FileSource(Path(settings.dynamic_config_file)) if settings.dynamic_config_file is not None else None
