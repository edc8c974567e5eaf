"""Reads the facts of a cluster, tries the writes of a plan, and performs them, with the permissions of the user who
runs the command. `access` lists these permissions.

For commands only: each function blocks and runs an event loop of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from router.cluster.kubernetes.adoption.facts import (
    MODEL_DEPLOYMENTS,
    ROUTER_PODS,
    ClusterFacts,
    OtherRouter,
    group_services,
    other_routers,
)
from router.cluster.kubernetes.adoption.plan import DeploymentPatch, ServicePlan, secrets_by_name
from router.cluster.kubernetes.adoption.record import KEYS_ANNOTATION
from router.cluster.kubernetes.client import MERGE_PATCH, ApiClient, ApiError, JsonObject
from router.cluster.kubernetes.commands import ClusterArguments, open_client, read_claims, secret_path
from router.cluster.kubernetes.key_secrets import given_secret_body, secret_body
from router.cluster.kubernetes.objects import NamespacedName, ReleaseClaim
from router.cluster.kubernetes.parsing import mapping_in, text_in
from router.cluster.kubernetes.reflector import list_objects
from router.cluster.kubernetes.release_claims import parse_release
from router.cluster.kubernetes.resources import HPAS, RELEASE_CLAIMS, SECRETS

ADOPTION_FIELD_MANAGER = "azureml-fe-adopt"
"""The field manager of these writes. Azure ML's router may have the one of other commands, `azureml-fe`."""
_AZURE_NAMESPACES = ("azureml", "default")
"""The namespaces of Azure ML's router, for users who may not list the pods of all namespaces: v2, v1."""


def read_facts(cluster: ClusterArguments) -> ClusterFacts:
    """Return the facts about the services in `cluster.namespaces`, which are all if it is empty. Raises `SettingsError`
    if the credentials cannot be used, and OSError if an API request fails."""

    async def read() -> ClusterFacts:
        async with open_client(cluster.kubeconfig) as (api, own_namespace):
            searched = tuple(cluster.namespaces) or ("",)
            services = group_services(await list_objects(api, MODEL_DEPLOYMENTS, searched))
            claims = await list_objects(api, RELEASE_CLAIMS, searched)
            # The namespace of a kubeconfig may be that of Azure ML's router.
            own = [cluster.router(own_namespace)] if cluster.router_namespace is not None else []
            hpas = await list_objects(api, HPAS, searched)
            return ClusterFacts(
                services,
                secrets=secrets_by_name(await list_objects(api, SECRETS, searched)),
                hpas={NamespacedName(hpa.namespace, hpa.target_deployment): hpa for hpa in hpas},
                claims=await read_claims(api, cluster.router(own_namespace)) or {},
                holders={claim.namespace: claim.holder for claim in claims if claim.holder},
                other_routers=await find_other_routers(
                    api, [*own, *releases_of(claims)], {service.namespace for service in services}
                ),
            )

    return asyncio.run(read())


def releases_of(claims: Iterable[ReleaseClaim]) -> Iterable[NamespacedName]:
    """Yield the releases of this router that these claims name."""
    for claim in claims:
        for release in (claim.holder, *(waiting for waiting, _ in claim.waiting)):
            if release:
                yield parse_release(release)


async def find_other_routers(
    api: ApiClient, own: Iterable[NamespacedName], namespaces: Iterable[str]
) -> tuple[OtherRouter, ...]:
    """Return the routers that are not among the releases `own`. A user who may not list the pods of all namespaces sees
    those in `namespaces` and in the usual namespaces of Azure ML's router that may be listed.

    Raises `ApiError` and `ApiUnreachable`.
    """
    try:
        pods = await list_objects(api, ROUTER_PODS, ("",))
    except ApiError as error:
        if error.status != 403:
            raise
        pods = []
        for namespace in sorted({*namespaces, *_AZURE_NAMESPACES}):
            try:
                pods += await list_objects(api, ROUTER_PODS, (namespace,))
            except ApiError as refusal:
                if refusal.status != 403:
                    raise
    return other_routers(pods, own)


def try_plans(plans: Sequence[ServicePlan], cluster: ClusterArguments) -> None:
    """Let the API server check all writes of these plans, its permissions and admission policies included, and store
    none. Raises OSError with the first one that it refuses."""
    asyncio.run(_write(plans, cluster, dry_run=True))


def perform_plans(
    plans: Sequence[ServicePlan], cluster: ClusterArguments, on_done: Callable[[ServicePlan], None] = lambda _: None
) -> None:
    """Perform the writes of these plans; `on_done` is called after each plan. Performing them again is harmless. Raises
    OSError if a request fails; the writes before that stay."""
    asyncio.run(_write(plans, cluster, dry_run=False, on_done=on_done))


async def _write(
    plans: Sequence[ServicePlan],
    cluster: ClusterArguments,
    *,
    dry_run: bool,
    on_done: Callable[[ServicePlan], None] = lambda _: None,
) -> None:
    async with open_client(cluster.kubeconfig, ADOPTION_FIELD_MANAGER) as (api, _):
        writer = _PlanWriter(api, dry_run=dry_run)
        for plan in plans:
            await writer.write(plan)
            on_done(plan)


class _PlanWriter:
    """Sends the writes of plans."""

    def __init__(self, api: ApiClient, *, dry_run: bool) -> None:
        self._api = api
        self._params = {"dryRun": "All"} if dry_run else {}
        self._delete_options: JsonObject = {"dryRun": ["All"]} if dry_run else {}

    async def write(self, plan: ServicePlan) -> None:
        """Send the writes of one plan. Raises `ApiError` and `ApiUnreachable`."""
        if plan.created_secret is not None:
            await self._create_secret(plan, plan.created_secret)
        for patch in plan.patches:
            await self._patch(patch)
        if plan.deleted_secret is not None:
            await self._delete_secret(plan.deleted_secret)

    async def _create_secret(self, plan: ServicePlan, name: NamespacedName) -> None:
        keys, service = plan.keys, plan.service.name
        body = secret_body(name, service) if keys is None else given_secret_body(name, keys._asdict())
        body["metadata"]["annotations"] = {KEYS_ANNOTATION: service}
        path = secret_path(name).rpartition("/")[0]
        await self._api.request("POST", path, params=self._params, body=body)

    async def _patch(self, patch: DeploymentPatch) -> None:
        path = f"/apis/apps/v1/namespaces/{patch.deployment.namespace}/deployments/{patch.deployment.name}"
        body: JsonObject = {"metadata": {"uid": patch.uid, "annotations": dict(patch.annotations)}}
        await self._merge(path, body)
        if patch.replicas is not None:
            await self._merge(f"{path}/scale", {"spec": {"replicas": patch.replicas}})

    async def _merge(self, path: str, body: JsonObject) -> None:
        await self._api.request("PATCH", path, params=self._params, body=body, content_type=MERGE_PATCH)

    async def _delete_secret(self, name: NamespacedName) -> None:
        """Delete a Secret that an adoption has created. Others stay."""
        try:
            secret = await self._api.request("GET", secret_path(name))
        except ApiError as error:
            if error.status != 404:
                raise
            return
        metadata = mapping_in(secret, "metadata")
        if KEYS_ANNOTATION in mapping_in(metadata, "annotations"):
            # The API server ignores the parameter `dryRun` of a request with a body.
            options = self._delete_options | {"preconditions": {"uid": text_in(metadata, "uid")}}
            await self._api.request("DELETE", secret_path(name), body=options)
