"""Makes the self-scaler's policy from the router's settings."""

from __future__ import annotations

from router.config.router import RouterSettings
from router.scaling.self.self_scaler import SizePolicy


def pods_policy(settings: RouterSettings) -> SizePolicy:
    """Return the policy of a router in a cluster: CPUs of each pod, and pods."""
    return _policy(settings, settings.self_scaling_cpu_steps, settings.self_scaling_min_pods, "CPUs")


def workers_policy(settings: RouterSettings, cpus: int) -> SizePolicy:
    """Return the policy of a router outside of a cluster, on a machine with `cpus` CPUs: workers."""
    most = max(settings.max_workers or cpus, settings.min_workers)
    return _policy(settings, tuple(map(float, range(settings.min_workers, most + 1))), None, "workers")


def _policy(settings: RouterSettings, steps: tuple[float, ...], min_pods: int | None, unit: str) -> SizePolicy:
    return SizePolicy(
        steps=steps,
        min_pods=1 if min_pods is None else min_pods,
        max_pods=1 if min_pods is None else settings.self_scaling_max_pods,
        percentile=settings.self_scaling_route_time_percentile,
        route_time_threshold_seconds=settings.self_scaling_route_time_threshold_ms / 1000,
        throttled_threshold=settings.self_scaling_throttled_percent / 100,
        busy_cpu=settings.self_scaling_busy_cpu_percent / 100,
        cpu_threshold=settings.self_scaling_cpu_threshold_percent / 100,
        scale_in_cpu_threshold=settings.self_scaling_scale_in_cpu_threshold_percent / 100,
        up_cooldown_seconds=settings.self_scaling_up_cooldown_seconds,
        down_cooldown_seconds=settings.self_scaling_down_cooldown_seconds,
        no_room_seconds=settings.self_scaling_no_room_seconds,
        unit=unit,
    )
