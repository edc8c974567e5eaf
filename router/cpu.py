"""How many CPUs this process may use: its container's quota, which `os.cpu_count()` does not know."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self/cgroup")


def available_cpus(root: Path = _CGROUP, own: Path = _SELF) -> int:
    """CPUs, fractions of one rounded up: the quota of the control group (v2 or v1), at most those of the affinity."""
    # Only Linux has affinities, and only there is `azureml-fe serve` at home; `local` runs elsewhere too.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root, own)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(root: Path = _CGROUP, own: Path = _SELF) -> float | None:
    """CPUs that the control group and those above it allow; None where none of them has a limit."""
    quotas = [
        quota
        for version_2, folder in _folders(root, own)
        if (quota := _quota_v2(folder) if version_2 else _quota_v1(folder)) is not None
    ]
    return min(quotas, default=None)


def _folders(root: Path, own: Path) -> list[tuple[bool, Path]]:
    """The control group's folder and all above it, as this process sees them (cgroups(7), /proc/[pid]/cgroup)."""
    found: list[tuple[bool, Path]] = []
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version_2 = not controllers
        if version_2 or "cpu" in controllers.split(","):
            top = root if version_2 else root / "cpu"
            folder = top / path.lstrip("/")
            # Inside a container the path is often the host's; what is mounted is then the group itself.
            found += [(version_2, each) for each in (folder, *folder.parents) if each == top or top in each.parents]
    return found


def _quota_v2(folder: Path) -> float | None:
    words = _words(folder / "cpu.max")
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _quota_v1(folder: Path) -> float | None:
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    if not quota or not period or int(quota[0]) <= 0:
        return None
    return int(quota[0]) / int(period[0])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
