"""What a changed configuration causes: nothing for unchanged services, and no long turn of the event loop."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from router.cluster.local import cluster as cluster_module
from router.cluster.local.cluster import LocalCluster
from router.cluster.local.config_change import change_between, with_keys
from router.cluster.local.config_file import LocalConfig
from router.cluster.local.key_store import KeyStore
from router.cluster.local.private_file import PrivateFile
from tests.cluster.local.helpers import RecordingListener, config_of

COUNT = 500


def config_with(directory: Path, count: int, *, text: str = "", **settings: str) -> LocalConfig:
    """Return a configuration with `count` services without replicas. `settings` has further settings by service."""
    lines = ["services:"]
    for number in range(count):
        name = f"s{number}"
        lines.append(f"  {name}: {{command: [x, '{{port}}'], autoscale_min_replicas: 0{settings.get(name, '')}}}")
    return config_of(directory, "\n".join([*lines, text]))


class Work:
    """Counts file accesses, and updates of versions by turn of the event loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = self.writes = self.turn = 0
        self.updates: Counter[int] = Counter()
        read, write, update = PrivateFile.read, PrivateFile.write, cluster_module._LocalVersion.update

        def counting_read(file: PrivateFile) -> bytes | None:
            self.reads += 1
            return read(file)

        def counting_write(file: PrivateFile, text: str) -> None:
            self.writes += 1
            write(file, text)

        def counting_update(version: Any, *arguments: Any) -> None:
            self.updates[self.turn] += 1
            update(version, *arguments)

        monkeypatch.setattr(PrivateFile, "read", counting_read)
        monkeypatch.setattr(PrivateFile, "write", counting_write)
        monkeypatch.setattr(cluster_module._LocalVersion, "update", counting_update)

    async def of(self, cluster: LocalCluster, config: LocalConfig) -> tuple[int, int, int]:
        """Apply a configuration; return the numbers of reads, writes and updated versions."""
        self.reads = self.writes = 0
        self.updates.clear()
        applying = asyncio.ensure_future(cluster.apply(config))
        while not applying.done():
            self.turn += 1
            await asyncio.sleep(0)
        await applying
        return self.reads, self.writes, self.updates.total()


async def test_work_is_proportional_to_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    cluster, listener = LocalCluster(config_with(tmp_path, 1), state_dir=tmp_path / "state"), RecordingListener()
    reports: list[int] = []
    monkeypatch.setattr(listener, "services_changed", lambda services: reports.append(len(services)))
    await cluster.start(listener)
    try:
        assert await work.of(cluster, config_with(tmp_path, COUNT)) == (2, 2, COUNT - 1)  # keys, and names of services
        assert max(work.updates.values()) <= cluster_module._VERSIONS_PER_SLICE
        assert await work.of(cluster, config_with(tmp_path, COUNT, text="# a comment")) == (1, 0, 0)
        assert reports == [1, COUNT]
        changed = config_with(tmp_path, COUNT, s7=", max_queue_length: 3")
        assert await work.of(cluster, changed) == (1, 0, 1)
        assert reports == [1, COUNT, COUNT]
        relaunched = config_with(tmp_path, COUNT, s7=", max_queue_length: 3", s8=", readiness_path: /ready")
        assert await work.of(cluster, relaunched) == (1, 0, 1)
        assert reports == [1, COUNT, COUNT]
        assert await work.of(cluster, config_with(tmp_path, COUNT - 1)) == (1, 0, 2)
        assert reports == [1, COUNT, COUNT, COUNT - 1]
    finally:
        await cluster.stop()


async def test_regenerated_key_updates_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "POLL_SECONDS", 0.01)
    cluster, listener = LocalCluster(config_with(tmp_path, 3), state_dir=tmp_path / "state"), RecordingListener()
    await cluster.start(listener)
    try:
        work = Work(monkeypatch)
        before = listener.services
        key = KeyStore(tmp_path / "state").regenerate("s1", "primary")
        await listener.wait_until(lambda: listener.services["s1"].primary_key == key)
        assert work.updates.total() == 0
        assert [listener.services[name] is before[name] for name in ("s0", "s1", "s2")] == [True, False, True]
    finally:
        await cluster.stop()


async def test_unreadable_keys_are_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "POLL_SECONDS", 0.01)
    cluster, listener = LocalCluster(config_with(tmp_path, 1), state_dir=tmp_path / "state"), RecordingListener()
    await cluster.start(listener)
    try:
        work = Work(monkeypatch)
        (tmp_path / "state" / "keys.json").write_text("broken")
        while work.reads < 5:
            await asyncio.sleep(0.01)
        assert len(listener.fields_of("keys cannot be read, the previous ones stay valid")) == 1
    finally:
        await cluster.stop()


async def test_configurations_are_applied_one_after_the_other(tmp_path: Path) -> None:
    cluster, listener = LocalCluster(config_with(tmp_path, 1), state_dir=tmp_path / "state"), RecordingListener()
    await cluster.start(listener)
    try:
        await asyncio.gather(*(cluster.apply(config_with(tmp_path, count)) for count in (100, 120, 110)))
        assert len(listener.services) == 110
        assert sorted(listener.replicas) == sorted((f"s{number}", "default") for number in range(120))
    finally:
        await cluster.stop()


def test_change_names_what_differs(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    before = config_with(tmp_path, 4)
    after = config_with(tmp_path, 3, s1=", max_queue_length: 9", s2=", primary_key: a-key-of-the-file")
    services_before, services = with_keys(before.services, store), with_keys(after.services, store)
    change = change_between(services_before, services, before.launches, after.launches)
    assert list(change.versions) == [("s3", "default"), ("s1", "default")]
    assert change.versions["s3", "default"] is None
    assert change.changes_services
    assert change.services["s0"] is services_before["s0"]
    assert change.services == services
    same = change_between(services, with_keys(after.services, store), after.launches, after.launches)
    assert (same.changes_services, same.versions) == (False, {})
    keys_only = change_between(services | {"s0": services_before["s3"]}, services, after.launches, after.launches)
    assert keys_only.changes_services
