"""Parses the JSON objects of the API server into the records of `objects`. No I/O.

A field with a wrong type is treated as missing, so that one odd object cannot break the router. Texts that many pods
share (labels, names of controllers) are interned.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

import orjson

from router.cluster.kubernetes.objects import (
    ANNOTATION_PREFIX,
    DELETION_COST_ANNOTATION,
    SERVICE_ANNOTATION,
    SERVICE_LABEL,
    WAITING_RELEASES_ANNOTATION,
    ConfigMap,
    Deployment,
    Hpa,
    LabelRequirement,
    Labels,
    Lease,
    Pod,
    ReleaseClaim,
    Secret,
)

RawObject = Mapping[str, Any]

_KEY = re.compile(r"[\x21-\x7e]{1,256}", re.ASCII)
_NORMAL_WAITS = ("ContainerCreating", "PodInitializing")
_MAX_INTERNED_LABELS = 100_000


def mapping_in(raw: RawObject, field: str) -> RawObject:
    """Return the mapping in a field; an empty mapping if the field is missing or has another type."""
    value = raw.get(field)
    return value if isinstance(value, Mapping) else {}


def text_in(raw: RawObject, field: str) -> str:
    """Return the text in a field; "" if the field is missing or has another type."""
    value = raw.get(field)
    return value if isinstance(value, str) else ""


def parse_deployment(raw: RawObject) -> Deployment:
    """Parse a Deployment."""
    metadata, spec = mapping_in(raw, "metadata"), mapping_in(raw, "spec")
    selector = mapping_in(spec, "selector")
    replicas = spec.get("replicas", 1)
    annotations = mapping_in(metadata, "annotations")
    app = text_in(mapping_in(metadata, "labels"), SERVICE_LABEL)
    return Deployment(
        namespace=text_in(metadata, "namespace"),
        name=text_in(metadata, "name"),
        uid=text_in(metadata, "uid"),
        resource_version=text_in(metadata, "resourceVersion"),
        created_at=text_in(metadata, "creationTimestamp"),
        deleting="deletionTimestamp" in metadata,
        service=text_in(annotations, SERVICE_ANNOTATION) or app,
        app=app,
        annotations=tuple(
            sorted(
                (name.removeprefix(ANNOTATION_PREFIX), str(value))
                for name, value in annotations.items()
                if name.startswith(ANNOTATION_PREFIX)
            )
        ),
        replicas=replicas if isinstance(replicas, int) else 1,
        replicas_manager=_manager_of_replicas(metadata),
        match_labels=_labels(mapping_in(selector, "matchLabels")),
        match_expressions=tuple(
            LabelRequirement(text_in(each, "key"), text_in(each, "operator"), tuple(map(str, each.get("values") or ())))
            for each in selector.get("matchExpressions") or ()
        ),
        replica_failure=_replica_failure(mapping_in(raw, "status")),
        grace_seconds=_grace_seconds(mapping_in(mapping_in(spec, "template"), "spec")),
    )


def _grace_seconds(pod_spec: RawObject) -> int:
    """Return the seconds between SIGTERM and SIGKILL of a pod that is removed. Kubernetes' default is 30."""
    seconds = pod_spec.get("terminationGracePeriodSeconds")
    return seconds if isinstance(seconds, int) else 30


def _manager_of_replicas(metadata: RawObject) -> str:
    """Return the field manager of `spec.replicas`. If there are several, return the one that wrote last."""
    entries = [
        (str(entry.get("time", "")), str(entry.get("manager", "")))
        for entry in metadata.get("managedFields") or ()
        if "f:replicas" in mapping_in(mapping_in(entry, "fieldsV1"), "f:spec")
    ]
    return max(entries)[1] if entries else ""


def _replica_failure(status: RawObject) -> str:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return text_in(condition, "message")
    return ""


