"""The table of settings by which the router sizes itself, and what a cluster's purpose makes of them.

Lives here: names, units, limits, defaults, and the rules between them. Must not live here: how they are read and laid
over one another (`settings`), or what follows from them (`sizing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from router.values import Kind, Scope, Setting, SettingsError

PURPOSES = ("FastProd", "DenseProd", "DevTest")

PURPOSE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "FastProd": {
        "self_scaling_enabled": True,
        "self_scaling_route_time_threshold_ms": 3.0,
        "self_scaling_cpu_steps": (1.0, 2.0, 4.0),
        "self_scaling_cpu_threshold_percent": 40.0,
        "self_scaling_scale_in_cpu_threshold_percent": 30.0,
        "self_scaling_max_pods": 10,
        "self_scaling_down_cooldown_seconds": 300.0,
    },
    "DenseProd": {
        "self_scaling_enabled": True,
        "self_scaling_route_time_threshold_ms": 10.0,
        "self_scaling_cpu_steps": (0.5, 1.0, 2.0),
        "self_scaling_cpu_threshold_percent": 50.0,
        "self_scaling_scale_in_cpu_threshold_percent": 45.0,
        "self_scaling_max_pods": 6,
        "self_scaling_down_cooldown_seconds": 120.0,
    },
}
"""FastProd: latency first. DenseProd: many models share few nodes, so what is not needed is given back sooner. DevTest
has FastProd's values, and is not sized unless `self_scaling_enabled` says so."""


def purpose_defaults(purpose: str) -> Mapping[str, Any]:
    """What is in force where nothing is set."""
    if purpose == "DevTest":
        return {**PURPOSE_DEFAULTS["FastProd"], "self_scaling_enabled": False}
    return PURPOSE_DEFAULTS[purpose]


def _by_purpose(name: str) -> str:
    shown = {purpose: _shown(defaults[name]) for purpose, defaults in PURPOSE_DEFAULTS.items()}
    if len(set(shown.values())) == 1:
        return f"{shown['FastProd']}; false for DevTest" if name == "self_scaling_enabled" else shown["FastProd"]
    return ", ".join(f"{value} for {purpose}" for purpose, value in shown.items())


def _shown(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case tuple():
            return "`" + ",".join(f"{each:g}" for each in value) + "`"
    return f"{value:g}"


def _setting(name: str, kind: Kind, about: str, **facts: Any) -> Setting:
    if name in PURPOSE_DEFAULTS["FastProd"]:
        facts["default_means"] = _by_purpose(name)
    return Setting(name=name, kind=kind, scope=Scope.ROUTER, about=about, **facts)


SELF_SCALING_SETTINGS: tuple[Setting, ...] = (
    _setting(
        "cluster_purpose",
        Kind.TEXT,
        "What the cluster is for: sets the defaults of self-scaling.",
        default="FastProd",
        choices=PURPOSES,
    ),
    _setting(
        "min_workers",
        Kind.INT,
        "Fewest processes that forward requests, where their number follows the load; `workers` fixes it.",
        default=1,
        minimum=1,
        maximum=1024,
        flag=True,
    ),
    _setting(
        "max_workers",
        Kind.INT,
        "Most processes that forward requests, where their number follows the load.",
        default_means="CPU quota",
        minimum=1,
        maximum=1024,
        flag=True,
    ),
    _setting("self_scaling_enabled", Kind.BOOL, "The router sizes itself: workers, CPU, pods."),
    _setting(
        "self_scaling_route_time_threshold_ms",
        Kind.FLOAT,
        "The router grows when its route time, or the lag of its event loops, is above this.",
        unit="ms",
        above=0,
    ),
    _setting(
        "self_scaling_route_time_percentile",
        Kind.FLOAT,
        "Percentile that is compared with that threshold.",
        unit="percent",
        default=95.0,
        minimum=1,
        maximum=100,
    ),
    _setting(
        "self_scaling_window_seconds",
        Kind.FLOAT,
        "Time over which percentiles and CPU use are taken.",
        unit="s",
        default=15.0,
        minimum=3,
        maximum=3600,
    ),
    _setting(
        "self_scaling_busy_cpu_percent",
        Kind.FLOAT,
        "Below this CPU use the router does not grow: more CPU would not help.",
        unit="percent",
        default=10.0,
        maximum=100,
    ),
    _setting(
        "self_scaling_cpu_steps",
        Kind.LIST,
        "CPUs of each pod, from the smallest size to the largest.",
        unit="CPUs",
        pattern=r"(?:0|[1-9][0-9]{0,3})(?:\.[0-9]{1,3})?",
        pattern_means="ascending numbers above 0",
    ),
    _setting(
        "self_scaling_cpu_threshold_percent",
        Kind.FLOAT,
        "Each pod gets one step less CPU when its CPU use is below this.",
        unit="percent",
        maximum=100,
    ),
    _setting(
        "self_scaling_scale_in_cpu_threshold_percent",
        Kind.FLOAT,
        "There is one pod fewer when, at the smallest step, CPU use is below this.",
        unit="percent",
        maximum=100,
    ),
    _setting("self_scaling_min_pods", Kind.INT, "Fewest router pods.", default=1, minimum=1, maximum=1000),
    _setting("self_scaling_max_pods", Kind.INT, "Most router pods.", minimum=1, maximum=1000),
    _setting(
        "self_scaling_up_cooldown_seconds",
        Kind.FLOAT,
        "Time between a change and the next growth.",
        unit="s",
        default=15.0,
        minimum=1,
    ),
    _setting(
        "self_scaling_down_cooldown_seconds",
        Kind.FLOAT,
        "Time for which CPU use must have been low, since the last change, before the router shrinks.",
        unit="s",
        minimum=1,
    ),
    _setting(
        "self_scaling_no_room_seconds",
        Kind.FLOAT,
        "Time for which the cluster is not asked again for what it had no room for.",
        unit="s",
        default=300.0,
        minimum=1,
    ),
    _setting(
        "self_scaling_resize_patience_seconds",
        Kind.FLOAT,
        "Time within which a node must have given a pod its CPU; then it is taken to have no room.",
        unit="s",
        default=30.0,
        minimum=1,
    ),
)


def resolved(values: dict[str, Any]) -> dict[str, Any]:
    """All values, with the purpose's defaults in place of what is not set. Raises `SettingsError` for values that
    contradict each other."""
    defaults = purpose_defaults(values["cluster_purpose"])
    values = values | {name: default for name, default in defaults.items() if values[name] is None}
    steps = tuple(float(step) for step in values["self_scaling_cpu_steps"])
    values["self_scaling_cpu_steps"] = steps
    if not steps or steps[0] <= 0 or any(one >= other for one, other in pairwise(steps)):
        given = ",".join(f"{step:g}" for step in steps)
        raise SettingsError("self_scaling_cpu_steps", given, "must be ascending numbers above 0, at least one")
    for least, most in (("min_workers", "max_workers"), ("self_scaling_min_pods", "self_scaling_max_pods")):
        if values[most] is not None and values[least] > values[most]:
            raise SettingsError(least, values[least], f"must not exceed {most}, which is {values[most]}")
    return values
