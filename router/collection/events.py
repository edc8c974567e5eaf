"""Collected events as lines of JSON, and the paths of the files that they belong to. No I/O.

    modelDataCollector/ENDPOINT/DEPLOYMENT/COLLECTION/yyyy/MM/dd/HH/INSTANCE.jsonl
    {"specversion": "1.0", "id": ..., "type": "azureml.inference.request", "data": ..., ...}

Format and layout are those that Azure ML documents for data collection (v2), and that its model monitoring reads. An
event is a CloudEvent 1.0 with extension attributes. Its `data` is JSON itself if the body is JSON, text if the body is
text, else the address of a blob with the body, with `datainblob`. An attribute `truncated` marks an event whose body
was not collected completely; it has no `data`. `statuscode` is an addition of this router.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

import orjson

from router.model.data_collection import DataCollector
from router.model.services import VersionKey

MAX_INLINE_BYTES = 4 * 2**20
"""Maximum size of a body within a line. A larger one is a blob of its own."""

_FOLDER_DEPTH = {"year": 1, "month": 2, "day": 3, "hour": 4, "minute": 5}
_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")


class EventKey(NamedTuple):
    """What events are counted by."""

    service: str
    version: str
    collection: str


class BlobAddress(NamedTuple):
    """Where the body of an event is, which is not within the line."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event without its body. `time` is in seconds since the epoch. `total` is the size of the body, None if its end
    has not passed. `extra` are further attributes."""

    key: EventKey
    time: float
    request_id: str
    content_type: str
    size: int
    total: int | None
    extra: Mapping[str, object] = field(default_factory=dict)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


class Layout:
    """Paths and sources of one router pod. `instance` is unique among all collector processes that use a store."""

    def __init__(self, instance: str, workspace: str = "") -> None:
        self.instance = instance
        self._workspace = workspace.rstrip("/")

    def folder(self, key: EventKey, collector: DataCollector, time: float) -> str:
        """Return the folder of events of this time."""
        collection = collector.collection(key.collection)
        root = collection.path if collection is not None and collection.path else _root(key)
        when = datetime.fromtimestamp(time, UTC)
        parts = when.strftime("%Y %m %d %H %M").split()[: _FOLDER_DEPTH[collector.rolling_rate]]
        return "/".join((root, *parts))

    def source(self, key: VersionKey) -> str:
        """Return the attribute `source` of a version's events."""
        return f"{self._workspace}/onlineEndpoints/{endpoint_name(key[0])}/deployments/{key[1]}"


def _root(key: EventKey) -> str:
    return f"modelDataCollector/{endpoint_name(key.service)}/{key.version}/{key.collection}"


def endpoint_name(service: str) -> str:
    """Return the name of a service in paths; `team-a/iris` is `team-a.iris`, which is no other service's name."""
    return service.replace("/", ".")


def embedded(body: bytes) -> bytes | None:
    """Return a body as the JSON text of `data`; None if it is binary and must be a blob.

    JSON keeps its spelling, as numbers may have more digits than a parser keeps. Its line ends become spaces: they
    cannot be within a string (RFC 8259 section 7).
    """
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    else:
        return body.strip().translate(_LINE_ENDS)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else orjson.dumps(text)


def line(event: Event, source: str, data: bytes | BlobAddress | None) -> bytes:
    """Return the line of an event. `data` is the JSON text of its body; None if there is none."""
    attributes: dict[str, object] = {
        "specversion": "1.0",
        "id": event.id,
        "source": source,
        "type": f"azureml.inference.{event.key.collection}",
        "datacontenttype": event.content_type or _default_content_type(data),
        "time": _timestamp(event.time),
        "contentrange": _content_range(event.size, event.total),
        "correlationid": event.request_id,
        "xrequestid": event.request_id,
        **event.extra,
    }
    if isinstance(data, BlobAddress):
        attributes |= {"data": data.url, "datainblob": "true"}
        data = None
    text = orjson.dumps(attributes)
    return text + b"\n" if data is None else text[:-1] + b',"data":' + data + b"}\n"


def _default_content_type(data: bytes | BlobAddress | None) -> str:
    return "application/json" if isinstance(data, bytes) else "application/octet-stream"


def _timestamp(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(time * 1000) % 1000:03}Z"


def _content_range(size: int, total: int | None) -> str:
    """Return the range of a body that was collected (RFC 9110 section 14.4)."""
    length = "*" if total is None else str(total)
    return f"bytes 0-{size - 1}/{length}" if size else f"bytes */{length}"


def request_extra(method: str, path: str, headers: Sequence[tuple[str, str]]) -> dict[str, object]:
    """Return the attributes that only requests have."""
    return {"path": path, "method": method, **dict(headers)}
