"""Settings in the annotations of a Deployment: `azureml-fe/scoring-timeout-ms` is `scoring_timeout_ms`. No I/O.

Names, types and limits are those of the local configuration file, and `parse_service` checks both. A file with
an error is not used. This parser returns all errors, and the valid settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from router.cluster.kubernetes.objects import ANNOTATION_PREFIX, Labels
from router.config.kubernetes_settings import MODES
from router.config.schema import Setting, SettingKind, SettingsError, parse_value
from router.config.service import parse_service
from router.config.service_settings import (
    POD_TEMPLATE_SETTINGS,
    SECRET_SETTINGS,
    SERVICE_SETTINGS,
    VERSION_SETTINGS,
)
from router.config.unknown import unknown_setting
from router.model.services import DEFAULT_VERSION_NAME

_DNS_LABEL: dict[str, Any] = {
    "pattern": r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?",
    "pattern_text": "1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
}

DEFAULT_PORT = 5001
"""The port of Azure's inference server."""

DEPLOYMENT_SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="mode",
        kind=SettingKind.TEXT,
        description="`normal`, or `observe`: the router follows the service of this Deployment, but neither scales it "
        "nor serves requests, except tests (header `azureml-fe-test: true`).",
        default_text="`mode` of the router",
        choices=MODES,
    ),
    Setting(
        name="service",
        kind=SettingKind.TEXT,
        description="Name of the service of this Deployment, if it is not the value of its label `azuremlappname`.",
        default_text="its label `azuremlappname`",
        **_DNS_LABEL,
    ),
    Setting(
        name="version",
        kind=SettingKind.TEXT,
        description="Name of the version of this Deployment.",
        default=DEFAULT_VERSION_NAME,
        **_DNS_LABEL,
    ),
    Setting(
        name="port",
        kind=SettingKind.INT,
        description="Port at which the pods accept requests.",
        default=DEFAULT_PORT,
        minimum=1,
        maximum=65535,
    ),
    Setting(
        name="keys_secret",
        kind=SettingKind.TEXT,
        description="Name of a Secret in the same namespace with the label `isazuremlapp=true`. Its `primaryKey` and "
        "`secondaryKey` are the service's keys.",
        default_text="`azureml-fe-keys-` and the service's name",
        pattern=r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?",
        pattern_text="the name of a Secret",
    ),
    Setting(
        name="scaling_paused_until",
        kind=SettingKind.TEXT,
        description="The router does not change the number of replicas of this Deployment before this time.",
        pattern=r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)",
        pattern_text="a date and time with its offset, such as 2030-01-31T18:00Z",
    ),
)

_DEPLOYMENT_SETTINGS = {setting.name: setting for setting in DEPLOYMENT_SETTINGS}
_SERVICE_SETTINGS = {setting.name for setting in SERVICE_SETTINGS}
_SHARED_SETTINGS = {setting.name for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS)} - {
    *SECRET_SETTINGS,
    *POD_TEMPLATE_SETTINGS,
}


PROBE_PATHS = ("readiness_path", "liveness_path")
"""Settings of the launch of local replicas that are in the Deployment's pod template in Kubernetes."""


