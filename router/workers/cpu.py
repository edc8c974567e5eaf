"""The number of CPUs that this process may use, by the quota of its container, which `os.cpu_count()` ignores, and how
often the container was throttled because it had used up its quota."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


class CpuPeriods(NamedTuple):
    """Periods of a CPU quota, usually of 100 ms, since the control group was made.

    `total`: those in which the group ran. `throttled`: those of them in which it had to stop, as it had used up its
    quota.
    """

    total: int
    throttled: int


def available_cpus(root: Path = _CGROUP_ROOT, own: Path = _OWN_CGROUP) -> int:
    """Return the CPU quota of the control group (v2 or v1), rounded up; at most the number of CPUs in the affinity."""
    # Only Linux has affinities. `azureml-fe serve` runs there only; `local` runs elsewhere too.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root, own)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(root: Path = _CGROUP_ROOT, own: Path = _OWN_CGROUP) -> float | None:
    """Return the CPUs that the control group and its ancestors allow; None if none of them has a limit."""
    return min((quota for quota, _ in _quotas(root, own)), default=None)


def cpu_periods(root: Path = _CGROUP_ROOT, own: Path = _OWN_CGROUP) -> CpuPeriods | None:
    """Return the periods of the smallest quota that applies; None if there is no quota, or the kernel does not report
    them."""
    quotas = _quotas(root, own)
    if not quotas:
        return None
    _, directory = min(quotas)
    fields = _read_fields(directory / "cpu.stat")  # cgroup v1 and v2 have the same names here
    values = dict(zip(fields[::2], fields[1::2], strict=False))
    try:
        return CpuPeriods(int(values["nr_periods"]), int(values["nr_throttled"]))
    except (KeyError, ValueError):
        return None


def _quotas(root: Path, own: Path) -> list[tuple[float, Path]]:
    """Return the CPUs that the control group and its ancestors allow, each with the directory of the group."""
    return [
        (quota, directory)
        for is_v2, directory in _cgroup_directories(root, own)
        if (quota := _quota_v2(directory) if is_v2 else _quota_v1(directory)) is not None
    ]


def _cgroup_directories(root: Path, own: Path) -> list[tuple[bool, Path]]:
    """Return the directories of this process's control group and its ancestors, each with True for cgroup v2. Source:
    /proc/[pid]/cgroup, see cgroups(7)."""
    directories: list[tuple[bool, Path]] = []
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        is_v2 = not controllers
        if is_v2 or "cpu" in controllers.split(","):
            top = root if is_v2 else root / "cpu"
            directory = top / path.lstrip("/")
            # In a container, the path is often that on the host. Then the mounted directory itself is the group.
            directories += [
                (is_v2, each) for each in (directory, *directory.parents) if each == top or top in each.parents
            ]
    return directories


def _quota_v2(directory: Path) -> float | None:
    fields = _read_fields(directory / "cpu.max")
    if len(fields) != 2 or fields[0] == "max":
        return None
    quota, period = fields
    return int(quota) / int(period)


def _quota_v1(directory: Path) -> float | None:
    quota, period = _read_fields(directory / "cpu.cfs_quota_us"), _read_fields(directory / "cpu.cfs_period_us")
    if not quota or not period or int(quota[0]) <= 0:
        return None
    return int(quota[0]) / int(period[0])


def _read_fields(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
