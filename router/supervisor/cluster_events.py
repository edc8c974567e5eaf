"""Dispatches the reports of the cluster: services, replicas, and replica counts that other programs have set."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping

from router.admin.activity import Activity
from router.admin.timeline_recorder import TimelineRecorder
from router.model.services import Replica, Service, VersionKey
from router.scaling.loop import ControlLoop
from router.supervisor.service_changes import service_changes
from router.supervisor.state import ServingState
from router.telemetry.log import event
from router.telemetry.totals import CounterTotals

_log = logging.getLogger("router.supervisor")

_MAX_CHANGES = 100
"""Maximum number of changed services and versions of one report that are logged."""


class ClusterEvents:
    """The `ClusterListener` of a router."""

    def __init__(
        self,
        serving: ServingState,
        loop: ControlLoop,
        counters: CounterTotals,
        activity: Activity,
        recorder: TimelineRecorder,
    ) -> None:
        self._serving = serving
        self._loop = loop
        self._counters = counters
        self._activity = activity
        self._recorder = recorder

    def services_changed(self, services: Mapping[str, Service]) -> None:
        """See `ClusterListener`."""
        changes = list(itertools.islice(service_changes(self._serving.services, services), _MAX_CHANGES))
        self._serving.set_services(services)
        for change in changes:
            message = "settings of a service changed"
            event(_log, logging.INFO, message, exception=None, text="", **change.fields())
        self._activity.record_config_changes(time.time(), map(str, changes))
        self._counters.retain(self._serving.versions)
        self._activity.retain(self._serving.versions)
        self._recorder.retain(self._serving.versions)

    def replicas_changed(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        """See `ClusterListener`."""
        self._serving.set_replicas(key, replicas)

    def replicas_changed_externally(self, key: VersionKey, replicas: int) -> None:
        """See `ClusterListener`."""
        self._loop.replicas_changed_externally(key, replicas)

    def scaling_suspended(self, key: VersionKey, why: str | None) -> None:
        """See `ClusterListener`."""
        self._serving.suspend_scaling(key, why)

    def notice(
        self, key: VersionKey | None, level: int, message: str, *, text: str | None = "", **fields: object
    ) -> None:
        """See `ClusterListener`."""
        if key is not None:
            fields = {"service": key[0], "version": key[1], **fields}
        event(_log, level, message, exception=None, text=text, **fields)
