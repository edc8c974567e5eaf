"""Stores the router's token signing keys in a Secret of its namespace. `auth.issuing` defines their format."""

from __future__ import annotations

import base64
import binascii

from router.auth.issuing.ring_store import StoredRing
from router.cluster.kubernetes.client import ApiClient, ApiError
from router.cluster.kubernetes.objects import NamespacedName
from router.config.schema import SettingsError

_FIELD = "keys"


class TokenKeySecret:
    """A `RingStore`. If two routers write at the same time, the API server rejects the second write."""

    def __init__(self, api: ApiClient, secret: NamespacedName) -> None:
        self._api = api
        self._name = secret.name
        self._path = f"/api/v1/namespaces/{secret.namespace}/secrets"
        self._empty: str | None = None  # the resource version of a Secret without keys

    async def read(self) -> StoredRing | None:
        self._empty = None
        try:
            secret = await self._api.request("GET", f"{self._path}/{self._name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise OSError(f"Secret {self._name} cannot be read: {error}") from error
        revision = str(secret["metadata"]["resourceVersion"])
        try:
            encoded = (secret.get("data") or {})[_FIELD]
            return StoredRing(base64.b64decode(encoded, validate=True).decode(), revision)
        except KeyError:
            self._empty = revision
            return None
        except (binascii.Error, UnicodeDecodeError, TypeError):
            problem = "must be text; delete the Secret to have new keys generated"
            raise SettingsError("token signing keys", None, problem, f"Secret {self._name}") from None

    async def write(self, text: str, previous: StoredRing | None) -> bool:
        metadata = {"name": self._name}
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": "Opaque",
            "data": {_FIELD: base64.b64encode(text.encode()).decode()},
        }
        try:
            revision = previous.revision if previous is not None else self._empty
            if revision is None:
                await self._api.request("POST", self._path, body=body)
            else:
                metadata["resourceVersion"] = revision
                await self._api.request("PUT", f"{self._path}/{self._name}", body=body)
        except ApiError as error:
            if error.status == 409:
                return False
            raise OSError(f"Secret {self._name} cannot be written: {error}") from error
        return True
