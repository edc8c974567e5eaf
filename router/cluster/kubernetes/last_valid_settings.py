"""The last valid annotations of Deployments. No I/O, no clock.

While the annotations of a Deployment are invalid, its last valid ones apply. Each router pod has those that it has
seen, but a pod that starts later has seen none. So the leader stores them in a ConfigMap while they apply, and all pods
use what is stored there (`stored_content`, `set_stored`). If a pod has seen others, the later ones apply, by the
resource version of the Deployment that had them.

The stored settings have no secrets: an annotation that would be one is invalid (`annotations`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import orjson

from router.cluster.kubernetes.annotations import ParsedAnnotations, format_annotations, parse_annotations
from router.cluster.kubernetes.objects import Deployment

MAX_STORED_BYTES = 500_000
"""Maximum size of all stored settings together, in bytes. A ConfigMap may have 1 MiB."""


class _Valid(NamedTuple):
    """Valid annotations, and the resource version of the Deployment that has had them last."""

    resource_version: int
    annotations: ParsedAnnotations


class LastValidSettings:
    """The last valid annotations of each Deployment, by its uid."""

    def __init__(self) -> None:
        self._seen: dict[str, _Valid] = {}
        self._stored: dict[str, _Valid] = {}

    def record(self, deployment: Deployment, annotations: ParsedAnnotations) -> None:
        """Record that all annotations of a Deployment are valid."""
        self._seen[deployment.uid] = _Valid(_version(deployment.resource_version), annotations)

    def forget(self, uid: str) -> None:
        """Forget a Deployment that was removed."""
        self._seen.pop(uid, None)

    def of(self, deployments: Iterable[Deployment]) -> dict[str, ParsedAnnotations]:
        """Return the last valid annotations of these Deployments, by uid. Those that have never had any are missing."""
        valid = {each.uid: self._last(each.uid) for each in deployments}
        return {uid: last.annotations for uid, last in valid.items() if last is not None}

    def _last(self, uid: str) -> _Valid | None:
        seen, stored = self._seen.get(uid), self._stored.get(uid)
        if seen is None or stored is None:
            return seen or stored
        return seen if seen.resource_version > stored.resource_version else stored

    # The ConfigMap: its keys are uids.

    def set_stored(self, content: Mapping[str, str]) -> set[str]:
        """Set the content of the ConfigMap. Return the uids of the Deployments whose entry has changed. A malformed
        entry is ignored."""
        before, self._stored = self._stored, {}
        for uid, text in content.items():
            entry = _decode(text)
            if entry is not None:
                self._stored[uid] = entry
        return {uid for uid in before.keys() | self._stored.keys() if before.get(uid) != self._stored.get(uid)}

    def stored_content(self, invalid: Iterable[Deployment]) -> dict[str, str]:
        """Return the content of the ConfigMap that has the last valid settings of these Deployments, those with invalid
        annotations. Beyond `MAX_STORED_BYTES`, those of the youngest Deployments are missing."""
        content: dict[str, str] = {}
        size = 0
        for deployment in sorted(invalid, key=lambda each: (each.created_at, each.uid)):
            last = self._last(deployment.uid)
            if last is None:
                continue
            text = _encode(deployment, last)
            size += len(deployment.uid) + len(text.encode())
            if size > MAX_STORED_BYTES:
                break
            content[deployment.uid] = text
        return content


def _version(resource_version: str) -> int:
    return int(resource_version) if resource_version.isdigit() else 0


def _encode(deployment: Deployment, last: _Valid) -> str:
    fields = {
        "deployment": f"{deployment.namespace}/{deployment.name}",
        "service": deployment.service,
        "resourceVersion": str(last.resource_version),
        "annotations": format_annotations(last.annotations),
    }
    return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS).decode()


def _decode(text: str) -> _Valid | None:
    """Return an entry; None if it is malformed. A setting that this release does not accept is dropped."""
    try:
        fields = orjson.loads(text)
        labels = tuple(sorted((str(name), str(value)) for name, value in fields["annotations"].items()))
        annotations, _ = parse_annotations(str(fields["service"]), labels)
        return _Valid(_version(str(fields["resourceVersion"])), annotations)
    except (ValueError, KeyError, TypeError, AttributeError):  # a `SettingsError` is a ValueError
        return None
