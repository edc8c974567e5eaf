"""Assembles one service from its Deployments, which are in one namespace. No I/O, no clock.

Rules for conflicts and errors:

- A version is one Deployment. If several claim it, the oldest gets it.
- If Deployments disagree on a setting of the service, the value of the oldest applies.
- The settings of the service in the dynamic configuration override annotations. If they contradict the annotations,
  those of this service are ignored.
- If a Deployment has invalid annotations, its last valid settings stay in effect. If it has never had any, its valid
  annotations apply. If one of the invalid annotations is about scaling then, the router does not scale the Deployment.
  If it is the mode, the router observes the service.

Each violation is a `Problem` of a Deployment.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from router.cluster.kubernetes.annotations import (
    ParsedAnnotations,
    annotation_name,
    is_scaling_setting,
    parse_annotations,
    service_document,
    setting_name,
)
from router.cluster.kubernetes.objects import Deployment, NamespacedName, name_of
from router.config.dynamic import ServiceOverlay
from router.config.overlay import overlay_service
from router.config.schema import SettingsError
from router.config.service import parse_service
from router.model.problems import Problem
from router.model.services import Service, Version, VersionKey

SETTINGS_REFUSED = "SettingsRefused"
"""The reason of a problem with the annotations of a Deployment."""
DYNAMIC_SETTINGS_REFUSED = "DynamicSettingsRefused"
"""The reason of a problem with the settings of a service in the dynamic configuration."""
KEYS_SECRET_PREFIX = "azureml-fe-keys-"  # noqa: S105  (a prefix of names)


@dataclass(frozen=True, slots=True)
class DeploymentProblem:
    """A problem of a Deployment. `reason` and `message` are those of its Event."""

    deployment: NamespacedName
    uid: str
    service: str
    reason: str
    message: str
    cause: str
    """What the problems of several Deployments have in common."""

    def to_problem(self) -> Problem:
        """Return the problem in the form of the status page."""
        return Problem(
            f"{self.reason}: {self.cause}",
            self.service,
            place=f"Deployment {self.deployment}",
            output="" if self.cause == self.message else self.message,
        )

    def __str__(self) -> str:
        return Problem(f"{self.reason}: {self.message}", self.service, place=f"Deployment {self.deployment}").line


def problem_of(
    deployment: Deployment, service: str, reason: str, message: str, *, cause: str = ""
) -> DeploymentProblem:
    """Return a problem of a Deployment. `cause` is needed if `message` has a name."""
    return DeploymentProblem(name_of(deployment), deployment.uid, service, reason, message, cause or message)


@dataclass(frozen=True, slots=True)
class ResolvedVersion:
    """One version and its Deployment. `is_scalable` is False while its scaling settings have never been valid.

    Before `scaling_paused_until` the router does not scale it.
    """

    key: VersionKey
    deployment: Deployment
    port: int
    is_scalable: bool
    scaling_paused_until: datetime | None


@dataclass(frozen=True, slots=True)
class ResolvedService:
    """One service, its versions, and the Secret that holds its keys."""

    service: Service
    versions: tuple[ResolvedVersion, ...]
    secret: NamespacedName
    mode: str | None
    """The annotation `azureml-fe/mode` of the oldest Deployment that has one; None if none has."""
    problems: tuple[DeploymentProblem, ...]
    valid_annotations: Mapping[str, ParsedAnnotations]
    """The annotations of the Deployments without problems, by uid."""

    @property
    def lacks_keys(self) -> bool:
        """True if clients must send a key and there is none."""
        return self.service.uses_keys and not (self.service.primary_key or self.service.secondary_key)


class _Candidate(NamedTuple):
    """A Deployment and those of its annotations that apply."""

    deployment: Deployment
    annotations: ParsedAnnotations


class ServiceAssembler:
    """Assembles one service. Use it once."""

    def __init__(
        self,
        name: str,
        deployments: Sequence[Deployment],
        last_valid: Mapping[str, ParsedAnnotations],
        defaults: Mapping[str, object],
        overlay: ServiceOverlay | None = None,
    ) -> None:
        """`deployments` are those of the service, the oldest first. `last_valid` has the last valid annotations of
        each, by uid. For `defaults` see `parse_service`. `overlay` are its settings in the dynamic configuration."""
        self._name = name
        self._deployments = deployments
        self._label = deployments[0].service
        self._last_valid = last_valid
        self._defaults = defaults
        self._overlay = overlay
        self._overlay_problems: list[DeploymentProblem] = []  # they do not make annotations invalid
        self._problems: list[DeploymentProblem] = []
        self._unscalable: set[str] = set()  # uids of Deployments whose scaling settings have never been valid
        self._without_mode: set[str] = set()  # uids of Deployments whose mode has never been valid

    def assemble(self) -> ResolvedService:
        """Return the service, without its keys."""
        candidates = self._assign_versions()
        service = self._parse_service(candidates)
        namespace = self._deployments[0].namespace
        secret = next((c.annotations.keys_secret for c in candidates.values() if c.annotations.keys_secret), None)
        with_problems = {problem.uid for problem in self._problems}
        for deployment, _ in candidates.values():
            if deployment.replica_failure:
                self._report(
                    deployment, "ReplicasRefused",
                    f"replicas cannot be created ({deployment.replicas} desired): {deployment.replica_failure}",
                    cause=f"replicas cannot be created: {deployment.replica_failure}",
                )  # fmt: skip
        for version in service.versions:
            deployment, parsed = candidates[version.name]
            self._check_grace_period(deployment, version, parsed)
        return ResolvedService(
            service,
            tuple(
                ResolvedVersion(
                    (self._name, version),
                    deployment,
                    parsed.port,
                    deployment.uid not in self._unscalable,
                    parsed.scaling_paused_until,
                )
                for version, (deployment, parsed) in candidates.items()
            ),
            NamespacedName(namespace, secret or KEYS_SECRET_PREFIX + self._label),
            self._mode(candidates.values()),
            (*self._problems, *self._overlay_problems),
            {c.deployment.uid: c.annotations for c in candidates.values() if c.deployment.uid not in with_problems},
        )

    def _mode(self, candidates: Iterable[_Candidate]) -> str | None:
        for deployment, parsed in candidates:
            if deployment.uid in self._without_mode:
                return "observe"
            if parsed.mode is not None:
                return parsed.mode
        return None

    def _check_grace_period(self, deployment: Deployment, version: Version, annotations: ParsedAnnotations) -> None:
        """Report a grace period that is shorter than an annotation permits requests to last.

        The router drains the replicas that it removes. It does not drain those that a rolling update or a node drain
        removes. Without an annotation there is no problem: no request is expected to exceed the default grace period.
        """
        grace = deployment.grace_seconds
        limits = {
            "replica_drain_seconds": version.replica_drain_seconds,
            "scoring_timeout_ms": version.scoring_timeout_ms / 1000,
        }
        for setting, seconds in limits.items():
            if setting in annotations.settings and seconds > grace:
                self._report(
                    deployment, "GracePeriodTooShort",
                    f"terminationGracePeriodSeconds = {grace} is below {annotation_name(setting)} = "
                    f"{annotations.settings[setting]}: if a rolling update or a node drain removes a pod, its requests "
                    f"are aborted after {grace} s; it must be at least {math.ceil(seconds)}",
                    cause=f"terminationGracePeriodSeconds is below {annotation_name(setting)}: if a rolling update or "
                    "a node drain removes a pod, its requests are aborted",
                )  # fmt: skip
                return

    def _assign_versions(self) -> dict[str, _Candidate]:
        """Return the Deployment of each version."""
        candidates: dict[str, _Candidate] = {}
        for deployment in self._deployments:
            annotations = self._effective_annotations(deployment)
            if annotations.version in candidates:
                other = candidates[annotations.version].deployment.name
                self._report(
                    deployment, "VersionTaken",
                    f"version {annotations.version} of service {self._name} belongs to Deployment {other}, which is "
                    f"older; this one gets no requests and is not scaled: give it another {annotation_name('version')}",
                    cause="an older Deployment has the same version; this one gets no requests and is not scaled: "
                    f"give it another {annotation_name('version')}",
                )  # fmt: skip
                continue
            candidates[annotations.version] = _Candidate(deployment, annotations)
        return candidates

    def _effective_annotations(self, deployment: Deployment) -> ParsedAnnotations:
        """Return the annotations if all are valid, else the last valid ones. If there are none, return the valid
        annotations."""
        annotations, errors = parse_annotations(self._label, deployment.annotations)
        return self._after_errors(deployment, annotations, errors) if errors else annotations

    def _after_errors(
        self, deployment: Deployment, valid_ones: ParsedAnnotations, errors: Iterable[SettingsError]
    ) -> ParsedAnnotations:
        last = self._last_valid.get(deployment.uid)
        effect = "the valid annotations apply" if last is None else "the previous settings stay in effect"
        for error in errors:
            self._report(deployment, SETTINGS_REFUSED, f"{error}; {effect}")
            if last is None and is_scaling_setting(setting_name(error.setting)):
                self._unscalable.add(deployment.uid)
            if last is None and setting_name(error.setting) == "mode":
                self._without_mode.add(deployment.uid)
        return valid_ones if last is None else last

    def _parse_service(self, candidates: dict[str, _Candidate]) -> Service:
        """Return the service with these versions. If their settings contradict each other, replace a setting in
        `candidates`: one that has changed since it was valid, or else the one of the youngest Deployment."""
        self._unify_service_settings(candidates)
        while True:
            settings = {version: candidate.annotations.settings for version, candidate in candidates.items()}
            document = service_document(settings)
            try:
                parsed = parse_service(self._label, document, defaults=self._defaults)
            except SettingsError as error:
                self._drop_setting(candidates, error)
            else:
                return replace(self._with_overlay(parsed, document), name=self._name)

    def _with_overlay(self, service: Service, document: Mapping[str, object]) -> Service:
        """Return the service with the settings of the dynamic configuration. If they contradict the annotations, report
        that, and return it without them."""
        overlay = self._overlay
        if overlay is None:
            return service
        try:
            return parse_service(
                self._label, overlay_service(document, overlay), defaults=self._defaults,
                locate=lambda path: overlay.location(path) or "annotations",
            )  # fmt: skip
        except SettingsError as errors:
            for error in errors.errors:
                message = f"{error}; the service's settings in the dynamic configuration are ignored"
                self._overlay_problems.append(
                    problem_of(self._deployments[0], self._name, DYNAMIC_SETTINGS_REFUSED, message)
                )
            return service

    def _unify_service_settings(self, candidates: dict[str, _Candidate]) -> None:
        """Drop each service setting that differs from that of an older Deployment."""
        decided: dict[str, tuple[str, str]] = {}  # by setting: the oldest Deployment that has it, and its value
        for version, (deployment, parsed) in candidates.items():
            kept = dict(parsed.service_settings)
            for setting, text in parsed.service_settings.items():
                older, value = decided.setdefault(setting, (deployment.name, text))
                if value != text:
                    del kept[setting]
                    self._report(
                        deployment, SETTINGS_REFUSED,
                        f"{annotation_name(setting)} = {text!r}: must be {value!r} as in Deployment {older}, which is "
                        f"older and decides for service {self._name}; its value stays in effect",
                        cause=f"{annotation_name(setting)} = {text!r}: must be {value!r} as in the oldest Deployment "
                        "of the service, whose value stays in effect",
                    )  # fmt: skip
            candidates[version] = _Candidate(deployment, replace(parsed, service_settings=kept))

    def _drop_setting(self, candidates: dict[str, _Candidate], error: SettingsError) -> None:
        """Replace the setting that the error names with its last valid value, or remove it if it has none."""
        setting = error.setting
        with_setting = [version for version, c in candidates.items() if setting in c.annotations.settings]
        if not with_setting:
            raise error
        changed = [v for v in with_setting if self._has_changed(candidates[v])]
        version = (changed or with_setting)[-1]
        deployment, annotations = candidates[version]
        value = annotations.settings[setting]
        annotation_error = SettingsError(annotation_name(setting), value, error.problem)
        self._report(deployment, SETTINGS_REFUSED, f"{annotation_error}; it is ignored")
        last = self._last_valid.get(deployment.uid, ParsedAnnotations())
        candidates[version] = _Candidate(
            deployment,
            replace(
                annotations,
                version_settings=_without(setting, annotations.version_settings, last.version_settings),
                service_settings=_without(setting, annotations.service_settings, last.service_settings),
            ),
        )

    def _has_changed(self, candidate: _Candidate) -> bool:
        """True if a Deployment has had valid annotations, and its current ones differ from them."""
        last = self._last_valid.get(candidate.deployment.uid)
        return last is not None and last != candidate.annotations

    def _report(self, deployment: Deployment, reason: str, message: str, *, cause: str = "") -> None:
        self._problems.append(problem_of(deployment, self._name, reason, message, cause=cause))


def _without(setting: str, settings: Mapping[str, str], last_valid: Mapping[str, str]) -> dict[str, str]:
    """Return `settings` with the last valid value of one setting. If that is missing or equals the current value,
    return them without the setting."""
    result = dict(settings)
    value = result.pop(setting, None)
    if value is not None and last_valid.get(setting, value) != value:
        result[setting] = last_valid[setting]
    return result
