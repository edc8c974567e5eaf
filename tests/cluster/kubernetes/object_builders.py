"""Builders of Kubernetes objects: raw as the API server sends them, and parsed."""

from __future__ import annotations

import base64
from typing import Any

from router.cluster.kubernetes.objects import Deployment, Pod, Secret
from router.cluster.kubernetes.parsing import PodParser, parse_deployment, parse_secret

Raw = dict[str, Any]


def raw_deployment(name: str = "iris", app: str | None = None, /, *, age: int = 1, **annotations: str) -> Raw:
    """`annotations` have setting names. `app` is the label. `age` is in days."""
    version = annotations.get("version", "default")
    labels = {"azuremlappname": app or name, "isazuremlapp": "true"}
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
        "spec": {"replicas": 1, "selector": {"matchLabels": {"azuremlappname": app or name, "version": version}}},
    }


def deployment(name: str = "iris", app: str | None = None, /, *, age: int = 1, **annotations: str) -> Deployment:
    return parse_deployment(raw_deployment(name, app, age=age, **annotations))


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


def pod(name: str = "iris-abc-1", service: str = "iris", **fields: Any) -> Pod:
    return PodParser()(raw_pod(name, service, **fields))


def raw_secret(name: str, **keys: str) -> Raw:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in keys.items()}
    return {"metadata": {"name": name, "namespace": "models"}, "data": data}


def secret(name: str = "azureml-fe-keys-iris", **keys: str) -> Secret:
    return parse_secret(raw_secret(name, **keys))
