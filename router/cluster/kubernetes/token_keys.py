"""The router's token signing keys in a Secret of its namespace. The place only; what the text means is `tokens`'."""

from __future__ import annotations

import base64
import binascii

from router.cluster.kubernetes.access import TOKEN_KEYS_NAME
from router.cluster.kubernetes.client import FIELD_MANAGER, Api, ApiError
from router.tokens.store import Stored
from router.values import SettingsError

_FIELD = "keys"


class TokenKeySecret:
    """A `RingStore`. Of two routers that write at once the API server takes the first one's."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/secrets"
        self._empty: str | None = None  # the mark of a Secret that holds nothing yet

    async def read(self) -> Stored | None:
        self._empty = None
        try:
            answer = await self._api.request("GET", f"{self._path}/{TOKEN_KEYS_NAME}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise OSError(f"Secret {TOKEN_KEYS_NAME} cannot be read: {error}") from error
        mark = str(answer["metadata"]["resourceVersion"])
        try:
            encoded = (answer.get("data") or {})[_FIELD]
            return Stored(base64.b64decode(encoded, validate=True).decode(), mark)
        except KeyError:
            self._empty = mark
            return None
        except (binascii.Error, UnicodeDecodeError, TypeError):
            allowed = "must be text; delete the Secret to have new ones made"
            raise SettingsError("token signing keys", None, allowed, f"Secret {TOKEN_KEYS_NAME}") from None

    async def write(self, text: str, former: Stored | None) -> bool:
        metadata = {"name": TOKEN_KEYS_NAME}
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": "Opaque",
            "data": {_FIELD: base64.b64encode(text.encode()).decode()},
        }
        params = {"fieldManager": FIELD_MANAGER}
        try:
            mark = former.mark if former is not None else self._empty
            if mark is None:
                await self._api.request("POST", self._path, params=params, body=body)
            else:
                metadata["resourceVersion"] = mark
                await self._api.request("PUT", f"{self._path}/{TOKEN_KEYS_NAME}", params=params, body=body)
        except ApiError as error:
            if error.status == 409:
                return False
            raise OSError(f"Secret {TOKEN_KEYS_NAME} cannot be written: {error}") from error
        return True
