"""CPU quotas of control groups, read from files laid out as in sysfs and procfs."""

import os
from pathlib import Path

import pytest

from router.workers.cpu import CpuPeriods, available_cpus, cpu_periods, cpu_quota


class Cgroups:
    """A mounted tree of control groups, and the groups of this process."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "cgroup"
        self.own = directory / "self"
        self.root.mkdir()
        self.own.write_text("")

    def add_v2(self, group: str, cpu_max: str | None = None, stat: str | None = None) -> None:
        self._write(self.root / group.lstrip("/"), {"cpu.max": cpu_max, "cpu.stat": stat})

    def add_v1(
        self, group: str, quota: str | None = None, period: str | None = "100000", stat: str | None = None
    ) -> None:
        files = {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": period, "cpu.stat": stat}
        self._write(self.root / "cpu" / group.lstrip("/"), files)

    def set_own(self, *lines: str) -> None:
        self.own.write_text("".join(f"{line}\n" for line in lines))

    def quota(self) -> float | None:
        return cpu_quota(self.root, self.own)

    def periods(self) -> CpuPeriods | None:
        return cpu_periods(self.root, self.own)

    def cpus(self) -> int:
        return available_cpus(self.root, self.own)

    @staticmethod
    def _write(directory: Path, files: dict[str, str | None]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if text is not None:
                (directory / name).write_text(f"{text}\n")


@pytest.fixture
def groups(tmp_path: Path) -> Cgroups:
    return Cgroups(tmp_path)


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_v2_quota_is_that_of_the_own_group(groups: Cgroups) -> None:
    groups.add_v2("/pods/router", "150000 100000")
    groups.add_v2("/pods/other", "50000 100000")
    groups.set_own("0::/pods/router")
    assert groups.quota() == 1.5


def test_v1_quota_is_that_of_the_cpu_controller(groups: Cgroups) -> None:
    groups.add_v1("/docker/abc", "250000")
    groups.set_own("12:memory:/docker/other", "4:cpu,cpuacct:/docker/abc", "1:name=systemd:/")
    assert groups.quota() == 2.5


def test_v2_group_of_a_container_is_mounted_as_the_root(groups: Cgroups) -> None:
    groups.add_v2("/", "90000 100000")
    groups.set_own("0::/kubepods/burstable/pod1/abc")  # the host's path, which is not mounted here
    assert groups.quota() == 0.9


def test_v1_group_of_a_container_is_mounted_as_the_root(groups: Cgroups) -> None:
    groups.add_v1("/", "300000")
    groups.set_own("4:cpu,cpuacct:/docker/abc")
    assert groups.quota() == 3.0


def test_smallest_quota_of_nested_groups_applies(groups: Cgroups) -> None:
    groups.add_v2("/pods", "200000 100000")
    groups.add_v2("/pods/router", "400000 100000")
    groups.add_v2("/pods/router/main", "max 100000")
    groups.set_own("0::/pods/router/main")
    assert groups.quota() == 2.0


def test_smallest_quota_of_both_versions_applies(groups: Cgroups) -> None:
    groups.add_v2("/pods", "400000 100000")
    groups.add_v1("/pods", "150000")
    groups.set_own("4:cpu:/pods", "0::/pods")
    assert groups.quota() == 1.5


@pytest.mark.parametrize("cpu_max", ["max 100000", "", None])
def test_v2_group_without_a_limit_has_no_quota(groups: Cgroups, cpu_max: str | None) -> None:
    groups.add_v2("/pods", cpu_max)
    groups.set_own("0::/pods")
    assert groups.quota() is None


@pytest.mark.parametrize(("quota", "period"), [("-1", "100000"), ("0", "100000"), (None, "100000"), ("100000", None)])
def test_v1_group_without_a_limit_has_no_quota(groups: Cgroups, quota: str | None, period: str | None) -> None:
    groups.add_v1("/pods", quota, period)
    groups.set_own("4:cpu:/pods")
    assert groups.quota() is None


def test_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path / "no-self") is None


@pytest.mark.parametrize(
    ("cpu_max", "cpus"),
    [("10000 100000", 1), ("100000 100000", 1), ("100001 100000", 2), ("250000 100000", 3), ("9000 1000", 8)],
)
def test_quota_is_rounded_up_and_limited_by_the_affinity(groups: Cgroups, cpu_max: str, cpus: int) -> None:
    groups.add_v2("/", cpu_max)
    groups.set_own("0::/")
    assert groups.cpus() == cpus


def test_affinity_applies_without_a_quota(groups: Cgroups) -> None:
    assert groups.cpus() == 8


def test_cpu_count_applies_without_affinities(groups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert groups.cpus() == 1


def test_this_machine_has_at_least_one_cpu() -> None:
    assert available_cpus() >= 1


# Recorded with Linux 6.18: half a CPU, used up once.
STAT_V1 = """\
nr_periods 63
nr_throttled 1
throttled_time 31619623
nr_bursts 0
burst_time 0
"""
# The names and units of cgroup v2, see cgroups(7).
STAT_V2 = """\
usage_usec 2551308
user_usec 2306127
system_usec 245181
nice_usec 0
core_sched.force_idle_usec 0
nr_periods 61
nr_throttled 8
throttled_usec 151262
nr_bursts 0
burst_usec 0
"""


def test_v1_periods_are_those_of_the_group_with_the_quota(groups: Cgroups) -> None:
    groups.add_v1("/docker/abc", "50000", stat=STAT_V1)
    groups.set_own("4:cpu,cpuacct:/docker/abc")
    assert groups.periods() == CpuPeriods(63, 1)


def test_v2_periods_are_those_of_the_smallest_quota(groups: Cgroups) -> None:
    groups.add_v2("/pod", "50000 100000", STAT_V2)
    groups.add_v2("/pod/router", "100000 100000", "nr_periods 60\nnr_throttled 0\nthrottled_usec 0")
    groups.set_own("0::/pod/router")
    assert groups.periods() == CpuPeriods(61, 8)


@pytest.mark.parametrize("stat", [None, "", "usage_usec 12", "nr_periods 1", "nr_periods x\nnr_throttled 1", "odd"])
def test_group_whose_kernel_reports_no_periods_has_none(groups: Cgroups, stat: str | None) -> None:
    groups.add_v2("/pod", "50000 100000", stat)
    groups.set_own("0::/pod")
    assert groups.periods() is None


def test_group_without_a_quota_has_no_periods(groups: Cgroups) -> None:
    groups.add_v2("/pod", "max 100000", STAT_V2)
    groups.set_own("0::/pod")
    assert groups.periods() is None
    assert cpu_periods(groups.root / "none", groups.own) is None
