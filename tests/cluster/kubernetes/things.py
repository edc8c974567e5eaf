"""Objects as the API server sends them, with what a test is about filled in."""

from __future__ import annotations

import base64
from typing import Any

from router.cluster.kubernetes import objects
from router.cluster.kubernetes.objects import Deployment, Pod, Secret

Raw = dict[str, Any]


def raw_deployment(name: str = "iris", service: str | None = None, *, age: int = 1, **annotations: str) -> Raw:
    """`annotations` by the SDK's names; the greater the age, the older."""
    version = annotations.get("version", "default")
    labels = {"azuremlappname": service or name, "isazuremlapp": "true"}
    return {
        "metadata": {
            "name": name,
            "namespace": "models",
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "creationTimestamp": f"2026-01-{31 - age:02}T00:00:00Z",
            "labels": labels,
            "annotations": {
                "kubectl.kubernetes.io/last-applied": "{}",
                **{f"azureml-fe/{key.replace('_', '-')}": value for key, value in annotations.items()},
            },
        },
        "spec": {"replicas": 1, "selector": {"matchLabels": {"azuremlappname": service or name, "version": version}}},
    }


def deployment(name: str = "iris", service: str | None = None, *, age: int = 1, **annotations: str) -> Deployment:
    return objects.deployment(raw_deployment(name, service, age=age, **annotations))


def raw_pod(
    name: str = "iris-abc-1",
    service: str = "iris",
    *,
    version: str = "default",
    ip: str = "10.0.0.1",
    ready: bool = True,
) -> Raw:
    return {
        "metadata": {
            "name": name,
            "namespace": "models",
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "labels": {
                "azuremlappname": service, "isazuremlapp": "true", "version": version, "pod-template-hash": "abc",
            },
            "ownerReferences": [{"kind": "ReplicaSet", "name": f"{service}-abc", "controller": True}],
        },
        "status": {
            "phase": "Running" if ip else "Pending",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }  # fmt: skip


def pod(name: str = "iris-abc-1", service: str = "iris", **facts: Any) -> Pod:
    return objects.PodReader()(raw_pod(name, service, **facts))


def raw_secret(name: str, **keys: str) -> Raw:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()}
    return {"metadata": {"name": name, "namespace": "models"}, "data": data}


def secret(name: str = "azureml-fe-keys-iris", **keys: str) -> Secret:
    return objects.secret(raw_secret(name, **keys))
