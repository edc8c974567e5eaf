"""Applies the settings of the dynamic configuration to the mapping of a service. No I/O."""

from collections.abc import Mapping
from typing import Any

from router.config.dynamic import ServiceOverlay, without_replaced_scaling
from router.model.services import DEFAULT_VERSION_NAME


def overlay_service(mapping: Mapping[str, Any], overlay: ServiceOverlay) -> dict[str, Any]:
    """Return the mapping of a service, as `parse_service` expects it, with the settings of the overlay.

    A setting of the overlay replaces that of the service and of each version. Versions that the service does not have
    are ignored. If the overlay makes a version the default, no other version is.
    """
    versions = mapping.get("versions")
    if "versions" not in mapping:
        own = overlay.of_version(DEFAULT_VERSION_NAME)
        return without_replaced_scaling(mapping, own) | dict(overlay.service) | own
    if not isinstance(versions, Mapping):
        return dict(mapping)
    replaces_default = any(
        settings.get("is_default") for name, settings in overlay.versions.items() if name in versions
    )
    return {
        **mapping,
        **overlay.service,
        "versions": {
            name: _overlay_version(values, overlay.of_version(name), replaces_default=replaces_default)
            if isinstance(values, Mapping)
            else values
            for name, values in versions.items()
        },
    }


def _overlay_version(values: Mapping[str, Any], own: Mapping[str, Any], *, replaces_default: bool) -> dict[str, Any]:
    kept = without_replaced_scaling(values, own)
    if replaces_default:
        kept.pop("is_default", None)
    return kept | dict(own)
