"""What the settings of self-scaling mean to the self-scaler."""

from __future__ import annotations

from router.scaling.self_scaler import Policy
from router.settings import RouterSettings


def pods_policy(settings: RouterSettings) -> Policy:
    """Of a router in a cluster: CPUs of each pod, and pods."""
    return _policy(settings, settings.self_scaling_cpu_steps, settings.self_scaling_min_pods, "CPUs")


def workers_policy(settings: RouterSettings, cpus: int) -> Policy:
    """Of a router on its own machine, of so many CPUs: workers."""
    most = max(settings.max_workers or cpus, settings.min_workers)
    return _policy(settings, tuple(map(float, range(settings.min_workers, most + 1))), None, "workers")


def _policy(settings: RouterSettings, steps: tuple[float, ...], min_pods: int | None, unit: str) -> Policy:
    return Policy(
        steps=steps,
        min_pods=1 if min_pods is None else min_pods,
        max_pods=1 if min_pods is None else settings.self_scaling_max_pods,
        percent=settings.self_scaling_route_time_percentile,
        slow_seconds=settings.self_scaling_route_time_threshold_ms / 1000,
        busy_cpu=settings.self_scaling_busy_cpu_percent / 100,
        down_cpu=settings.self_scaling_cpu_threshold_percent / 100,
        scale_in_cpu=settings.self_scaling_scale_in_cpu_threshold_percent / 100,
        up_seconds=settings.self_scaling_up_cooldown_seconds,
        down_seconds=settings.self_scaling_down_cooldown_seconds,
        no_room_seconds=settings.self_scaling_no_room_seconds,
        unit=unit,
    )
