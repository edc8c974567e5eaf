"""Keys in the cluster: Secrets that are missing are made, and commands show and renew them.

A Secret is the service's, not the Deployment's: it stays when the model is deleted, so that clients need no other keys
when it is deployed anew.
"""

from __future__ import annotations

import base64
import logging
import secrets
import time
from collections.abc import Callable

from router.cluster.kubernetes.client import FIELD_MANAGER, Api, ApiError, ApiUnreachable
from router.cluster.kubernetes.finder import Found
from router.cluster.kubernetes.models import Models
from router.cluster.kubernetes.objects import SERVICE_LABEL, Name
from router.cluster.kubernetes.recorder import Recorder
from router.telemetry.log import event

_log = logging.getLogger("router.kubernetes")

KEY_BYTES = 32
"""Random bytes of a key; 256 bits, in base64url 43 characters."""
FIELDS = {"primary": "primaryKey", "secondary": "secondaryKey"}

_PATIENCE_SECONDS = 2.0
"""Who deploys a model with a Secret of its own may create it after the Deployment."""
_AGAIN_SECONDS = 30.0


def new_key() -> str:
    """A random key."""
    return secrets.token_urlsafe(KEY_BYTES)


def secret_of(name: Name, service: str) -> dict[str, object]:
    """A Secret with new keys."""
    data = {field: base64.b64encode(new_key().encode()).decode() for field in FIELDS.values()}
    labels = {"isazuremlapp": "true", SERVICE_LABEL: service}
    metadata = {"namespace": name[0], "name": name[1], "labels": labels}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}


class KeyMaker:
    """Makes the Secrets that services lack."""

    def __init__(self, api: Api, recorder: Recorder, *, generate: bool, may_write: Callable[[], bool]) -> None:
        self._api = api
        self._recorder = recorder
        self._generate = generate
        self._may_write = may_write
        self._due: dict[str, float] = {}

    async def make_missing(self, models: Models) -> None:
        """Make the Secret of each service that has none; call about once a second."""
        lacking = {
            name: found
            for name, found in models.found.items()
            if found.lacks_keys and not models.has_secret(found.keys)
        }
        now = time.monotonic()
        self._due = {name: self._due.get(name, now + _PATIENCE_SECONDS) for name in lacking}
        for name, found in lacking.items():
            if now >= self._due[name] and self._may_write():
                self._due[name] = now + _AGAIN_SECONDS
                await self._make(found)

    async def _make(self, found: Found) -> None:
        namespace, secret = found.keys
        service = found.service.name
        why = "keys are not generated here"
        if self._generate:
            path = f"/api/v1/namespaces/{namespace}/secrets"
            params = {"fieldManager": FIELD_MANAGER}
            try:
                await self._api.request("POST", path, params=params, body=secret_of(found.keys, service))
            except ApiError as error:
                why = error.message
                if error.status == 409:
                    why = "there is one of this name without the label isazuremlapp=true"
            except ApiUnreachable as error:
                why = str(error)
            else:
                event(_log, logging.INFO, "keys made", service=service, namespace=namespace, secret=secret)
                return
        deployment = found.models[0].deployment
        self._recorder.say(
            (namespace, deployment.name), deployment.uid, "KeysMissing",
            f"service {service} has no keys, so that all of its requests are answered 401: Secret {secret} is missing "
            f"({why})",
        )  # fmt: skip
