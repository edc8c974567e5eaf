"""The local cluster: the services of a configuration file, with replicas as processes or at fixed addresses.

Contains: `LocalCluster`, which creates the versions in the file and reports them. Does not contain: starting, probing
and stopping replicas (`process_replicas`, `static_replicas`), reading the file (`config_file`), and detecting that it
changed (`cli`).
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from router.cluster import ClusterListener
from router.cluster.local.config_change import ConfigChange, change_between, with_keys
from router.cluster.local.config_file import LocalConfig
from router.cluster.local.context import (
    BackgroundTasks,
    DrainReplica,
    HasRequestsInFlight,
    LocalContext,
    LogEnvironment,
)
from router.cluster.local.key_store import KeyStore
from router.cluster.local.known_services import KnownServices
from router.cluster.local.launch import LaunchSettings
from router.cluster.local.process_replicas import ProcessReplicas
from router.cluster.local.program import check_server_installed
from router.cluster.local.replica_process import PortAllocator
from router.cluster.local.static_replicas import StaticReplicas
from router.config.listener_settings import SCORING_PREFIXES
from router.config.polling import POLL_SECONDS
from router.config.schema import SettingsError
from router.model.problems import Problem
from router.model.replica_health import ProbeReport
from router.model.services import DEFAULT_VERSION_NAME, Replica, Service, Version, VersionKey

_VERSIONS_PER_SLICE = 20
"""Number of versions that are updated in one turn of the event loop. An update takes up to 0.2 ms."""

_OnReplicas = Callable[[VersionKey, tuple[Replica, ...]], None]
_OnRetired = Callable[[VersionKey], None]


async def _drains_at_once(replica_id: str, timeout_seconds: float) -> bool:
    return True


def _has_no_requests(replica_id: str) -> bool:
    return False


def _logs_nothing(key: VersionKey, version: Version) -> Mapping[str, str]:
    return {}


class LocalCluster:
    """The `Cluster` of one configuration file. It runs in one event loop."""

    def __init__(
        self,
        config: LocalConfig,
        *,
        state_dir: Path,
        host: str = "127.0.0.1",
        scoring_prefix: str = SCORING_PREFIXES["v1"],
        drain: DrainReplica = _drains_at_once,
        has_requests: HasRequestsInFlight = _has_no_requests,
        clock: Callable[[], float] = time.monotonic,
        logs_exception_messages: bool = False,
        log_environment: LogEnvironment = _logs_nothing,
    ) -> None:
        """`state_dir` is the directory for keys, logs and models. Replicas listen on `host`.
        `scoring_prefix` is the path of all services, for replicas that want to know theirs.

        `drain` is awaited before a replica that may have requests is stopped. While `has_requests` returns True, a
        replica may respond late to probes. `logs_exception_messages` is the router's setting `log_exception_messages`.
        `log_environment` returns the variables with which the entry script of a replica logs data.
        """
        self._config = config
        self._known_services = KnownServices(state_dir)
        self._keys = KeyStore(state_dir, warn=lambda text: self._notify(None, logging.WARNING, text))
        self._tasks = BackgroundTasks(self._notify)
        numbers = itertools.count(1)
        self._context = LocalContext(
            host=host,
            scoring_prefix=scoring_prefix,
            state_dir=state_dir,
            ports=PortAllocator(host),
            tasks=self._tasks,
            notify=self._notify,
            drain=drain,
            has_requests=has_requests,
            clock=clock,
            logs_exception_messages=logs_exception_messages,
            log_environment=log_environment,
            new_id=lambda key: f"{_id_prefix(key)}-{next(numbers)}",
        )
        self._versions: dict[VersionKey, _LocalVersion] = {}
        self._listener: ClusterListener | None = None
        self._check_task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._services: Mapping[str, Service] = {}  # as reported, with keys
        self._apply_lock = asyncio.Lock()
        self._keys_error = ""  # the last one, until the keys can be read

    async def start(self, listener: ClusterListener) -> None:
        """Report the services and start their initial replicas, without waiting for them.

        Raises `SettingsError` if launch settings or the keys file cannot be used, and OSError if the state directory
        cannot be used.
        """
        self._listener = listener
        await self.apply(self._config)
        self._check_task = self._tasks.start(self._check_periodically())

    async def apply(self, config: LocalConfig) -> None:
        """Apply a changed configuration, without waiting for the effects.

        Changed service settings restart no process. Changed launch settings replace the replicas of a version one by
        one: a new replica is ready before an old one is drained and stopped. The replicas of a removed version are
        drained and stopped. Does nothing once `stop` was called. Raises the errors of `start`, before any change.

        The event loop is not blocked by many services: files are read and services compared in a thread, and versions
        are updated in slices.
        """
        async with self._apply_lock:
            change = await asyncio.to_thread(self._change_to, config)
            if self._is_stopping:
                return
            self._config = config
            self._report_services(change)
            for number, (key, version) in enumerate(change.versions.items(), start=1):
                self._update_version(key, version, config.launches.get(key))
                if number % _VERSIONS_PER_SLICE == 0:
                    await asyncio.sleep(0)
                    if self._is_stopping:
                        return

    def _change_to(self, config: LocalConfig) -> ConfigChange:
        """Return what `config` changes. Called in a thread. Raises the errors of `start`."""
        for key, launch in config.launches.items():
            check_server_installed(key, launch)
        services = with_keys(config.services, self._keys)
        self._known_services.add(services)
        launches_before = self._config.launches if self._services else {}
        return change_between(self._services, services, launches_before, config.launches)

    def _report_services(self, change: ConfigChange) -> None:
        if change.changes_services and self._listener is not None:
            self._services = change.services
            self._listener.services_changed(change.services)

    def _update_version(self, key: VersionKey, version: Version | None, launch: LaunchSettings | None) -> None:
        """Apply the settings of a version; None if it was removed."""
        if version is None or launch is None:
            if key in self._versions:
                self._versions[key].retire()
            return
        if key not in self._versions:
            self._versions[key] = _LocalVersion(
                key, version, launch, self._context, on_replicas=self._report, on_retired=self._forget
            )
        local = self._versions[key]
        local.update(version, launch)
        if local.is_scaled and self._listener is not None:
            self._listener.replicas_changed_externally(key, local.wanted)

    def scale(self, key: VersionKey, replicas: int, remove: Collection[str] = ()) -> None:
        """See `Cluster`. Does nothing for a version with fixed addresses, for a version that the configuration no
        longer has, and once `stop` was called."""
        if replicas < 0:
            raise ValueError(f"replicas of {key} = {replicas}: must be at least 0")
        if key in self._versions and not self._is_stopping:
            self._versions[key].scale(replicas, remove)

    def report_ejection(self, key: VersionKey, replica_id: str, reason: str) -> None:
        """See `Cluster`. Does nothing: the worker has logged it."""

    def report_server_error(self, key: VersionKey, replica_id: str, status: int) -> None:
        """See `Cluster`. Logs the exception in the output of the replica."""
        if key in self._versions:
            self._versions[key].report_server_error(replica_id, status)

    def problems(self) -> Iterator[Problem]:
        """Yield the reasons why replicas are not ready."""
        for replicas in self._versions.values():
            yield from replicas.problems()

    def probes(self, key: VersionKey) -> Mapping[str, ProbeReport]:
        """Return the last readiness probe of each replica of a version, by id."""
        version = self._versions.get(key)
        return {} if version is None else version.probes()

    async def stop(self) -> None:
        """Stop all processes without draining, and return when every process group has ended. If this is cancelled, as
        by a second Ctrl-C, it kills all processes."""
        self._is_stopping = True
        if self._check_task is not None:
            self._check_task.cancel()
        versions = list(self._versions.values())
        try:
            await asyncio.gather(*(version.stop() for version in versions))
        except asyncio.CancelledError:
            for version in versions:
                version.kill()
            raise
        # The remaining tasks are probes, and drains of fixed addresses.
        self._tasks.cancel()
        await self._tasks.join()

    def _report(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        if self._listener is not None:
            self._listener.replicas_changed(key, replicas)

    def _forget(self, key: VersionKey) -> None:
        self._versions.pop(key, None)

    def _notify(
        self, key: VersionKey | None, level: int, message: str, *, text: str | None = "", **fields: object
    ) -> None:
        if self._listener is not None:
            self._listener.notice(key, level, message, text=text, **fields)

    async def _check_periodically(self) -> None:
        """Truncate large logs, and reload keys that a command has regenerated."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for version in self._versions.values():
                version.truncate_logs()
            if self._keys.has_changed():
                await self._reload_keys()

    async def _reload_keys(self) -> None:
        async with self._apply_lock:
            try:
                change = await asyncio.to_thread(self._change_to, self._config)
            except (SettingsError, OSError) as error:
                if str(error) != self._keys_error:
                    self._keys_error = str(error)
                    message = "keys cannot be read, the previous ones stay valid"
                    self._notify(None, logging.ERROR, message, error=str(error))
                return
            self._keys_error = ""
            if not self._is_stopping:
                self._report_services(change)


