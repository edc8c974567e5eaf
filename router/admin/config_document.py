"""The document of `/config`: all settings in effect, with the source of each value. Secrets are hidden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.admin.effective_settings import DEFAULT_SOURCE, HIDDEN, json_value
from router.admin.overview import Overview
from router.config.dynamic import ServiceOverlay
from router.config.schema import Setting
from router.config.service import SettingPath
from router.config.service_settings import COMPATIBILITY_DEFAULTS, SERVICE_SETTINGS, VERSION_SETTINGS
from router.model.services import DEFAULT_VERSION_NAME, Service, Version

_NO_OVERLAY = ServiceOverlay()


def config_document(overview: Overview, service: str | None = None) -> dict[str, Any]:
    """Return the settings of the router, the state of the dynamic configuration, and the settings of one service.
    Raises KeyError if the service is unknown."""
    document: dict[str, Any] = {
        "router": overview.effective.document(),
        "dynamic_config": overview.dynamic.document() if overview.dynamic is not None else None,
    }
    if service is not None:
        document["service"] = _service_document(overview, overview.serving.services[service])
    return document


def _service_document(overview: Overview, service: Service) -> dict[str, Any]:
    services = overview.dynamic.settings.services if overview.dynamic is not None else {}
    overlay = services.get(service.name, _NO_OVERLAY)
    defaults = COMPATIBILITY_DEFAULTS[overview.effective.values.compatibility]
    given_in = overview.service_settings_source

    def entry(setting: Setting, of: Service | Version, path: SettingPath) -> dict[str, Any]:
        value = getattr(of, setting.name)
        is_default = value == defaults.get(setting.name, setting.default)
        shown = HIDDEN if setting.secret and value is not None else json_value(value)
        source = overlay.location(path) or (DEFAULT_SOURCE if is_default else given_in)
        return {"name": setting.name, "value": shown, "source": source}

    def path_of(version: Version) -> SettingPath:
        return () if version.name == DEFAULT_VERSION_NAME else ("versions", version.name)

    versions: Mapping[str, Any] = {
        version.name: [entry(setting, version, (*path_of(version), setting.name)) for setting in VERSION_SETTINGS]
        for version in service.versions
    }
    return {
        "name": service.name,
        "settings": [entry(setting, service, (setting.name,)) for setting in SERVICE_SETTINGS],
        "versions": versions,
    }