class PodParser:
    """Parses pods and interns the texts and labels that many of them share."""

    def __init__(self) -> None:
        self._labels: dict[Labels, Labels] = {}
        self._texts: dict[str, str] = {}

    def __call__(self, raw: RawObject) -> Pod:
        """Parse a pod."""
        metadata, status = mapping_in(raw, "metadata"), mapping_in(raw, "status")
        labels = mapping_in(metadata, "labels")
        controllers = [each for each in metadata.get("ownerReferences") or () if each.get("controller")]
        cost = mapping_in(metadata, "annotations").get(DELETION_COST_ANNOTATION)
        return Pod(
            namespace=self._intern(text_in(metadata, "namespace")),
            name=text_in(metadata, "name"),
            uid=text_in(metadata, "uid"),
            app=self._intern(text_in(labels, SERVICE_LABEL)),
            labels=self._intern_labels(_labels(labels)),
            controller=self._intern(text_in(controllers[0], "name")) if controllers else "",
            ip=text_in(status, "podIP"),
            ready=any(
                each.get("type") == "Ready" and each.get("status") == "True" for each in status.get("conditions") or ()
            ),
            terminated=status.get("phase") in ("Succeeded", "Failed"),
            deleting="deletionTimestamp" in metadata,
            deletion_cost=None if cost is None else str(cost),
            start_failure=self._intern(_start_failure(status)),
        )

    def _intern(self, text: str) -> str:
        return self._texts.setdefault(text, text)

    def _intern_labels(self, labels: Labels) -> Labels:
        if len(self._labels) > _MAX_INTERNED_LABELS:  # each pod has labels of its own, so interning saves nothing
            self._labels.clear()
            self._texts.clear()
        return self._labels.setdefault(labels, labels)


def _start_failure(status: RawObject) -> str:
    """Return the first reason that the kubelet gives why a container waits, with the exit code of its last run.

    A container that starts for the first time waits, too, for its image, volumes and init containers: no failure.
    """
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        reason = text_in(mapping_in(mapping_in(container, "state"), "waiting"), "reason")
        if reason and reason not in _NORMAL_WAITS:
            code = mapping_in(mapping_in(container, "lastState"), "terminated").get("exitCode")
            return f"{reason} (exit code {code})" if isinstance(code, int) else reason
    return ""


def parse_secret(raw: RawObject) -> Secret:
    """Parse the Secret of a service's keys."""
    metadata, data = mapping_in(raw, "metadata"), mapping_in(raw, "data")
    return Secret(
        namespace=text_in(metadata, "namespace"),
        name=text_in(metadata, "name"),
        primary_key=_key(data.get("primaryKey")),
        secondary_key=_key(data.get("secondaryKey")),
    )


def _key(encoded: object) -> str | None:
    """Decode a key. A line end after the key is removed, as editors and `echo` append one."""
    if not isinstance(encoded, str):
        return None
    try:
        text = base64.b64decode(encoded, validate=True).decode().rstrip("\r\n")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return text if _KEY.fullmatch(text) else None


def parse_config_map(raw: RawObject) -> ConfigMap:
    """Parse a ConfigMap."""
    metadata = mapping_in(raw, "metadata")
    return ConfigMap(
        namespace=text_in(metadata, "namespace"),
        name=text_in(metadata, "name"),
        resource_version=text_in(metadata, "resourceVersion"),
        data={key: text for key, text in mapping_in(raw, "data").items() if isinstance(text, str)},
    )


def parse_hpa(raw: RawObject) -> Hpa:
    """Parse a HorizontalPodAutoscaler."""
    metadata = mapping_in(raw, "metadata")
    target = mapping_in(mapping_in(raw, "spec"), "scaleTargetRef")
    owner: RawObject = next(iter(metadata.get("ownerReferences") or ()), {})
    return Hpa(
        namespace=text_in(metadata, "namespace"),
        name=text_in(metadata, "name"),
        target_deployment=text_in(target, "name") if target.get("kind") == "Deployment" else "",
        owner=f"{text_in(owner, 'kind')} {text_in(owner, 'name')}" if owner else "",
    )


def parse_lease(raw: RawObject) -> Lease:
    """Parse a Lease."""
    metadata, spec = mapping_in(raw, "metadata"), mapping_in(raw, "spec")
    return Lease(
        namespace=text_in(metadata, "namespace"),
        name=text_in(metadata, "name"),
        resource_version=text_in(metadata, "resourceVersion"),
        holder=text_in(spec, "holderIdentity"),
        duration_seconds=int(spec.get("leaseDurationSeconds") or 0),
        transitions=int(spec.get("leaseTransitions") or 0),
        renew_time=text_in(spec, "renewTime"),
    )


def parse_release_claim(raw: RawObject) -> ReleaseClaim:
    """Parse the claim of a release."""
    metadata = mapping_in(raw, "metadata")
    try:
        waiting = orjson.loads(text_in(mapping_in(metadata, "annotations"), WAITING_RELEASES_ANNOTATION) or "{}")
    except orjson.JSONDecodeError:
        waiting = {}
    return ReleaseClaim(
        namespace=text_in(metadata, "namespace"),
        name=text_in(metadata, "name"),
        resource_version=text_in(metadata, "resourceVersion"),
        holder=text_in(mapping_in(raw, "spec"), "holderIdentity"),
        waiting=_labels(waiting) if isinstance(waiting, dict) else (),
    )


def _labels(raw: RawObject) -> Labels:
    return tuple(sorted((name, str(value)) for name, value in raw.items()))
