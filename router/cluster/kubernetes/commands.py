"""The commands `azureml-fe keys` and `azureml-fe token` for a cluster, with the permissions of the user who runs them.

For commands only: each function blocks and runs an event loop of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from router.auth.issuing.token_issuer import issue_token
from router.cluster.kubernetes.access import NAMES_CONFIG_MAP, TOKEN_KEY_SECRET_NAME
from router.cluster.kubernetes.client import FIELD_MANAGER, MERGE_PATCH, ApiClient, ApiError
from router.cluster.kubernetes.config_map_store import read_content
from router.cluster.kubernetes.credentials import load_credentials
from router.cluster.kubernetes.key_secrets import encode_keys, new_key, secret_body
from router.cluster.kubernetes.name_claims import Claim, parse_claims
from router.cluster.kubernetes.objects import SERVICE_LABEL, NamespacedName, name_of, named_after
from router.cluster.kubernetes.parsing import parse_secret
from router.cluster.kubernetes.reflector import list_objects
from router.cluster.kubernetes.resources import DEPLOYMENTS, SECRETS
from router.cluster.kubernetes.service_assembler import KEYS_SECRET_PREFIX, ResolvedService
from router.cluster.kubernetes.service_registry import ServiceRegistry
from router.cluster.kubernetes.token_key_secret import TokenKeySecret
from router.config.schema import ArgumentError
from router.config.service import is_service_name


class ClusterArguments(NamedTuple):
    """The cluster and the parts of it that a command uses.

    No `namespaces` of the models means all. If `router_namespace` is None, it is that of the pod or kubeconfig.
    `router_name` is the setting of the router.
    """

    kubeconfig: Path | None
    namespaces: Sequence[str]
    router_namespace: str | None
    router_name: str

    def router(self, own_namespace: str) -> NamespacedName:
        """Return the namespace and name of the router. `own_namespace` is that of the pod or kubeconfig."""
        return NamespacedName(self.router_namespace or own_namespace, self.router_name)


def show_keys(service: str, cluster: ClusterArguments) -> dict[str, str]:
    """Return the keys of a service: at most `primary` and `secondary`.

    Raises `SettingsError` if the service or its keys do not exist, and OSError if an API request fails.
    """
    return asyncio.run(_show_keys(service, cluster))


def regenerate_key(service: str, which: str, cluster: ClusterArguments) -> str:
    """Replace the primary or secondary key and return the new one. The other key stays valid.

    Raises `SettingsError` if the service does not exist or has no keys, and OSError if an API request fails.
    """
    return asyncio.run(_regenerate_key(service, which, cluster))


def prune_keys(namespaces: Sequence[str], kubeconfig: Path | None, *, delete: bool) -> list[NamespacedName]:
    """Return the Secrets with generated keys whose service has no Deployment in their namespace. If `delete`, delete
    them.

    Raises OSError if an API request fails. Secrets that others have created are kept: they lack the label with the
    service.
    """
    return asyncio.run(_prune_keys(namespaces, kubeconfig, delete=delete))


def issue_cluster_token(
    service: str, ttl: str | None, cluster: ClusterArguments, *, default_lifetime_seconds: int
) -> dict[str, object]:
    """Return a token for a service, signed with the key of the router.

    Raises `SettingsError` if the service does not accept tokens or the router has no signing key, and OSError if an API
    request fails.
    """

    async def issue() -> dict[str, object]:
        async with open_client(cluster.kubeconfig) as (api, own_namespace):
            router = cluster.router(own_namespace)
            resolved = await _resolve(api, service, cluster.namespaces, router)
            if not resolved.service.token_auth_enabled:
                raise ArgumentError("SERVICE", service, "must be a service with token_auth_enabled")
            secret = NamespacedName(router.namespace, named_after(router.name, TOKEN_KEY_SECRET_NAME))
            store = TokenKeySecret(api, secret)
            if await store.read() is None:  # `issue_token` would generate a key that no router accepts
                problem = (
                    "must be the namespace in which the router runs; it has no Secret "
                    f"{secret.name}, which the router creates"
                )
                raise ArgumentError("router namespace", secret.namespace, problem)
            return await issue_token(store, service, ttl, default_lifetime_seconds=default_lifetime_seconds)

    return asyncio.run(issue())


@asynccontextmanager
async def open_client(
    kubeconfig: Path | None, field_manager: str = FIELD_MANAGER
) -> AsyncIterator[tuple[ApiClient, str]]:
    """Yield a client of the API server and the namespace of the pod or kubeconfig. An `ApiError` raised in the block
    becomes an OSError."""
    credentials = await load_credentials(kubeconfig)
    api = ApiClient(credentials, field_manager)
    try:
        yield api, credentials.namespace
    except ApiError as error:
        raise OSError(f"API request failed: {error}") from error
    finally:
        await api.close()


async def _resolve(api: ApiClient, service: str, namespaces: Sequence[str], router: NamespacedName) -> ResolvedService:
    registry, searched = await read_service(api, service, namespaces, router)
    if service not in registry.resolved:
        raise ArgumentError("SERVICE", service, why_unresolved(registry, searched))
    return registry.resolved[service]


async def read_service(
    api: ApiClient, service: str, namespaces: Sequence[str], router: NamespacedName
) -> tuple[ServiceRegistry, Sequence[str]]:
    """Return a registry with the Deployments of one service, and the namespaces in which they were searched; "" is all
    namespaces.

    Raises `SettingsError` if the name is invalid, `ApiError` and `ApiUnreachable`.
    """
    if not is_service_name(service):
        raise ArgumentError("SERVICE", service, "must be the name of a service: NAME, or NAMESPACE/NAME")
    namespace, has_namespace, label = service.rpartition("/")
    searched = (namespace,) if has_namespace else tuple(namespaces) or ("",)
    claims = await read_claims(api, router)
    registry = ServiceRegistry(names_have_namespace=bool(has_namespace), claims=claims)
    for deployment in await list_objects(api, DEPLOYMENTS, searched):
        if deployment.service == label:  # which an annotation may have instead of a label
            registry.on_deployment_changed(None, deployment)
    registry.refresh()
    return registry, searched


def why_unresolved(registry: ServiceRegistry, searched: Sequence[str]) -> str:
    """Return the reason why a registry has no service, as a rule for its name."""
    if problems := registry.problems():
        return problems[0].message
    if registry.unclaimed:
        return "must be a name that the router has claimed; with service_names: namespace/name, it is NAMESPACE/NAME"
    namespaces = ", ".join(searched) or "all namespaces"
    return f"must be the label {SERVICE_LABEL} of a Deployment with isazuremlapp=true in {namespaces}"


async def read_claims(api: ApiClient, router: NamespacedName) -> dict[str, Claim] | None:
    """Return the claims on names. Return None if there are none, or if the user may not read them, as one who may read
    one namespace only.

    Raises `ApiError` and `ApiUnreachable`.
    """
    try:
        content = await read_content(api, NamespacedName(router.namespace, named_after(router.name, NAMES_CONFIG_MAP)))
    except ApiError as error:
        if error.status != 403:
            raise
        return None
    return parse_claims(content) if content is not None else None


async def _resolve_with_keys(
    api: ApiClient, service: str, cluster: ClusterArguments, own_namespace: str
) -> ResolvedService:
    resolved = await _resolve(api, service, cluster.namespaces, cluster.router(own_namespace))
    check_uses_keys(resolved)
    return resolved


def check_uses_keys(resolved: ResolvedService) -> None:
    """Raise `SettingsError` if a service has no keys."""
    if not resolved.service.uses_keys:
        problem = "must be a service with auth_enabled or token_auth_enabled; this one has no keys"
        raise ArgumentError("SERVICE", resolved.service.name, problem)


def secret_path(name: NamespacedName) -> str:
    """Return the path of a Secret at the API server."""
    return f"/api/v1/namespaces/{name.namespace}/secrets/{name.name}"


async def _show_keys(service: str, cluster: ClusterArguments) -> dict[str, str]:
    async with open_client(cluster.kubeconfig) as (api, own_namespace):
        name = (await _resolve_with_keys(api, service, cluster, own_namespace)).secret
        try:
            secret = parse_secret(await api.request("GET", secret_path(name)))
        except ApiError as error:
            if error.status == 404:
                raise ArgumentError("SERVICE", service, f"has no keys yet: Secret {name.name} is missing") from None
            raise
        both = {"primary": secret.primary_key, "secondary": secret.secondary_key}
        return {which: key for which, key in both.items() if key is not None}


async def _regenerate_key(service: str, which: str, cluster: ClusterArguments) -> str:
    async with open_client(cluster.kubeconfig) as (api, own_namespace):
        name = (await _resolve_with_keys(api, service, cluster, own_namespace)).secret
        key = new_key()
        data = encode_keys({which: key})
        try:
            await api.request("PATCH", secret_path(name), body={"data": data}, content_type=MERGE_PATCH)
        except ApiError as error:
            if error.status != 404:
                raise
            body: dict[str, Any] = secret_body(name, service)
            body["data"] |= data
            await api.request("POST", secret_path(name).rpartition("/")[0], body=body)
        return key


async def _prune_keys(namespaces: Sequence[str], kubeconfig: Path | None, *, delete: bool) -> list[NamespacedName]:
    async with open_client(kubeconfig) as (api, _):
        searched = tuple(namespaces) or ("",)
        # Secrets first: those of a model that is deployed in the meantime are kept.
        secrets = await list_objects(api, SECRETS, searched, SERVICE_LABEL)
        used: set[NamespacedName] = set()
        for deployment in await list_objects(api, DEPLOYMENTS, searched):
            names = [KEYS_SECRET_PREFIX + deployment.service]
            names += [value for annotation, value in deployment.annotations if annotation == "keys-secret"]
            used |= {NamespacedName(deployment.namespace, name) for name in names}
        unused = sorted(name_of(secret) for secret in secrets if name_of(secret) not in used)
        for name in unused if delete else ():
            await api.request("DELETE", secret_path(name))
        return unused
