"""The messages between the supervisor and the collector over their channel. Data only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from router.collection.events import EventKey
from router.config.router import RouterSettings
from router.model.data_collection import DataCollector
from router.model.services import VersionKey

# Supervisor to collector.


class ConfigureCollector(NamedTuple):
    """The settings of the collector. This is always the first message."""

    settings: RouterSettings
    instance: str  # in the names of its files, unique
    human_log: bool


class CollectorsUpdate(NamedTuple):
    """The complete settings of all versions that collect data."""

    collectors: Mapping[VersionKey, DataCollector]


class LogSources(NamedTuple):
    """How the replicas whose entry scripts log are recognized: by the token of a version, or by their address."""

    tokens: Mapping[str, VersionKey]
    hosts: Mapping[str, VersionKey]


class WorkersEnded(NamedTuple):
    """These worker processes have ended. All that they have sent is in the socket."""

    pids: frozenset[int]


class StopCollector(NamedTuple):
    """Store what is left within `seconds`, then exit. All workers have ended."""

    seconds: float


# Collector to supervisor.


class CollectorReport(NamedTuple):
    """Totals since the start of the collector. Sent twice a second, and at its end."""

    events: Counter[EventKey]
    sizes: Counter[EventKey]
    truncated: Counter[EventKey]
    dropped: Counter[tuple[str, str, str]]  # by service, version and reason
    failures: Counter[str]  # by reason
    unstored: Counter[EventKey]  # accepted, and neither stored nor dropped
    buffered_bytes: int
    lag_seconds: float
    problem: str  # of the storage now; "" if there is none
