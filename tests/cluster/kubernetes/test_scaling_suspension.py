"""Which versions are not scaled, and why."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from router.cluster.kubernetes.objects import Hpa, name_of
from router.cluster.kubernetes.scaling_suspension import (
    ScalingFacts,
    ScalingSuspension,
    SuspensionCause,
    find_suspensions,
)
from router.cluster.kubernetes.service_assembler import ResolvedVersion
from tests.cluster.kubernetes.object_builders import deployment

NOW = datetime(2026, 5, 1, tzinfo=UTC)
KEY = ("iris", "default")
VERSION = ResolvedVersion(KEY, deployment("iris"), 5001, is_scalable=True, scaling_paused_until=None)
OTHER_RELEASE = {"models": "azureml/other"}
HPA = Hpa("models", "iris-hpa", "iris", "ScaledObject iris")
CONTESTED = frozenset((name_of(VERSION.deployment),))
NOTHING = ScalingFacts({}, (), frozenset())


def suspension(version: ResolvedVersion = VERSION, facts: ScalingFacts = NOTHING) -> ScalingSuspension | None:
    return find_suspensions({KEY: version}, facts, NOW).get(KEY)


def test_version_is_scaled_if_nothing_prevents_it() -> None:
    assert suspension() is None
    elsewhere = ScalingFacts({"other": "azureml/other"}, [replace(HPA, namespace="other")], frozenset())
    assert suspension(facts=elsewhere) is None
    assert suspension(facts=ScalingFacts({}, [replace(HPA, target_deployment="")], frozenset())) is None


@pytest.mark.parametrize(
    ("changes", "facts", "cause", "reason", "is_conflict"),
    [
        ({}, NOTHING._replace(holders=OTHER_RELEASE), SuspensionCause.OTHER_RELEASE, "release azureml/other", False),
        ({}, NOTHING._replace(hpas=[HPA]), SuspensionCause.HPA, "HorizontalPodAutoscaler iris-hpa (of Scaled", True),
        ({"is_scalable": False}, NOTHING, SuspensionCause.INVALID_SETTINGS, "never been valid", True),
        ({"scaling_paused_until": NOW + timedelta(1)}, NOTHING, SuspensionCause.PAUSED, "until 2026-05-02T00", False),
        ({}, NOTHING._replace(backing_off=CONTESTED), SuspensionCause.CONTESTED, "a competing controller", True),
    ],
)  # fmt: skip
def test_causes(
    changes: dict[str, object], facts: ScalingFacts, cause: SuspensionCause, reason: str, is_conflict: bool
) -> None:
    found = suspension(replace(VERSION, **changes), facts)  # type: ignore[arg-type]
    assert found is not None
    assert (found.cause, found.is_conflict) == (cause, is_conflict)
    assert reason in found.reason


def test_first_cause_counts_and_a_pause_ends() -> None:
    all_facts, contested = ScalingFacts(OTHER_RELEASE, [HPA], CONTESTED), NOTHING._replace(backing_off=CONTESTED)
    paused = replace(VERSION, is_scalable=False, scaling_paused_until=NOW + timedelta(seconds=1))
    causes = []
    for version, facts in (
        (paused, all_facts), (paused, all_facts._replace(holders={})), (paused, contested),
        (replace(paused, is_scalable=True), contested), (replace(VERSION, scaling_paused_until=NOW), contested),
    ):  # fmt: skip
        found = suspension(version, facts)
        assert found is not None
        causes.append(found.cause)
    assert causes == list(SuspensionCause)
