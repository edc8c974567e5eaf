"""The annotations of one Deployment as settings: `azureml-fe/scoring-timeout-ms` is `scoring_timeout_ms`. No I/O.

Names, kinds and limits are those of the local file, and so is the code that checks them (`services.parse_service`).
Lives here: what is different about annotations. Each fault is found, not only the first, and what is right is told even
where something else is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router.cluster.kubernetes.objects import ANNOTATION_PREFIX, Labels
from router.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.services import DEFAULT_VERSION_NAME, parse_service
from router.values import Kind, Scope, Setting, SettingsError, parse_value, unknown_name

_NAME: dict[str, Any] = {
    "pattern": r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?",
    "pattern_means": "1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
}

DEPLOYMENT_SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="version",
        kind=Kind.TEXT,
        scope=Scope.VERSION,
        about="The version that this Deployment is of the service that its label `azuremlappname` names.",
        default=DEFAULT_VERSION_NAME,
        **_NAME,
    ),
    Setting(
        name="port",
        kind=Kind.INT,
        scope=Scope.VERSION,
        about="Port of the pods that gets the requests.",
        default=5001,
        minimum=1,
        maximum=65535,
    ),
    Setting(
        name="keys_secret",
        kind=Kind.TEXT,
        scope=Scope.SERVICE,
        about="Secret of the same namespace, labelled `isazuremlapp=true`, whose `primaryKey` and `secondaryKey` are "
        "the service's keys.",
        default_means="`azureml-fe-keys-` and the service's name",
        pattern=r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?",
        pattern_means="the name of a Secret",
    ),
)

IN_THE_SECRET = ("primary_key", "secondary_key")
IN_THE_TEMPLATE = (
    "cpu_cores", "cpu_cores_limit", "memory_gb", "memory_gb_limit", "gpu_cores", "period_seconds",
    "initial_delay_seconds", "timeout_seconds", "success_threshold", "failure_threshold",
)  # fmt: skip
"""Settings that the local file has, and that a Deployment says in its pod template."""

_OWN = {setting.name: setting for setting in DEPLOYMENT_SETTINGS}
_SERVICE = {setting.name for setting in SERVICE_SETTINGS}
_SHARED = {setting.name for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS)} - {*IN_THE_SECRET, *IN_THE_TEMPLATE}


@dataclass(frozen=True, slots=True)
class Given:
    """What the annotations of a Deployment say, as far as it is right. `service` and `settings` by the SDK's names."""

    version: str = DEFAULT_VERSION_NAME
    port: int = 5001
    keys_secret: str | None = None
    service: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def scaling(self) -> Mapping[str, str]:
        """Those that say how many replicas there are."""
        return {name: text for name, text in self.settings.items() if is_about_scaling(name)}


def is_about_scaling(name: str) -> bool:
    """Whether a setting says how many replicas there are."""
    return name == "num_replicas" or name.startswith("autoscale_")


def annotation_name(name: str) -> str:
    """The annotation of a setting."""
    return ANNOTATION_PREFIX + name.replace("_", "-")


def read(service: str, annotations: Labels) -> tuple[Given, tuple[SettingsError, ...]]:
    """What `annotations` (names without their prefix) say, and what is wrong with them, in words of annotations."""
    faults: list[SettingsError] = []
    own: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for kebab, text in annotations:
        name = kebab.replace("-", "_")
        try:
            if kebab != name.replace("_", "-"):
                raise _unknown(kebab)
            if name in _OWN:
                own[name] = parse_value(_OWN[name], text)
            else:
                _check_known(name, kebab)
                texts[name] = text
        except SettingsError as error:
            faults.append(_in_annotations(error))
    while (fault := _fault(service, texts)) is not None:
        faults.append(_in_annotations(fault))
        texts.pop(fault.setting, None)
    return (
        Given(
            service={name: text for name, text in texts.items() if name in _SERVICE},
            settings={name: text for name, text in texts.items() if name not in _SERVICE},
            **own,
        ),
        tuple(faults),
    )


def _fault(service: str, texts: Mapping[str, str]) -> SettingsError | None:
    """The first fault of these settings, which is one of a setting among them."""
    try:
        parse_service(service, mapping_of({DEFAULT_VERSION_NAME: texts}))
    except SettingsError as error:
        if error.setting in texts:
            return error
        raise
    return None


def mapping_of(versions: Mapping[str, Mapping[str, str]]) -> dict[str, object]:
    """What `parse_service` takes, from the settings of each version, those of the service among them."""
    above = {name: text for texts in versions.values() for name, text in texts.items() if name in _SERVICE}
    own = {
        version: {name: text for name, text in texts.items() if name not in _SERVICE}
        for version, texts in versions.items()
    }
    return {**above, "versions": own}


def _check_known(name: str, kebab: str) -> None:
    if name in IN_THE_SECRET:
        allowed = f"belongs into a Secret, which {annotation_name('keys_secret')} may name"
        raise SettingsError(name, None, allowed)
    if name in IN_THE_TEMPLATE:
        raise SettingsError(name, None, "belongs into the Deployment's pod template: resources and probes")
    if name not in _SHARED:
        raise _unknown(kebab)


def _unknown(kebab: str) -> SettingsError:
    return unknown_name(ANNOTATION_PREFIX + kebab, map(annotation_name, {*_SHARED, *_OWN}))


def _in_annotations(error: SettingsError) -> SettingsError:
    name = error.setting if error.setting.startswith(ANNOTATION_PREFIX) else annotation_name(error.setting)
    return SettingsError(name, error.value, error.allowed)
