"""Which versions the router does not scale, and why. Decides; no I/O, no clock.

Does not contain: which services this router is in charge of (`release_claims`, `service_registry`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from router.cluster.kubernetes.objects import Hpa, NamespacedName, name_of
from router.cluster.kubernetes.service_assembler import ResolvedVersion
from router.model.services import VersionKey


class SuspensionCause(enum.Enum):
    """Why a version is not scaled. The first one that applies counts."""

    OTHER_RELEASE = enum.auto()
    """Another release of the router serves and scales its namespace."""
    HPA = enum.auto()
    """A HorizontalPodAutoscaler scales its Deployment."""
    INVALID_SETTINGS = enum.auto()
    PAUSED = enum.auto()
    """Its annotation says so."""
    CONTESTED = enum.auto()
    """The router backs off, because a competing controller has undone its writes."""


class ScalingSuspension(NamedTuple):
    """A version is not scaled."""

    cause: SuspensionCause
    reason: str
    """Who scales it, or why nobody does, in words."""

    @property
    def is_conflict(self) -> bool:
        """True unless that is intended: another release has the namespace, or an annotation pauses scaling."""
        return self.cause not in (SuspensionCause.OTHER_RELEASE, SuspensionCause.PAUSED)


class ScalingFacts(NamedTuple):
    """What decides whether versions are scaled, besides their own settings."""

    holders: Mapping[str, str]
    """The other release that serves a namespace, by namespace."""
    hpas: Iterable[Hpa]
    backing_off: frozenset[NamespacedName]
    """The Deployments that are not scaled for a while because of a competing controller."""


def find_suspensions(
    versions: Mapping[VersionKey, ResolvedVersion], facts: ScalingFacts, now: datetime
) -> dict[VersionKey, ScalingSuspension]:
    """Return the suspensions of all versions that are not scaled at `now`, by version."""
    hpas = {NamespacedName(hpa.namespace, hpa.target_deployment): hpa for hpa in facts.hpas}
    found = {}
    for key, version in versions.items():
        name = name_of(version.deployment)
        suspension = _find(version, facts.holders.get(name.namespace), hpas.get(name), name in facts.backing_off, now)
        if suspension is not None:
            found[key] = suspension
    return found


def _find(
    version: ResolvedVersion, holder: str | None, hpa: Hpa | None, is_backing_off: bool, now: datetime
) -> ScalingSuspension | None:
    paused_until = version.scaling_paused_until
    if holder is not None:
        return ScalingSuspension(SuspensionCause.OTHER_RELEASE, f"scaled by the release {holder}")
    if hpa is not None:
        return ScalingSuspension(SuspensionCause.HPA, str(hpa))
    if not version.is_scalable:
        return ScalingSuspension(SuspensionCause.INVALID_SETTINGS, "its scaling annotations have never been valid")
    if paused_until is not None and now < paused_until:
        return ScalingSuspension(SuspensionCause.PAUSED, f"paused until {paused_until.isoformat()}")
    if is_backing_off:
        return ScalingSuspension(SuspensionCause.CONTESTED, "a competing controller writes the number of replicas")
    return None
