"""The command `azureml-fe check --cluster`: the services of the cluster, and problems there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from router.cluster.kubernetes.access import ACCESS_RULES, SELF_SCALING_ACCESS_RULES, SETTINGS_CONFIG_MAP, AccessRule
from router.cluster.kubernetes.adoption.commands import ADOPTION_FIELD_MANAGER, find_other_routers, releases_of
from router.cluster.kubernetes.adoption.facts import OtherRouter
from router.cluster.kubernetes.client import FIELD_MANAGER, ApiClient, ApiError, JsonObject
from router.cluster.kubernetes.commands import open_client, read_claims
from router.cluster.kubernetes.objects import Deployment, Hpa, NamespacedName, name_of, named_after
from router.cluster.kubernetes.reflector import list_objects
from router.cluster.kubernetes.release_claims import ReleaseClaims, parse_release
from router.cluster.kubernetes.resources import DEPLOYMENTS, HPAS, RELEASE_CLAIMS, SECRETS, config_map_named, model_pods
from router.cluster.kubernetes.service_assembler import ResolvedService
from router.cluster.kubernetes.service_registry import ServiceRegistry
from router.model.services import Replica, ReplicaState, VersionKey
from router.net.address import host_port

_MAX_NAMES = 5  # of Deployments, in one line
_CONNECT_SECONDS = 2.0  # the default timeout of the router's own connections to replicas


class CheckResult(NamedTuple):
    """A summary of the services, and the problems, as lines for operators."""

    summary: list[str]
    problems: list[str]


def check_cluster(
    namespaces: Sequence[str],
    own_namespace: str | None,
    kubeconfig: Path | None,
    *,
    router_name: str,
    scales_itself: bool,
    observes: bool,
    names_have_namespace: bool,
) -> CheckResult:
    """Check the services in `namespaces`, and the permissions that the router `router_name` in `own_namespace` needs.

    No `namespaces` means all. If `own_namespace` is None, it is the namespace of the pod or kubeconfig. With
    `scales_itself`, the permissions for self-scaling are checked, too. Conflicts of this release with others are
    included if `own_namespace` is given and the router does not only observe (`observes`). For
    `names_have_namespace` see `ServiceRegistry`.

    Raises `SettingsError` if the credentials cannot be used, and OSError if an API request fails.
    """
    release_claims = ReleaseClaims(
        f"{own_namespace}/{router_name}" if own_namespace else "", observes=observes or own_namespace is None
    )
    registry = ServiceRegistry(observes=observes, names_have_namespace=names_have_namespace)
    return asyncio.run(
        _check(
            namespaces, own_namespace, kubeconfig, release_claims, registry, router_name, scales_itself=scales_itself
        )
    )


async def _check(
    namespaces: Sequence[str],
    own_namespace: str | None,
    kubeconfig: Path | None,
    release_claims: ReleaseClaims,
    registry: ServiceRegistry,
    router_name: str,
    *,
    scales_itself: bool,
) -> CheckResult:
    async with open_client(kubeconfig) as (api, namespace):
        rules = (*ACCESS_RULES, *(SELF_SCALING_ACCESS_RULES if scales_itself else ()))
        own = NamespacedName(own_namespace or namespace, router_name)
        problems = await _denied_permissions(api, rules, namespaces, own)
        served = tuple(namespaces) or ("",)
        claims = await read_claims(api, own)
        if claims is not None:
            registry.set_claims(claims)
        for deployment in await list_objects(api, DEPLOYMENTS, served):
            registry.on_deployment_changed(None, deployment)
        for pod in await list_objects(api, model_pods(), served):
            registry.on_pod_changed(None, pod)
        for secret in await list_objects(api, SECRETS, served):
            registry.on_secret_changed(None, secret)
        held_claims = await list_objects(api, RELEASE_CLAIMS, served)
        for claim in held_claims:
            release_claims.on_claim_changed(None, claim, 0.0)
        routers = {own} if own_namespace else {own, *map(parse_release, release_claims.holders())}
        registry.set_stored_settings(await _stored_settings(api, routers))
        replicas = registry.refresh().replicas
        if own_namespace is not None:
            release_claims.set_wanted(registry.wanted_namespaces())
        summary: list[str] = []
        for name, resolved in sorted(registry.resolved.items()):
            summary += _summary(resolved, replicas)
            if resolved.lacks_keys and not registry.has_secret(resolved.secret):
                problems.append(f"service {name}: Secret {resolved.secret.name} is missing, so there are no keys yet")
        problems += _hpa_problems(registry, await list_objects(api, HPAS, served))
        problems += map(str, release_claims.conflicts(0.0))
        releases = [*([own] if own_namespace is not None else []), *releases_of(held_claims)]
        for router in await find_other_routers(api, releases, registry.namespaces()):
            in_charge = _deployments_in_charge(registry)
            (problems if in_charge else summary).append(_other_router(router, in_charge))
        if kubeconfig is None:  # pods cannot be reached from outside of the cluster
            problems += await unreachable_replicas(replicas)
        if claims is not None:
            problems += [f"service {name}: its name has not been claimed yet" for name in sorted(registry.unclaimed)]
        problems += map(str, registry.problems())
        return CheckResult(summary, problems)


def _deployments_in_charge(registry: ServiceRegistry) -> list[Deployment]:
    """Return the Deployments of the services that the router does not only observe."""
    return [
        version.deployment
        for _, resolved in sorted(registry.resolved.items())
        if not resolved.service.standby
        for version in resolved.versions
    ]


def _other_router(router: OtherRouter, in_charge: Sequence[Deployment]) -> str:
    """Return a line about a router that is not a release of this one."""
    writers: dict[str, list[str]] = {}
    for deployment in in_charge:
        manager = deployment.replicas_manager
        if manager and manager != ADOPTION_FIELD_MANAGER and not manager.startswith(f"{FIELD_MANAGER}/"):
            writers.setdefault(manager, []).append(str(name_of(deployment)))
    line = f"Azure ML's router runs beside this one: {router}"
    if not in_charge:
        return f"{line}; this one only observes"
    line += ". For the same service, both would exceed the limits of replicas and undo each other's replica counts"
    for manager, names in sorted(writers.items()):
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        line += f"; the number of replicas of {', '.join(names[:_MAX_NAMES])}{more} was last written by {manager}"
    return f"{line}. azureml-fe adopt --help has the way over"


async def _stored_settings(api: ApiClient, routers: Iterable[NamespacedName]) -> dict[str, str]:
    """Return the last valid settings that these routers have stored, without those that the user of this command may
    not read."""
    content: dict[str, str] = {}
    for router in sorted(routers):
        resource = config_map_named(named_after(router.name, SETTINGS_CONFIG_MAP))
        try:
            for stored in await list_objects(api, resource, (router.namespace,)):
                content |= stored.data
        except ApiError as error:
            if error.status != 403:
                raise
    return content


def _summary(resolved: ResolvedService, replicas: Mapping[VersionKey, Sequence[Replica]]) -> list[str]:
    service = resolved.service
    shares = {version.name: (version, share) for version, share in service.traffic_shares()}
    lines = [f"service {service.name}: namespace {resolved.secret.namespace}, {_authentication(resolved)}"]
    for version in resolved.versions:
        ready = sum(replica.state is ReplicaState.READY for replica in replicas.get(version.key, ()))
        name, deployment = version.key[1], version.deployment
        settings, share = shares[name]
        drain, grace = settings.replica_drain_seconds, deployment.grace_seconds
        note = f"; {drain:g} s to drain, but {grace} s in a rolling update" if grace < drain else ""
        lines.append(
            f"  version {name}: {share} % of traffic; Deployment {deployment.name}; {ready} of "
            f"{deployment.replicas} replicas ready{note}"
        )
    return lines


def _authentication(resolved: ResolvedService) -> str:
    if resolved.service.token_auth_enabled:
        return "tokens"
    return f"keys in Secret {resolved.secret.name}" if resolved.service.auth_enabled else "no authentication"


def _hpa_problems(registry: ServiceRegistry, hpas: Sequence[Hpa]) -> list[str]:
    """Return a line for each Deployment that a HorizontalPodAutoscaler scales."""
    hpa_of = {NamespacedName(hpa.namespace, hpa.target_deployment): hpa for hpa in hpas}
    return [
        f"service {name}: Deployment {version.deployment.name} is scaled by {hpa}, so the router does not scale it"
        for name, resolved in sorted(registry.resolved.items())
        for version in resolved.versions
        if (hpa := hpa_of.get(name_of(version.deployment))) is not None
    ]


async def unreachable_replicas(replicas: Mapping[VersionKey, Sequence[Replica]]) -> list[str]:
    """Return a line for each ready replica that does not accept a connection within `_CONNECT_SECONDS`."""

    async def accepts(replica: Replica) -> bool:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(replica.host, replica.port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    ready = [(key, each) for key, those in replicas.items() for each in those if each.state is ReplicaState.READY]
    accepting = await asyncio.gather(*(accepts(replica) for _, replica in ready))
    return [
        f"service {service}, version {version}: replica {replica.id} is ready but accepts no connection at "
        f"{host_port(replica.host, replica.port)}"
        for ((service, version), replica), is_accepting in zip(ready, accepting, strict=True)
        if not is_accepting
    ]


async def _denied_permissions(
    api: ApiClient, rules: Sequence[AccessRule], namespaces: Sequence[str], router: NamespacedName
) -> list[str]:
    """Return a line for each permission that the rules require and the user of this command does not have."""
    denied = []
    namespaces_of = {"own": (router.namespace,), "models": tuple(namespaces) or ("",), "cluster": ("",)}
    for rule in rules:
        for namespace in namespaces_of[rule.scope]:
            for verb in rule.verbs:
                if not await _is_allowed(api, rule, verb, NamespacedName(namespace, rule.name_of(router.name))):
                    where = f"namespace {namespace}" if namespace else "all namespaces"
                    consequence = f": {rule.consequence}" if rule.consequence else ""
                    denied.append(f"not allowed: {verb} {rule.resource} in {where}{consequence}")
    return denied


async def _is_allowed(api: ApiClient, rule: AccessRule, verb: str, target: NamespacedName) -> bool:
    resource, _, subresource = rule.resource.partition("/")
    attributes = {
        "group": rule.group,
        "resource": resource,
        "subresource": subresource,
        "verb": verb,
        "namespace": target.namespace,
        "name": target.name,
    }
    body: JsonObject = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    review = await api.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
    return bool(review.get("status", {}).get("allowed"))
