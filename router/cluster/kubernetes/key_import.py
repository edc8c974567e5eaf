"""The command `azureml-fe keys import` for a cluster, with the permissions of the user who runs it.

For commands only: each function blocks and runs an event loop of its own.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from router.auth.exported_keys import ExportedKeys, HasOtherKeysError
from router.cluster.kubernetes.client import MERGE_PATCH, ApiClient, ApiError
from router.cluster.kubernetes.commands import (
    ClusterArguments,
    check_uses_keys,
    open_client,
    read_service,
    secret_path,
    why_unresolved,
)
from router.cluster.kubernetes.key_secrets import encode_keys, given_secret_body
from router.cluster.kubernetes.objects import MODEL_LABEL, SERVICE_LABEL, NamespacedName
from router.cluster.kubernetes.parsing import mapping_in, parse_secret, text_in
from router.cluster.kubernetes.service_assembler import KEYS_SECRET_PREFIX
from router.config.schema import ArgumentError

_MAX_ATTEMPTS = 5


class ImportedKeys(NamedTuple):
    """The Secret that has the keys, whether it was written, and whether the service has a Deployment."""

    secret: NamespacedName
    changed: bool
    has_deployment: bool


def import_keys(service: str, keys: ExportedKeys, cluster: ClusterArguments, *, replace: bool) -> ImportedKeys:
    """Store the keys of a service in its Secret.

    If the service has no Deployment yet, the Secret is created in the only namespace of `cluster.namespaces`. Raises
    `SettingsError` if there is none, or if the service has no keys, or other keys and `replace` is False. Raises
    OSError if an API request fails.
    """
    return asyncio.run(_import_keys(service, keys, cluster, replace))


async def _import_keys(service: str, keys: ExportedKeys, cluster: ClusterArguments, replace: bool) -> ImportedKeys:
    async with open_client(cluster.kubeconfig) as (api, own_namespace):
        registry, searched = await read_service(api, service, cluster.namespaces, cluster.router(own_namespace))
        resolved = registry.resolved.get(service)
        if resolved is not None:
            check_uses_keys(resolved)
            secret = resolved.secret
        elif registry.problems() or registry.unclaimed:
            raise ArgumentError("SERVICE", service, why_unresolved(registry, searched))
        elif len(searched) > 1 or not searched[0]:
            problem = (
                f"{why_unresolved(registry, searched)}, or give --namespace NAME once to store its keys before that"
            )
            raise ArgumentError("SERVICE", service, problem)
        else:
            secret = NamespacedName(searched[0], KEYS_SECRET_PREFIX + service.rpartition("/")[2])
        for _ in range(_MAX_ATTEMPTS):
            try:
                changed = await _store(api, service, secret, keys, replace)
            except ApiError as error:
                if error.status != 409:
                    raise
            else:
                return ImportedKeys(secret, changed, resolved is not None)
        raise OSError(f"the Secret {secret} changes too often to be written")


async def _store(api: ApiClient, service: str, name: NamespacedName, keys: ExportedKeys, replace: bool) -> bool:
    """Create or change a Secret. Return False if it has these keys already.

    Raises `SettingsError` if it has other keys and `replace` is False, and `ApiError` with status 409 if another client
    writes it at the same time.
    """
    try:
        current = await api.request("GET", secret_path(name))
    except ApiError as error:
        if error.status != 404:
            raise
        body = given_secret_body(name, keys._asdict())
        await api.request("POST", secret_path(name).rpartition("/")[0], body=body)
        return True
    stored = parse_secret(current)
    stored_keys = (stored.primary_key, stored.secondary_key)
    metadata = mapping_in(current, "metadata")
    if stored_keys == keys and mapping_in(metadata, "labels").get(MODEL_LABEL) == "true":
        return False
    if not replace and any(old not in (None, new) for old, new in zip(stored_keys, keys, strict=True)):
        raise HasOtherKeysError(service, f"Secret {name}")
    labels = {MODEL_LABEL: "true", SERVICE_LABEL: None}  # no longer generated, see `given_secret_body`
    patch = {
        "metadata": {"resourceVersion": text_in(metadata, "resourceVersion"), "labels": labels},
        "data": encode_keys(keys._asdict()),
    }
    await api.request("PATCH", secret_path(name), body=patch, content_type=MERGE_PATCH)
    return True
