"""What `azureml-fe keys`, `token` and `check --cluster` do in a cluster, with the rights of whoever runs them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from router.cluster.kubernetes.access import ACCESS, SIZING_ACCESS, TOKEN_KEYS_NAME, Access
from router.cluster.kubernetes.client import FIELD_MANAGER, MERGE_PATCH, Api, ApiError
from router.cluster.kubernetes.credentials import credentials
from router.cluster.kubernetes.finder import Found
from router.cluster.kubernetes.keys import FIELDS, new_key, secret_of
from router.cluster.kubernetes.models import Models
from router.cluster.kubernetes.objects import (
    DEPLOYMENTS,
    HPAS,
    SECRETS,
    SERVICE_LABEL,
    Hpa,
    Name,
    Resource,
    Thing,
    model_pods,
    secret,
)
from router.cluster.kubernetes.reflector import Reflection
from router.cluster.kubernetes.token_keys import TokenKeySecret
from router.services import Replica, ReplicaState, VersionKey
from router.tokens.issuing import issue_token
from router.values import SettingsError

T = TypeVar("T", bound=Thing)

_CONNECT_SECONDS = 2.0  # as long as the router itself gives a replica by default


def show_keys(service: str, namespaces: Sequence[str], kubeconfig: Path | None) -> dict[str, str]:
    """The keys of a service in the cluster. Raises `SettingsError` for one that has none, OSError."""
    return asyncio.run(_show(service, namespaces, kubeconfig))


def regenerate_key(service: str, which: str, namespaces: Sequence[str], kubeconfig: Path | None) -> str:
    """Make one key anew, and tell it; the other one stays valid. Raises `SettingsError`, OSError."""
    return asyncio.run(_regenerate(service, which, namespaces, kubeconfig))


def cluster_token(
    service: str,
    ttl: str | None,
    namespaces: Sequence[str],
    own_namespace: str | None,
    kubeconfig: Path | None,
    *,
    default_lifetime_seconds: int,
) -> dict[str, object]:
    """A token for a service of the cluster, signed with the keys of the router in `own_namespace`; None: that of the
    pod or kubeconfig. Raises `SettingsError`, OSError."""

    async def issue() -> dict[str, object]:
        async with _api(kubeconfig) as (api, namespace):
            found = await _service(api, service, namespaces)
            if not found.service.token_auth_enabled:
                raise SettingsError("SERVICE", service, "must be a service with token_auth_enabled")
            store = TokenKeySecret(api, own_namespace or namespace)
            if await store.read() is None:  # keys that the router does not know would sign for nobody
                allowed = f"must be where the router runs; there is no Secret {TOKEN_KEYS_NAME}, which it makes there"
                raise SettingsError("router namespace", own_namespace or namespace, allowed)
            return await issue_token(store, service, ttl, default_lifetime_seconds=default_lifetime_seconds)

    return asyncio.run(issue())


def check_cluster(
    namespaces: Sequence[str], own_namespace: str | None, kubeconfig: Path | None, *, sizes_itself: bool
) -> tuple[list[str], list[str]]:
    """What the cluster sets up, in lines for people, and what is wrong there. `sizes_itself`: the router needs the
    rights for that, too. Raises `SettingsError`, OSError."""
    return asyncio.run(_check(namespaces, own_namespace, kubeconfig, sizes_itself))


@asynccontextmanager
async def _api(kubeconfig: Path | None) -> AsyncIterator[tuple[Api, str]]:
    """The API server, and the namespace that is meant when none is said. Raises OSError for what it refuses."""
    account = await credentials(kubeconfig)
    api = Api(account)
    try:
        yield api, account.namespace
    except ApiError as error:
        raise OSError(f"the API server refused: {error}") from error
    finally:
        await api.close()


async def _listed(api: Api, resource: Resource[T], namespaces: Sequence[str], service: str = "") -> list[T]:
    """All objects of a resource, of one service if one is named."""
    found: list[T] = []
    for namespace in tuple(namespaces) or ("",):
        reflection: Reflection[T] = Reflection(resource, namespace, lambda _, __: None)
        while not (request := reflection.request()).is_watch:
            params = dict(request.params)
            if service:
                params["labelSelector"] += f",{SERVICE_LABEL}={service}"
            reflection.page(await api.request("GET", request.path, params=params))
        found += reflection.objects.values()
    return found


async def _service(api: Api, service: str, namespaces: Sequence[str]) -> Found:
    models = Models()
    if not all(character.isalnum() or character in "-_." for character in service):
        raise SettingsError("SERVICE", service, "must be a service of the cluster")
    for deployment in await _listed(api, DEPLOYMENTS, namespaces, service):
        models.deployment_changed(None, deployment)
    models.refresh()
    if service not in models.found:
        where = ", ".join(namespaces) or "all namespaces"
        allowed = f"must be the label {SERVICE_LABEL} of a Deployment with isazuremlapp=true in {where}"
        raise SettingsError("SERVICE", service, allowed)
    return models.found[service]


async def _service_with_keys(api: Api, service: str, namespaces: Sequence[str]) -> Found:
    found = await _service(api, service, namespaces)
    if not found.service.has_keys:
        allowed = "must be a service with auth_enabled or token_auth_enabled; this one has no keys"
        raise SettingsError("SERVICE", service, allowed)
    return found


def _path(name: Name) -> str:
    return f"/api/v1/namespaces/{name[0]}/secrets/{name[1]}"


async def _show(service: str, namespaces: Sequence[str], kubeconfig: Path | None) -> dict[str, str]:
    async with _api(kubeconfig) as (api, _):
        found = await _service_with_keys(api, service, namespaces)
        try:
            keys = secret(await api.request("GET", _path(found.keys)))
        except ApiError as error:
            if error.status == 404:
                raise SettingsError("SERVICE", service, f"has no keys yet: Secret {found.keys[1]} is missing") from None
            raise
        both = {"primary": keys.primary_key, "secondary": keys.secondary_key}
        return {which: key for which, key in both.items() if key is not None}


async def _regenerate(service: str, which: str, namespaces: Sequence[str], kubeconfig: Path | None) -> str:
    async with _api(kubeconfig) as (api, _):
        found = await _service_with_keys(api, service, namespaces)
        key = new_key()
        data = {FIELDS[which]: base64.b64encode(key.encode()).decode()}
        params = {"fieldManager": FIELD_MANAGER}
        try:
            await api.request("PATCH", _path(found.keys), params=params, body={"data": data}, content_type=MERGE_PATCH)
        except ApiError as error:
            if error.status != 404:
                raise
            body: dict[str, Any] = secret_of(found.keys, service)
            body["data"] |= data
            await api.request("POST", _path(found.keys).rpartition("/")[0], params=params, body=body)
        return key


async def _check(
    namespaces: Sequence[str], own_namespace: str | None, kubeconfig: Path | None, sizes_itself: bool
) -> tuple[list[str], list[str]]:
    async with _api(kubeconfig) as (api, namespace):
        wrong = await _refused(api, ACCESS, namespaces, own_namespace or namespace)
        if sizes_itself:
            wrong += await _refused(api, SIZING_ACCESS, namespaces, own_namespace or namespace)
        models = Models()
        for deployment in await _listed(api, DEPLOYMENTS, namespaces):
            models.deployment_changed(None, deployment)
        for pod in await _listed(api, model_pods(), namespaces):
            models.pod_changed(None, pod)
        for keys in await _listed(api, SECRETS, namespaces):
            models.secret_changed(None, keys)
        replicas = models.refresh().replicas
        lines = []
        for name, found in sorted(models.found.items()):
            shares = {version.name: share for version, share in found.service.shares()}
            lines.append(f"service {name}: namespace {found.keys[0]}, {_authentication(found)}")
            if found.lacks_keys and not models.has_secret(found.keys):
                wrong.append(f"service {name}: Secret {found.keys[1]} is missing, so there are no keys yet")
            for model in found.models:
                ready = sum(replica.state is ReplicaState.READY for replica in replicas.get(model.key, ()))
                lines.append(
                    f"  version {model.key[1]}: {shares[model.key[1]]} % of traffic; Deployment "
                    f"{model.deployment.name}; {ready} of {model.deployment.replicas} replicas ready"
                )
        wrong += _scaled_elsewhere(models, await _listed(api, HPAS, namespaces))
        if kubeconfig is None:  # from outside, addresses of pods lead nowhere
            wrong += await unreachable(replicas)
        wrong += [f"{'/'.join(each.deployment)}: {each.reason}: {each.message}" for each in models.problems()]
        return lines, wrong


def _scaled_elsewhere(models: Models, hpas: Sequence[Hpa]) -> list[str]:
    """Deployments of models that something else scales as well, and that the router therefore leaves alone."""
    scalers = {(hpa.namespace, hpa.deployment): hpa for hpa in hpas}
    return [
        f"service {name}: Deployment {model.deployment.name} is scaled by HorizontalPodAutoscaler {hpa.name}"
        f"{f' (of {hpa.managed_by})' if hpa.managed_by else ''}, so the router leaves it alone"
        for name, found in sorted(models.found.items())
        for model in found.models
        if (hpa := scalers.get((model.deployment.namespace, model.deployment.name))) is not None
    ]


async def unreachable(replicas: Mapping[VersionKey, Sequence[Replica]]) -> list[str]:
    """Ready replicas that do not accept connections from here."""

    async def is_deaf(replica: Replica) -> bool:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(replica.host, replica.port)
        except (OSError, TimeoutError):
            return True
        writer.close()
        return False

    ready = [(key, each) for key, those in replicas.items() for each in those if each.state is ReplicaState.READY]
    deaf = await asyncio.gather(*(is_deaf(replica) for _, replica in ready))
    return [
        f"service {key[0]}, version {key[1]}: replica {replica.id} is ready but accepts no connection at "
        f"{replica.host}:{replica.port}"
        for (key, replica), silent in zip(ready, deaf, strict=True)
        if silent
    ]


def _authentication(found: Found) -> str:
    if found.service.token_auth_enabled:
        return "tokens"
    return f"keys in Secret {found.keys[1]}" if found.service.auth_enabled else "no authentication"


async def _refused(api: Api, needed: Sequence[Access], namespaces: Sequence[str], own_namespace: str) -> list[str]:
    """What the router needs and whoever asks may not do."""
    refused = []
    where = {"own": (own_namespace,), "models": tuple(namespaces) or ("",), "cluster": ("",)}
    for access in needed:
        for namespace in where[access.scope]:
            for verb in access.verbs:
                resource, _, subresource = access.resource.partition("/")
                attributes = {
                    "group": access.group,
                    "resource": resource,
                    "subresource": subresource,
                    "verb": verb,
                    "namespace": namespace,
                    "name": access.name,
                }
                body = {
                    "apiVersion": "authorization.k8s.io/v1",
                    "kind": "SelfSubjectAccessReview",
                    "spec": {"resourceAttributes": attributes},
                }
                answer = await api.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
                if not answer.get("status", {}).get("allowed"):
                    place = f"namespace {namespace}" if namespace else "all namespaces"
                    means = f": {access.lack}" if access.lack else ""
                    refused.append(f"not allowed: {verb} {access.resource} in {place}{means}")
    return refused
