"""CPU quotas of control groups, read from trees of files as the kernel shows them."""

import os
from pathlib import Path

import pytest

from router.cpu import available_cpus, cpu_quota


class Groups:
    """A mounted tree of control groups, and which of them this process is in."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.own = folder / "self"
        self.root.mkdir()
        self.own.write_text("")

    def v2(self, group: str, cpu_max: str | None = None) -> None:
        self._write(self.root / group.lstrip("/"), {"cpu.max": cpu_max})

    def v1(self, group: str, quota: str | None = None, period: str | None = "100000") -> None:
        self._write(self.root / "cpu" / group.lstrip("/"), {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": period})

    def within(self, *lines: str) -> None:
        self.own.write_text("".join(f"{line}\n" for line in lines))

    def quota(self) -> float | None:
        return cpu_quota(self.root, self.own)

    def cpus(self) -> int:
        return available_cpus(self.root, self.own)

    @staticmethod
    def _write(folder: Path, files: dict[str, str | None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if text is not None:
                (folder / name).write_text(f"{text}\n")


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


def test_version_2_quota_is_that_of_the_own_group(groups: Groups) -> None:
    groups.v2("/pods/router", "150000 100000")
    groups.v2("/pods/other", "50000 100000")
    groups.within("0::/pods/router")
    assert groups.quota() == 1.5


def test_version_1_quota_is_that_of_the_cpu_controller(groups: Groups) -> None:
    groups.v1("/docker/abc", "250000")
    groups.within("12:memory:/docker/other", "4:cpu,cpuacct:/docker/abc", "1:name=systemd:/")
    assert groups.quota() == 2.5


def test_a_container_sees_its_own_group_as_the_root(groups: Groups) -> None:
    groups.v2("/", "90000 100000")
    groups.within("0::/kubepods/burstable/pod1/abc")  # the host's path, which is not mounted here
    assert groups.quota() == 0.9


def test_a_version_1_container_sees_its_own_group_as_the_root(groups: Groups) -> None:
    groups.v1("/", "300000")
    groups.within("4:cpu,cpuacct:/docker/abc")
    assert groups.quota() == 3.0


def test_the_narrowest_of_nested_groups_counts(groups: Groups) -> None:
    groups.v2("/pods", "200000 100000")
    groups.v2("/pods/router", "400000 100000")
    groups.v2("/pods/router/main", "max 100000")
    groups.within("0::/pods/router/main")
    assert groups.quota() == 2.0


def test_hierarchies_of_both_versions_may_stand_side_by_side(groups: Groups) -> None:
    groups.v2("/pods", "400000 100000")
    groups.v1("/pods", "150000")
    groups.within("4:cpu:/pods", "0::/pods")
    assert groups.quota() == 1.5


@pytest.mark.parametrize("cpu_max", ["max 100000", "", None])
def test_without_a_limit_there_is_no_version_2_quota(groups: Groups, cpu_max: str | None) -> None:
    groups.v2("/pods", cpu_max)
    groups.within("0::/pods")
    assert groups.quota() is None


@pytest.mark.parametrize(("quota", "period"), [("-1", "100000"), ("0", "100000"), (None, "100000"), ("100000", None)])
def test_without_a_limit_there_is_no_version_1_quota(groups: Groups, quota: str | None, period: str | None) -> None:
    groups.v1("/pods", quota, period)
    groups.within("4:cpu:/pods")
    assert groups.quota() is None


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path / "neither") is None


@pytest.mark.parametrize(
    ("cpu_max", "cpus"),
    [("10000 100000", 1), ("100000 100000", 1), ("100001 100000", 2), ("250000 100000", 3), ("9000 1000", 8)],
)
def test_fractions_are_rounded_up_and_the_affinity_is_the_limit(groups: Groups, cpu_max: str, cpus: int) -> None:
    groups.v2("/", cpu_max)
    groups.within("0::/")
    assert groups.cpus() == cpus


def test_without_a_quota_the_affinity_counts(groups: Groups) -> None:
    assert groups.cpus() == 8


def test_systems_without_affinities_count_their_cpus(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert groups.cpus() == 1


def test_this_machine_has_at_least_one() -> None:
    assert available_cpus() >= 1