@dataclass(frozen=True, slots=True)
class ParsedAnnotations:
    """The valid annotations of a Deployment. The keys of the two mappings are setting names."""

    version: str = DEFAULT_VERSION_NAME
    port: int = DEFAULT_PORT
    mode: str | None = None
    keys_secret: str | None = None
    scaling_paused_until: datetime | None = None
    service_settings: Mapping[str, str] = field(default_factory=dict)
    version_settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the version and of its service together."""
        return {**self.version_settings, **self.service_settings}


def is_scaling_setting(name: str) -> bool:
    """True if a setting determines the number of replicas, or whether the router changes it."""
    return name in ("num_replicas", "scaling_paused_until") or name.startswith("autoscale_")


def annotation_name(setting: str) -> str:
    """Return the annotation of a setting."""
    return ANNOTATION_PREFIX + setting.replace("_", "-")


def setting_name(annotation: str) -> str:
    """Return the setting of an annotation, with or without its prefix."""
    return annotation.removeprefix(ANNOTATION_PREFIX).replace("-", "_")


def parse_annotations(service: str, annotations: Labels) -> tuple[ParsedAnnotations, tuple[SettingsError, ...]]:
    """Return the valid settings, and an error for each invalid annotation. The names in `annotations` have no prefix.
    The errors name annotations, not settings."""
    errors: list[SettingsError] = []
    own: dict[str, Any] = {}
    shared: dict[str, str] = {}
    for annotation, text in annotations:
        name = setting_name(annotation)
        try:
            if annotation != name.replace("_", "-"):
                raise _unknown(annotation)
            if name in _DEPLOYMENT_SETTINGS:
                own[name] = _parse_own(_DEPLOYMENT_SETTINGS[name], text)
                own.pop("service", None)  # the assembler's caller has selected the Deployments by it
            else:
                _check_is_allowed(name, annotation)
                shared[name] = text
        except SettingsError as error:
            errors.append(_naming_annotation(error))
    while (invalid := _first_error(service, shared)) is not None:
        errors.append(_naming_annotation(invalid))
        shared.pop(invalid.setting, None)
    return (
        ParsedAnnotations(
            service_settings={name: text for name, text in shared.items() if name in _SERVICE_SETTINGS},
            version_settings={name: text for name, text in shared.items() if name not in _SERVICE_SETTINGS},
            **own,
        ),
        tuple(errors),
    )


def format_annotations(parsed: ParsedAnnotations) -> dict[str, str]:
    """Return the annotations, without their prefix, that `parse_annotations` parses to these settings."""
    own = {
        "version": parsed.version,
        "port": str(parsed.port),
        "mode": parsed.mode,
        "keys_secret": parsed.keys_secret,
        "scaling_paused_until": parsed.scaling_paused_until.isoformat() if parsed.scaling_paused_until else None,
    }
    given = {name: text for name, text in own.items() if text is not None} | parsed.settings
    return {name.replace("_", "-"): text for name, text in given.items()}


def _parse_own(setting: Setting, text: str) -> Any:
    value = parse_value(setting, text)
    if setting.name != "scaling_paused_until":
        return value
    try:
        return datetime.fromisoformat(value)
    except ValueError:  # such as February 30
        raise SettingsError(setting.name, text, setting.rule) from None


def _first_error(service: str, settings: Mapping[str, str]) -> SettingsError | None:
    try:
        parse_service(service, service_document({DEFAULT_VERSION_NAME: settings}))
    except SettingsError as error:
        if error.setting in settings:
            return error
        raise
    return None


def service_document(versions: Mapping[str, Mapping[str, str]]) -> dict[str, object]:
    """Return the argument of `parse_service` for the settings of each version, which may contain service settings."""
    of_service = {
        name: text for settings in versions.values() for name, text in settings.items() if name in _SERVICE_SETTINGS
    }
    of_versions = {
        version: {name: text for name, text in settings.items() if name not in _SERVICE_SETTINGS}
        for version, settings in versions.items()
    }
    return {**of_service, "versions": of_versions}


def _check_is_allowed(name: str, annotation: str) -> None:
    if name in SECRET_SETTINGS:
        problem = f"must be in a Secret, which {annotation_name('keys_secret')} can name"
        raise SettingsError(name, None, problem)
    if name in (*POD_TEMPLATE_SETTINGS, *PROBE_PATHS):
        raise SettingsError(name, None, "must be in the Deployment's pod template, as a resource or probe")
    if name not in _SHARED_SETTINGS:
        raise _unknown(annotation)


def _unknown(annotation: str) -> SettingsError:
    error = unknown_setting(annotation, {*_SHARED_SETTINGS, *_DEPLOYMENT_SETTINGS}, spell=annotation_name)
    return SettingsError(ANNOTATION_PREFIX + annotation, None, error.problem)


def _naming_annotation(error: SettingsError) -> SettingsError:
    name = error.setting if error.setting.startswith(ANNOTATION_PREFIX) else annotation_name(error.setting)
    return SettingsError(name, error.value, error.problem)
