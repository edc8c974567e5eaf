"""`azureml-fe local`: a router and its replicas on one machine, configured by one file.

Contains: loading the file and applying its changes. Does not contain: routing (`supervisor`), replicas
(`cluster.local`), and what this has in common with `--peer` (`foreground`).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

import uvloop

from router.cli.dynamic import make_local_dynamic_config
from router.cli.foreground import ForegroundRouter
from router.cli.joining import JoiningRouter, JoiningSources
from router.cli.run import bind_peer_listener
from router.cli.trial import Trial, trial_of
from router.cluster.local import example_path
from router.cluster.local.cluster import LocalCluster
from router.cluster.local.config_file import LocalConfig
from router.cluster.local.service_files import FileIdentity, ServiceFiles
from router.config.dynamic import NO_DYNAMIC_SETTINGS, DynamicSettings
from router.config.router import SourcedSettings, environment_name, load_sourced_settings
from router.config.schema import ErrorCollector, SettingsError
from router.dynamic.follower import DynamicConfig
from router.model.services import Service, Version, VersionKey
from router.peers.dialer import PeerAddress
from router.supervisor.readiness import ClusterStatus
from router.telemetry import log
from router.workers.listeners import check_client_listeners

_log = logging.getLogger("router.cli")

RETRY_SECONDS = 1.0
"""Time between two attempts to apply a changed file, if the error is not one of the file."""


def run_local(files: ServiceFiles | None, flags: Mapping[str, object], peers: Sequence[PeerAddress] = ()) -> int:
    """Run a router until a signal arrives. Return the exit code.

    With `peers`, the router joins the routers that listen at these addresses: all serve the same services and share
    slots. Raises SettingsError or OSError if the router cannot start.
    """
    if peers:
        joining = JoiningSources(flags)
        settings = joining.load().settings
        log.configure(settings.log_level, sys.stderr, human=sys.stderr.isatty())
        dynamic = make_local_dynamic_config(settings)
        if dynamic is not None:
            asyncio.run(dynamic.load(joining.check))
            settings = joining.load(dynamic.settings).settings
            log.set_level(settings.log_level)
        port = settings.peer_port if _is_set("peer_port", flags) else 0
        peer_socket = bind_peer_listener(settings.host, port)
        return uvloop.run(JoiningRouter(peers, joining, dynamic, peer_socket, sys.stderr).run())
    files = files or ServiceFiles([example_path()])
    identity = files.identity()
    sources = LocalSources(files, flags)
    config, configured = sources.load()
    log.configure(configured.settings.log_level, sys.stderr, human=sys.stderr.isatty())
    dynamic = make_local_dynamic_config(configured.settings)
    if dynamic is not None:
        asyncio.run(dynamic.load(sources.check))
        config, configured = sources.load(dynamic.settings)
        log.set_level(configured.settings.log_level)
    settings = configured.settings
    try:
        peer_socket = bind_peer_listener(settings.host, settings.peer_port)
    except OSError:
        if _is_set("peer_port", flags, config.router):
            raise
        peer_socket = bind_peer_listener(settings.host, 0)  # another router uses the default port
    errors = ErrorCollector()
    with errors.collect():
        check_client_listeners(settings)
        router = LocalRouter(sources, identity, config, configured, dynamic, peer_socket, sys.stderr)
    errors.raise_errors(config.router.locations)
    return uvloop.run(router.run())


class LocalSources:
    """The sources of the settings of a local router: its files, the dynamic configuration, environment and flags."""

    def __init__(self, files: ServiceFiles, flags: Mapping[str, object]) -> None:
        self.files = files
        self._flags = flags

    def load(self, dynamic: DynamicSettings = NO_DYNAMIC_SETTINGS) -> tuple[LocalConfig, SourcedSettings]:
        """Return the content of the files and the settings. Raises `SettingsError`.

        A large file takes seconds, so call this in a thread while the router runs. A collection of garbage would stop
        the event loop for several 100 ms: the parser creates a million objects for some thousand services. They need
        none, as they have no cycles.
        """
        gc.disable()
        try:
            config = self.files.load(environ=os.environ, flags=self._flags, dynamic=dynamic)
            file, flags = config.router, self._flags
            return config, load_sourced_settings(environ=os.environ, file=file, dynamic=dynamic.router, flags=flags)
        finally:
            gc.enable()

    def check(self, dynamic: DynamicSettings) -> None:
        """Raise `SettingsError` if a dynamic configuration contradicts the other sources."""
        _, (settings, _) = self.load(dynamic)
        check_client_listeners(settings)


class LocalRouter:
    """A router that serves the services of a file."""

    def __init__(
        self,
        sources: LocalSources,
        identity: FileIdentity,
        config: LocalConfig,
        configured: SourcedSettings,
        dynamic: DynamicConfig | None,
        peer_socket: socket.socket,
        out: TextIO,
    ) -> None:
        """`identity` is that of the files when `config` was loaded. Raises the errors of `ForegroundRouter`."""
        settings = configured.settings
        self._sources = sources
        self._dynamic = dynamic
        self._dynamic_settings = NO_DYNAMIC_SETTINGS if dynamic is None else dynamic.settings
        self._reloading = asyncio.Lock()
        self._files = sources.files
        self._applied = self._last_polled = identity
        self._retry_at = math.inf
        self._last_error = ""
        self._config = config
        self._cluster = LocalCluster(
            config,
            state_dir=settings.state_dir,
            scoring_prefix=settings.scoring_prefix,
            drain=self._drain_replica,
            has_requests=self._has_requests,
            logs_exception_messages=settings.log_exception_messages,
            log_environment=self._log_environment,
        )
        self._router = ForegroundRouter(
            configured,
            self._cluster,
            peer_socket,
            out,
            has_stored_key=self._has_stored_key,
            find_trial=self._find_trial,
            status=ClusterStatus(problems=self._cluster.problems, probes=self._cluster.probes),
            dynamic=dynamic,
        )

    async def run(self) -> int:
        """Serve until a signal arrives. Return the exit code."""
        return await self._router.run(self._start, self._poll)

    async def _start(self) -> None:
        router = self._router
        router.supervisor.set_token_issuers(self._config.token_issuers)
        await router.supervisor.start()
        await router.supervisor.join(router.mesh)
        router.console.show_serving(str(self._files), self._files.paths[0], router.settings)
        router.show_join_command()
        self._warn_of_losses()
        if self._dynamic is not None:
            router.spawn(self._dynamic.run(self._apply_dynamic))

    def _warn_of_losses(self) -> None:
        for loss in self._config.losses:
            log.event(_log, logging.WARNING, "key without effect", text=loss, loss=loss)

    async def _drain_replica(self, replica_id: str, timeout_seconds: float) -> bool:
        return await self._router.supervisor.serving.wait_until_drained(replica_id, timeout_seconds)

    def _log_environment(self, key: VersionKey, version: Version) -> Mapping[str, str]:
        return self._router.supervisor.log_environment(key, version)

    def _has_requests(self, replica_id: str) -> bool:
        return self._router.supervisor.serving.is_busy(replica_id)

    def _has_stored_key(self, service: str) -> bool:
        from_file = self._config.services.get(service)
        return from_file is not None and from_file.primary_key is None

    def _find_trial(self, service: Service) -> Trial:
        return trial_of(self._config.launches.get((service.name, service.default_version.name)))

    async def _poll(self) -> None:
        await self._poll_file()
        self._router.console.update()

    async def _poll_file(self) -> None:
        """Reload a changed file after two polls without a further change, since it may be incomplete before."""
        before, self._last_polled = self._last_polled, self._files.identity()
        if before == self._last_polled != self._applied:
            self._applied = before
            self._last_error = ""
            await self._reload()
        elif time.monotonic() >= self._retry_at:
            await self._reload()

    async def _reload(self) -> None:
        """Apply the changed file. If it is invalid, log the error and keep the previous configuration.

        Do the same if generated keys cannot be stored, for example because the disk is full, but try again later.
        """
        activity = self._router.supervisor.activity
        self._retry_at = math.inf
        try:
            configured = await self._apply()
        except (SettingsError, OSError) as error:
            if isinstance(error, OSError):
                self._retry_at = time.monotonic() + RETRY_SECONDS
            if str(error) != self._last_error:
                self._last_error = str(error)
                activity.record_config_error(time.time(), str(error))
                log.event(
                    _log, logging.ERROR, "changed file rejected, keeping the previous one",
                    text=f"changed file rejected, keeping the previous one:\n{error}", error=str(error),
                )  # fmt: skip
            return
        self._last_error = ""
        activity.record_config_applied()
        log.event(_log, logging.INFO, "changed file applied", file=str(self._files))
        self._warn_of_losses()
        self._router.supervisor.change_settings(configured)

    async def _apply_dynamic(self, dynamic: DynamicSettings) -> None:
        self._router.supervisor.change_settings(await self._apply(dynamic))

    async def _apply(self, changed: DynamicSettings | None = None) -> SourcedSettings:
        """Apply services and token issuers of the file, with the dynamic configuration if that has changed or else with
        the one in effect. Return the settings of the router. Raises `SettingsError` and OSError, before any change."""
        async with self._reloading:
            dynamic = self._dynamic_settings if changed is None else changed
            config, configured = await asyncio.to_thread(self._sources.load, dynamic)
            await self._cluster.apply(config)
            self._config, self._dynamic_settings = config, dynamic
            self._router.supervisor.set_token_issuers(config.token_issuers)
            return configured


def _is_set(name: str, *sources: Mapping[str, object]) -> bool:
    """True if a router setting is set in one of `sources` or in the environment, even to its default."""
    return any(name in source for source in sources) or environment_name(name) in os.environ
