"""Reads collected data as Azure ML documents it, without the router's code: folders by time, files of lines of JSON.

Contains: what any reader may rely on, as checks. Does not contain: what a test expects of a certain event.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_FILE = re.compile(
    r"modelDataCollector/(?P<endpoint>[^/]+)/(?P<deployment>[^/]+)/(?P<collection>[^/]+)/"
    r"(?P<time>[0-9]{4}(/[0-9]{2}){0,4})/(?P<instance>[^/]+)\.jsonl"
)
_TIME_PARTS = ("year", "month", "day", "hour", "minute")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{3})?Z")
_RANGE = re.compile(r"bytes (0-[0-9]+/([0-9]+|\*)|\*/([0-9]+|\*))")
_ATTRIBUTE = re.compile(r"[a-z0-9]{1,64}")  # CloudEvents 1.0, "Naming Conventions"


class StoredEvent(NamedTuple):
    """An event, and where it was stored."""

    endpoint: str
    deployment: str
    collection: str
    instance: str
    attributes: dict[str, Any]


def read_folder(root: Path) -> list[StoredEvent]:
    """Return all events in a folder."""
    return read_files((str(path.relative_to(root)), path.read_bytes()) for path in root.rglob("*.jsonl"))


def read_files(files: Iterable[tuple[str, bytes]], rolling: Mapping[str, str] | None = None) -> list[StoredEvent]:
    """Return the events of files, given their paths and contents. Each must match the documented layout and format.
    `rolling`: rolling rates of endpoints other than `hour`."""
    events = []
    for path, content in files:
        match = _FILE.fullmatch(path)
        assert match is not None, path
        assert content.endswith(b"\n"), path
        depth = _TIME_PARTS.index((rolling or {}).get(match["endpoint"], "hour")) + 1
        for line in content.splitlines():
            attributes = json.loads(line)
            check_event(attributes, match["collection"])
            assert re.split("[-T:]", attributes["time"])[:depth] == match["time"].split("/"), path
            source = f"/onlineEndpoints/{match['endpoint']}/deployments/{match['deployment']}"
            assert attributes["source"].endswith(source)
            events.append(
                StoredEvent(match["endpoint"], match["deployment"], match["collection"], match["instance"], attributes)
            )
    ids = [event.attributes["id"] for event in events]
    assert len(set(ids)) == len(ids), "a line was stored twice"
    return events


def check_event(attributes: dict[str, Any], collection: str) -> None:
    """Check the attributes that all events of a collection have."""
    assert attributes["specversion"] == "1.0"
    assert _UUID.fullmatch(attributes["id"])
    assert attributes["type"] == f"azureml.inference.{collection}"
    assert attributes["datacontenttype"]
    assert _TIME.fullmatch(attributes["time"])
    assert _RANGE.fullmatch(attributes["contentrange"]), attributes["contentrange"]
    assert attributes["correlationid"] == attributes["xrequestid"]
    assert all(_ATTRIBUTE.fullmatch(name) for name in attributes)
    if collection == "request":
        assert attributes["path"].startswith("/")
        assert attributes["method"].isupper()
    if "datainblob" in attributes:
        assert attributes["datainblob"] == "true"
        assert attributes["data"].rpartition("/")[2] == attributes["id"]