class _LocalVersion:
    """All replicas of one version: processes or fixed addresses. After the launch method has changed, it has both until
    the old ones have drained."""

    def __init__(
        self,
        key: VersionKey,
        version: Version,
        launch: LaunchSettings,
        context: LocalContext,
        *,
        on_replicas: _OnReplicas,
        on_retired: _OnRetired,
    ) -> None:
        """`on_replicas` is called when the replicas change, `on_retired` when a retired version has no more
        replicas."""
        self._key = key
        self._on_replicas = on_replicas
        self._on_retired = on_retired
        self._reported: tuple[Replica, ...] | None = None
        self.is_scaled = True
        """False if the version has fixed addresses."""
        self._is_retired = False
        self._processes = ProcessReplicas(key, version, launch, context, self._on_change)
        self._static = StaticReplicas(key, version, launch, context, self._on_change)

    @property
    def wanted(self) -> int:
        """The wanted number of processes. During a replacement there is one more."""
        return self._processes.wanted

    def update(self, version: Version, launch: LaunchSettings) -> None:
        """Apply changed settings, and start replicas until there is the minimum number."""
        self._is_retired = False
        self.is_scaled = not launch.addresses
        self._processes.update(version, launch)
        self._static.update(version, launch)
        # Surplus replicas are removed by `scale`, whose caller knows which ones are idle.
        fewest = version.autoscale_min_replicas if version.num_replicas is None else version.num_replicas
        self._processes.set_wanted(max(fewest, self._processes.wanted) if self.is_scaled else 0)
        self._on_change()

    def scale(self, replicas: int, remove: Collection[str]) -> None:
        """Set the wanted number of processes."""
        if self.is_scaled and not self._is_retired:
            self._processes.set_wanted(replicas, remove)
            self._on_change()

    def retire(self) -> None:
        """Drain and stop all replicas."""
        self._is_retired = True
        self._static.retire()
        self._processes.set_wanted(0)
        self._on_change()

    def report_server_error(self, replica_id: str, status: int) -> None:
        """Report the exception in the output of a process, once."""
        self._processes.report_server_error(replica_id, status)

    def problems(self) -> list[Problem]:
        """Reasons why replicas are not ready."""
        return [] if self._is_retired else [*self._static.problems(), *self._processes.problems()]

    def probes(self) -> dict[str, ProbeReport]:
        """The last readiness probe of each replica, by id."""
        return self._static.probes() | self._processes.probes()

    def truncate_logs(self) -> None:
        """Truncate the logs of all processes that are too large."""
        self._processes.truncate_logs()

    async def stop(self) -> None:
        """Stop all replicas without draining."""
        self._static.stop()
        self._processes.set_wanted(0)
        self._on_change()
        await self._processes.stop()

    def kill(self) -> None:
        """Kill all processes."""
        self._processes.kill()
        self._on_change()

    def _on_change(self) -> None:
        replicas = (*self._static.replicas(), *self._processes.replicas())
        if replicas != self._reported:
            self._reported = replicas
            self._on_replicas(self._key, replicas)
        if self._is_retired and not replicas:
            self._on_retired(self._key)


def _id_prefix(key: VersionKey) -> str:
    service, version = key
    return service if version == DEFAULT_VERSION_NAME else f"{service}-{version}"
