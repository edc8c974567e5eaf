"""The Secrets with the keys of services. Creates those that are missing.

A Secret belongs to the service, not to its Deployment: it stays when the model is deleted, so clients keep their keys
when the model is deployed again.
"""

from __future__ import annotations

import base64
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from router.auth.exported_keys import KEY_FIELDS
from router.cluster.kubernetes.client import ApiClient, ApiError, ApiUnreachable
from router.cluster.kubernetes.event_recorder import EventRecorder
from router.cluster.kubernetes.objects import MODEL_LABEL, SERVICE_LABEL, NamespacedName, name_of
from router.cluster.kubernetes.service_assembler import ResolvedService
from router.cluster.kubernetes.service_registry import ServiceRegistry
from router.telemetry.log import event as log_event

_log = logging.getLogger("router.cluster")

KEY_BYTES = 32
"""Random bytes of a key: 256 bits, 43 characters in base64url."""

_GRACE_SECONDS = 2.0
"""Wait before a missing Secret is created. A deployment tool may create it shortly after the Deployment."""
_RETRY_SECONDS = 30.0
"""Interval between attempts to create a Secret."""


def new_key() -> str:
    """Return a random key."""
    return secrets.token_urlsafe(KEY_BYTES)


def encode_keys(keys: Mapping[str, str]) -> dict[str, str]:
    """Return the `data` of a Secret with these keys by name: `primary`, `secondary`, or both."""
    return {KEY_FIELDS[which]: base64.b64encode(key.encode()).decode() for which, key in keys.items()}


def secret_body(name: NamespacedName, service: str) -> dict[str, Any]:
    """Return the body of a Secret with new keys for a service."""
    body = given_secret_body(name, {which: new_key() for which in KEY_FIELDS})
    body["metadata"]["labels"][SERVICE_LABEL] = service.rpartition("/")[2]
    return body


def given_secret_body(name: NamespacedName, keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the body of a Secret with given keys. It lacks the label with the service, by which `keys prune` finds
    generated keys: given keys cannot be generated again."""
    metadata = {"namespace": name.namespace, "name": name.name, "labels": {MODEL_LABEL: "true"}}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": encode_keys(keys)}


class SecretProvisioner:
    """Creates the missing Secrets of services that need keys."""

    def __init__(
        self, api: ApiClient, event_recorder: EventRecorder, *, generate: bool, may_write: Callable[[], bool]
    ) -> None:
        """If `generate` is False, missing Secrets are reported but not created."""
        self._api = api
        self._event_recorder = event_recorder
        self._generate = generate
        self._may_write = may_write
        self._due_at: dict[str, float] = {}  # by service

    async def create_missing(self, registry: ServiceRegistry) -> None:
        """Create the Secret of each service that lacks one. Call it about once a second."""
        lacking = {
            name: service
            for name, service in registry.resolved.items()
            if service.lacks_keys and not service.service.standby and not registry.has_secret(service.secret)
        }
        now = time.monotonic()
        self._due_at = {name: self._due_at.get(name, now + _GRACE_SECONDS) for name in lacking}
        for name, service in lacking.items():
            if now >= self._due_at[name] and self._may_write():
                self._due_at[name] = now + _RETRY_SECONDS
                await self._create(service)

    async def _create(self, resolved: ResolvedService) -> None:
        namespace, secret = resolved.secret
        service = resolved.service.name
        reason = "the setting generate_keys is false"
        if self._generate:
            path = f"/api/v1/namespaces/{namespace}/secrets"
            try:
                await self._api.request("POST", path, body=secret_body(resolved.secret, service))
            except ApiError as error:
                reason = error.message
                if error.status == 409:
                    reason = "a Secret with this name exists without the label isazuremlapp=true"
            except ApiUnreachable as error:
                reason = str(error)
            else:
                log_event(_log, logging.INFO, "keys created", service=service, namespace=namespace, stored_in=secret)
                return
        deployment = resolved.versions[0].deployment
        self._event_recorder.record(
            name_of(deployment), deployment.uid, "KeysMissing",
            f"service {service} has no keys, so all of its requests get a 401 response: Secret {secret} is missing "
            f"({reason})",
        )  # fmt: skip
