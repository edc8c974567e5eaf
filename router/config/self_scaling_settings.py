"""Settings of self-scaling, their defaults for each `cluster_purpose`, and the rules between them.

Does not contain: what the router does with them (`scaling.self`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Unpack

from router.config.declaration import SettingOptions, setting
from router.config.schema import SettingsError


class PurposeDefault(NamedTuple):
    """The default of a setting for each `cluster_purpose`."""

    fast_prod: object
    dense_prod: object
    dev_test: object

    def value(self, purpose: str) -> object:
        """The default for one purpose."""
        return {"FastProd": self.fast_prod, "DenseProd": self.dense_prod, "DevTest": self.dev_test}[purpose]


def _purpose_setting(
    description: str,
    *,
    fast_prod: object,
    dense_prod: object,
    dev_test: object = None,
    **options: Unpack[SettingOptions],
) -> Any:
    """Declare a setting whose default depends on `cluster_purpose`. Unless `dev_test` is given, the default for DevTest
    is that for FastProd."""
    default = PurposeDefault(fast_prod, dense_prod, fast_prod if dev_test is None else dev_test)
    fast_text, dense_text = _value_text(fast_prod), _value_text(dense_prod)
    text = fast_text if fast_text == dense_text else f"{fast_text} for FastProd, {dense_text} for DenseProd"
    if dev_test is not None:
        text += f"; {_value_text(dev_test)} for DevTest"
    return setting(description, **(options | {"default": default, "default_text": text}))


def _value_text(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case tuple():
            return "`" + ",".join(f"{number:g}" for number in value) + "`"
    return f"{value:g}"


@dataclass(frozen=True, kw_only=True)
class SelfScalingSettings:
    """Limits and thresholds of the router's own size: workers, CPUs and pods. If `max_workers` is None, the CPU quota
    is the limit.

    FastProd is for low latency. DenseProd is for many models on few nodes, so the router returns unused CPU sooner.
    """

    cluster_purpose: str = setting(
        "The purpose of the cluster. It selects the defaults of self-scaling. Those of DevTest are the same as of "
        "FastProd, but self-scaling is off.",
        default="FastProd",
        choices=("FastProd", "DenseProd", "DevTest"),
    )
    min_workers: int = setting(
        "Minimum number of workers, unless `workers` fixes it.",
        default=1,
        minimum=1,
        maximum=1024,
        flag=True,
        dynamic=True,
    )
    max_workers: int | None = setting(
        "Maximum number of workers, unless `workers` fixes it.",
        default_text="CPU quota",
        minimum=1,
        maximum=1024,
        flag=True,
        dynamic=True,
    )
    self_scaling_enabled: bool = _purpose_setting(
        "Adapt the router's own size to the load: workers, CPUs and pods.",
        fast_prod=True,
        dense_prod=True,
        dev_test=False,
    )
    self_scaling_route_time_threshold_ms: float = _purpose_setting(
        "Threshold of the route time and of the event loop lag, above which the router grows.",
        fast_prod=3.0,
        dense_prod=10.0,
        unit="ms",
        above=0,
        dynamic=True,
    )
    self_scaling_route_time_percentile: float = setting(
        "Percentile of the route time that is compared with its threshold.",
        unit="percent",
        default=95.0,
        minimum=1,
        maximum=100,
        dynamic=True,
    )
    self_scaling_window_seconds: float = setting(
        "Time over which percentiles and CPU use are measured.",
        unit="s",
        default=15.0,
        minimum=3,
        maximum=3600,
        dynamic=True,
    )
    self_scaling_busy_cpu_percent: float = setting(
        "Minimum CPU use for the router to grow. Below it, more CPU would not help. It is at least 50 percent while "
        "there are almost no requests.",
        unit="percent",
        default=10.0,
        maximum=100,
        dynamic=True,
    )
    self_scaling_throttled_percent: float = _purpose_setting(
        "Share of the periods of the CPU quota in which pods are throttled, above which the router grows. It only "
        "applies while the CPU use is at least self_scaling_cpu_threshold_percent.",
        fast_prod=5.0,
        dense_prod=10.0,
        unit="percent",
        maximum=100,
        dynamic=True,
    )
    self_scaling_cpu_steps: tuple[float, ...] = _purpose_setting(
        "CPUs of each pod, from the smallest size to the largest.",
        fast_prod=(1.0, 2.0, 4.0),
        dense_prod=(0.5, 1.0, 2.0),
        unit="CPUs",
        minimum=0.001,
        maximum=9999,
        pattern_text="ascending numbers above 0",
        dynamic=True,
    )
    self_scaling_cpu_threshold_percent: float = _purpose_setting(
        "Threshold of the CPU use, below which each pod is resized one CPU step down.",
        fast_prod=40.0,
        dense_prod=50.0,
        unit="percent",
        maximum=100,
        dynamic=True,
    )
    self_scaling_scale_in_cpu_threshold_percent: float = _purpose_setting(
        "Threshold of the CPU use at the smallest CPU step, below which one pod is removed.",
        fast_prod=30.0,
        dense_prod=45.0,
        unit="percent",
        maximum=100,
        dynamic=True,
    )
    self_scaling_min_pods: int = setting(
        "Minimum number of router pods.", default=1, minimum=1, maximum=1000, dynamic=True
    )
    self_scaling_max_pods: int = _purpose_setting(
        "Maximum number of router pods.",
        fast_prod=10,
        dense_prod=6,
        minimum=1,
        maximum=1000,
        dynamic=True,
    )
    self_scaling_up_cooldown_seconds: float = setting(
        "Minimum time between a change of size and the next growth.",
        unit="s",
        default=15.0,
        minimum=1,
        dynamic=True,
    )
    self_scaling_down_cooldown_seconds: float = _purpose_setting(
        "Time for which the CPU use must be low before the router shrinks. It begins again with each change of size.",
        fast_prod=300.0,
        dense_prod=120.0,
        unit="s",
        minimum=1,
        dynamic=True,
    )
    self_scaling_no_room_seconds: float = setting(
        "Time before the router tries a size again for which the cluster had no room.",
        unit="s",
        default=300.0,
        minimum=1,
        dynamic=True,
    )
    self_scaling_resize_patience_seconds: float = setting(
        "Maximum time for a node to resize a pod. After it, the node counts as having no room.",
        unit="s",
        default=30.0,
        minimum=1,
    )


def resolve_self_scaling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all values, with each `PurposeDefault` resolved. Raises `SettingsError` if two values contradict each
    other."""
    purpose = values["cluster_purpose"]
    resolved: dict[str, Any] = {
        name: value.value(purpose) if isinstance(value, PurposeDefault) else value for name, value in values.items()
    }
    steps: tuple[float, ...] = resolved["self_scaling_cpu_steps"]
    if not steps or any(smaller >= larger for smaller, larger in pairwise(steps)):
        given = ",".join(f"{step:g}" for step in steps)
        raise SettingsError("self_scaling_cpu_steps", given, "must be ascending numbers above 0, at least one")
    for least, most in (("min_workers", "max_workers"), ("self_scaling_min_pods", "self_scaling_max_pods")):
        if resolved[most] is not None and resolved[least] > resolved[most]:
            raise SettingsError(least, resolved[least], f"must not exceed {most}, which is {resolved[most]}")
    return resolved
