"""The cluster that is this machine: services of a local file, replicas as its processes.

Lives here: `LocalCluster`, which puts the versions of a file together and reports on them. Must not live here: the
life of a replica (`processes`, `addresses`), reading the file (`file`), noticing that it has changed (the
supervisor).
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from router.cluster import ClusterListener
from router.cluster.local.addresses import Addresses
from router.cluster.local.around import Around, Busy, Drain, Tasks
from router.cluster.local.file import Launch, LocalConfig
from router.cluster.local.keys import KeyStore
from router.cluster.local.processes import Processes
from router.cluster.local.program import check_can_run
from router.cluster.local.replica import Ports
from router.services import DEFAULT_VERSION_NAME, Replica, Service, SettingsError, Version, VersionKey

_TICK_SECONDS = 1.0

_Report = Callable[[VersionKey, tuple[Replica, ...]], None]
_Forget = Callable[[VersionKey], None]


async def _drains_at_once(replica_id: str, timeout_seconds: float) -> bool:
    return True


def _never_busy(replica_id: str) -> bool:
    return False


class LocalCluster:
    """A `Cluster` of processes. All of it runs in one event loop."""

    def __init__(
        self,
        config: LocalConfig,
        *,
        state_dir: Path,
        host: str = "127.0.0.1",
        drain: Drain = _drains_at_once,
        busy: Busy = _never_busy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`state_dir` gets keys, logs and models. Replicas listen on `host`. `drain(id, seconds)` is awaited before a
        replica that may have requests is stopped; `busy(id)` says whether one has, as it then may answer probes
        late."""
        self._config = config
        self._keys = KeyStore(state_dir, tell=lambda text: self._notice(None, logging.WARNING, text))
        self._tasks = Tasks(self._notice)
        numbers = itertools.count(1)
        self._around = Around(
            host=host,
            state_dir=state_dir,
            ports=Ports(host),
            tasks=self._tasks,
            notice=self._notice,
            drain=drain,
            busy=busy,
            clock=clock,
            new_id=lambda key: f"{_stem(key)}-{next(numbers)}",
        )
        self._versions: dict[VersionKey, _LocalVersion] = {}
        self._listener: ClusterListener | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self, listener: ClusterListener) -> None:
        """Report the services and start the replicas that each is to have at first; does not wait for them. Raises
        `SettingsError` when a launch or the keys file cannot be used."""
        self._listener = listener
        self.apply(self._config)
        self._ticking = self._tasks.begin(self._tick())

    def apply(self, config: LocalConfig) -> None:
        """Go by another file from now on, without waiting for it. Raises `SettingsError` or OSError before anything has
        changed.

        Changed settings touch no process. A changed launch replaces the replicas of its version one by one: a new one
        is ready before an old one is drained and stopped. A version that is gone is drained and stopped. Does nothing
        once `stop` has begun.
        """
        if self._stopping:
            return
        for key, launch in config.launches.items():
            check_can_run(key, launch)
        services = self._with_keys(config)
        self._config = config
        if self._listener is not None:
            self._listener.services_changed(services)
        versions = {
            (service.name, version.name): version for service in services.values() for version in service.versions
        }
        for key in [key for key in self._versions if key not in versions]:
            self._versions[key].retire()
        for key, version in versions.items():
            launch = config.launches[key]
            if key not in self._versions:
                self._versions[key] = _LocalVersion(key, version, launch, self._around, self._report, self._forget)
            self._versions[key].update(version, launch)

    def scale(self, key: VersionKey, replicas: int, remove: Collection[str] = ()) -> None:
        """See `Cluster`. Versions with fixed addresses are not scaled, nor is one that the file no longer has, nor any
        once `stop` has begun."""
        if replicas < 0:
            raise ValueError(f"replicas of {key} = {replicas}: must be at least 0")
        if key in self._versions and not self._stopping:
            self._versions[key].scale(replicas, remove)

    def problems(self) -> Iterator[str]:
        """What keeps replicas from being ready, in a line each."""
        for (service, version), replicas in self._versions.items():
            place = f"service {service}" if version == DEFAULT_VERSION_NAME else f"service {service}, version {version}"
            for problem in replicas.problems():
                yield f"{place}: {problem}"

    async def stop(self) -> None:
        """Stop all processes at once, without draining; on return none is left of any of their groups. When this is
        cancelled, as by an impatient user, all are killed."""
        self._stopping = True
        if self._ticking is not None:
            self._ticking.cancel()
        versions = list(self._versions.values())
        try:
            await asyncio.gather(*(version.stop() for version in versions))
        except asyncio.CancelledError:
            for version in versions:
                version.kill()
            raise
        # What is left are probes, and drains of addresses.
        self._tasks.cancel()
        await self._tasks.all_ended()

    def _with_keys(self, config: LocalConfig) -> dict[str, Service]:
        """The services, with generated keys where the file gives none. Who has one may score, or fetch a token."""
        services = dict(config.services)
        for name, service in services.items():
            if service.has_keys and not (service.primary_key and service.secondary_key):
                primary, secondary = self._keys.keys_for(name)
                services[name] = replace(
                    service,
                    primary_key=service.primary_key or primary,
                    secondary_key=service.secondary_key or secondary,
                )
        return services

    def _report(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        if self._listener is not None:
            self._listener.replicas_changed(key, replicas)

    def _forget(self, key: VersionKey) -> None:
        self._versions.pop(key, None)

    def _notice(self, key: VersionKey | None, level: int, message: str, **fields: object) -> None:
        if self._listener is not None:
            self._listener.notice(key, level, message, **fields)

    async def _tick(self) -> None:
        """What is worth a look now and then: sizes of logs, and keys that a command has made anew."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            for version in self._versions.values():
                version.cut_logs()
            if self._keys.changed():
                self._renew_keys()

    def _renew_keys(self) -> None:
        try:
            services = self._with_keys(self._config)
        except (SettingsError, OSError) as error:
            self._notice(None, logging.ERROR, "keys cannot be read, the former ones stay valid", error=str(error))
            return
        if self._listener is not None:
            self._listener.services_changed(services)


class _LocalVersion:
    """All replicas of one version: processes or addresses, and for a while both when its launch changes kind."""

    def __init__(
        self, key: VersionKey, version: Version, launch: Launch, around: Around, report: _Report, forget: _Forget
    ) -> None:
        """`report` is called when there are other replicas, `forget` when the last one of a retired version is gone."""
        self._key = key
        self._report = report
        self._forget = forget
        self._reported: tuple[Replica, ...] | None = None
        self._is_scaled = True
        self._processes = Processes(key, version, launch, around, self._changed)
        self._addresses = Addresses(key, version, launch, around, self._changed)
        self.retired = False

    def update(self, version: Version, launch: Launch) -> None:
        """Go by other settings from now on, and by the number of replicas that they allow."""
        self.retired = False
        self._is_scaled = not launch.addresses
        self._processes.update(version, launch)
        self._addresses.update(version, launch)
        self._processes.want(_bounded(version, self._processes.wanted) if self._is_scaled else 0)
        self._changed()

    def scale(self, replicas: int, remove: Collection[str]) -> None:
        """Have as many processes."""
        if self._is_scaled and not self.retired:
            self._processes.want(replicas, remove)
            self._changed()

    def retire(self) -> None:
        """Drain and end all."""
        self.retired = True
        self._addresses.retire()
        self._processes.want(0)
        self._changed()

    def problems(self) -> list[str]:
        """What keeps replicas from being ready, in a line each."""
        return [] if self.retired else [*self._addresses.problems(), *self._processes.problems()]

    def cut_logs(self) -> None:
        """Bound the logs of its processes."""
        self._processes.cut_logs()

    async def stop(self) -> None:
        """End all at once."""
        self._addresses.stop()
        self._processes.want(0)
        self._changed()
        await self._processes.stop()

    def kill(self) -> None:
        """End all with no grace."""
        self._processes.kill()
        self._changed()

    def _changed(self) -> None:
        replicas = (*self._addresses.replicas(), *self._processes.replicas())
        if replicas != self._reported:
            self._reported = replicas
            self._report(self._key, replicas)
        if self.retired and not replicas:
            self._forget(self._key)


def _bounded(version: Version, replicas: int) -> int:
    """What the settings make of a number of replicas; the autoscaler sets it from there."""
    if version.num_replicas is not None:
        return version.num_replicas
    return min(max(replicas, version.autoscale_min_replicas), version.autoscale_max_replicas)


def _stem(key: VersionKey) -> str:
    service, version = key
    return service if version == DEFAULT_VERSION_NAME else f"{service}-{version}"
