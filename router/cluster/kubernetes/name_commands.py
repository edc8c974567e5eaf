"""The command `azureml-fe names`: the claims on names, with the permissions of the user who runs it.

For commands only: each function blocks and runs an event loop of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from router.cluster.kubernetes.access import NAMES_CONFIG_MAP
from router.cluster.kubernetes.client import MERGE_PATCH, ApiClient, ApiError
from router.cluster.kubernetes.commands import ClusterArguments, open_client
from router.cluster.kubernetes.name_claims import Claim, parse_claims
from router.cluster.kubernetes.objects import Deployment, NamespacedName, named_after
from router.cluster.kubernetes.reflector import list_objects
from router.cluster.kubernetes.resources import DEPLOYMENTS, config_map_named
from router.config.schema import ArgumentError

_MAX_ATTEMPTS = 5


class ClaimedName(NamedTuple):
    """A name, the namespace that has it, since when (RFC 3339), and whether a Deployment in that namespace uses it."""

    name: str
    namespace: str
    since: str
    used: bool


def list_names(cluster: ClusterArguments) -> list[ClaimedName]:
    """Return all claims, in the order of the names. Raises OSError if an API request fails."""
    return asyncio.run(_list_names(cluster))


def release_name(name: str, cluster: ClusterArguments, *, force: bool) -> ClaimedName:
    """Release the claim on a name, and return it. The router gives the name to the oldest Deployment that uses it.

    Raises `SettingsError` if there is no claim, or if it is used and `force` is False. Raises OSError if an API request
    fails.
    """
    return asyncio.run(_release_name(name, cluster, force))


async def _list_names(cluster: ClusterArguments) -> list[ClaimedName]:
    async with open_client(cluster.kubeconfig) as (api, own_namespace):
        _, claims = await _read(api, cluster.router(own_namespace))
        deployments = await list_objects(api, DEPLOYMENTS, tuple(cluster.namespaces) or ("",))
        return [ClaimedName(name, *claim, _is_used(name, claim, deployments)) for name, claim in sorted(claims.items())]


async def _release_name(name: str, cluster: ClusterArguments, force: bool) -> ClaimedName:
    async with open_client(cluster.kubeconfig) as (api, own_namespace):
        router = cluster.router(own_namespace)
        stored = named_after(router.name, NAMES_CONFIG_MAP)
        path = f"{config_map_named(stored).path(router.namespace)}/{stored}"
        for _ in range(_MAX_ATTEMPTS):
            version, claims = await _read(api, router)
            if name not in claims:
                problem = f"must be a name in the ConfigMap {stored} of namespace {router.namespace}"
                raise ArgumentError("NAME", name, problem)
            claim = claims[name]
            searched = () if claim.is_malformed else (claim.namespace,)
            used = _is_used(name, claim, await list_objects(api, DEPLOYMENTS, searched))
            if used and not force:
                problem = (
                    f"is used by a Deployment in namespace {claim.namespace}: delete that first, or use --force to "
                    "give the name to the oldest Deployment that uses it"
                )
                raise ArgumentError("NAME", name, problem)
            body = {"metadata": {"resourceVersion": version}, "data": {name: None}}
            try:
                await api.request("PATCH", path, body=body, content_type=MERGE_PATCH)
            except ApiError as error:
                if error.status != 409:
                    raise
            else:
                return ClaimedName(name, *claim, used)
        raise OSError(f"the ConfigMap {stored} changes too often to be written")


async def _read(api: ApiClient, router: NamespacedName) -> tuple[str, dict[str, Claim]]:
    """Return the version of the ConfigMap and the claims in it; "" and none if it does not exist."""
    resource = config_map_named(named_after(router.name, NAMES_CONFIG_MAP))
    for config_map in await list_objects(api, resource, (router.namespace,)):
        return config_map.resource_version, parse_claims(config_map.data)
    return "", {}


def _is_used(name: str, claim: Claim, deployments: Sequence[Deployment]) -> bool:
    """True if a Deployment needs the name: one of the service, or with `namespace/name` one in the namespace."""
    in_namespace = [each for each in deployments if each.namespace == claim.namespace]
    return any(name in (each.service, each.namespace) for each in in_namespace)
