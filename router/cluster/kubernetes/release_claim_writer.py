"""Writes the claims that `release_claims` decides on, each a Lease in a namespace with models."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from router.cluster.kubernetes.client import MERGE_PATCH, ApiClient, ApiError, ApiUnreachable
from router.cluster.kubernetes.release_claims import ClaimWrite, ReleaseClaims, claim_body
from router.cluster.kubernetes.resources import RELEASE_CLAIMS
from router.config.kubernetes_settings import RELEASE_CLAIM_NAME
from router.telemetry.log import event as log_event

_log = logging.getLogger("router.cluster")


class ReleaseClaimWriter:
    """Writes the claims of a release while this router leads. The watch reports what it has written."""

    def __init__(self, api: ApiClient, claims: ReleaseClaims, *, may_write: Callable[[], bool]) -> None:
        self._api = api
        self._claims = claims
        self._may_write = may_write
        self._failures: dict[str, str] = {}  # by namespace

    async def write_due(self, namespaces: Iterable[str]) -> None:
        """Write the claims of these namespaces that are due. Call it about once a second."""
        for namespace in namespaces:
            time_text = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            if not self._may_write():
                return
            write = self._claims.next_write(namespace, time.monotonic(), time_text)
            if write is not None:
                await self._write(write, time_text)

    async def _write(self, write: ClaimWrite, time_text: str) -> None:
        path = RELEASE_CLAIMS.path(write.namespace)
        body = claim_body(write, time_text)
        try:
            if write.replaces:
                await self._api.request("PATCH", f"{path}/{RELEASE_CLAIM_NAME}", body=body, content_type=MERGE_PATCH)
            else:
                await self._api.request("POST", path, body=body)
        except (ApiError, ApiUnreachable) as error:
            if not (isinstance(error, ApiError) and error.status == 409):  # 409: another release was faster
                self._on_failure(write.namespace, str(error))
            return
        self._failures.pop(write.namespace, None)
        log_event(
            _log, logging.INFO, "claim written", namespace=write.namespace, holder=write.holder,
            waiting=list(write.waiting),
        )  # fmt: skip

    def _on_failure(self, namespace: str, error: str) -> None:
        if self._failures.get(namespace) != error:
            self._failures[namespace] = error
            log_event(_log, logging.WARNING, "the claim cannot be written", namespace=namespace, error=error)
