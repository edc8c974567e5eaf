"""Derives services, versions and replicas from Deployments, pods and Secrets. No I/O, no clock.

    Deployment  label azuremlappname: the service, unless the annotation azureml-fe/service names it; annotations
                azureml-fe/*: the version and settings
    pods        the replicas: pods that the Deployment's selector matches; a replica is ready when its pod is
    Secret      the keys primaryKey and secondaryKey

Stores the objects, and determines what has changed since the last `refresh`. `service_assembler` has the rules by which
Deployments form a service.

A service is in one namespace, the one that has claimed its name (`name_claims`). A Deployment of another namespace gets
no requests and no keys, and neither does one whose name has not been claimed yet. If there are no claims at all, as in
the first minute after an upgrade, the namespace of the oldest Deployment has the name. The name of a service that is
only observed is not claimed: its oldest Deployment is followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from router.cluster.kubernetes.last_valid_settings import LastValidSettings
from router.cluster.kubernetes.name_claims import Claim, claimed_name
from router.cluster.kubernetes.objects import (
    SERVICE_ANNOTATION,
    SERVICE_LABEL,
    Deployment,
    NamespacedName,
    Pod,
    Secret,
    name_of,
)
from router.cluster.kubernetes.service_assembler import (
    SETTINGS_REFUSED,
    DeploymentProblem,
    ResolvedService,
    ResolvedVersion,
    ServiceAssembler,
    problem_of,
)
from router.config.dynamic import ServiceOverlay
from router.config.schema import SettingsError
from router.config.service import parse_service
from router.model.services import Replica, ReplicaState, Service, VersionKey

T = TypeVar("T")
_NO_VERSION: VersionKey = ("", "")
_KEYS_REFUSED = (
    "must have primaryKey or secondaryKey, each of 1 to 256 visible ASCII characters without spaces; the previous keys "
    "stay valid"
)
_NAME_TAKEN = "the name belongs to another namespace; this Deployment gets no requests and is not scaled"


class Changes(NamedTuple):
    """The changes since the last `refresh`. `services` is True if any service has changed. `replicas` has the replicas
    of each version whose replicas have changed."""

    services: bool
    replicas: dict[VersionKey, tuple[Replica, ...]]


class ServiceRegistry:
    """All services of the cluster, and the objects that they are derived from."""

    def __init__(
        self,
        defaults: Mapping[str, object] | None = None,
        *,
        observes: bool = False,
        names_have_namespace: bool = False,
        claims: Mapping[str, Claim] | None = None,
    ) -> None:
        """For `defaults` see `parse_service`, for `claims` see `set_claims`.

        If `observes`, services without an annotation about their mode are on standby. If `names_have_namespace`, the
        name of a service is `namespace/name`.
        """
        self._defaults = defaults or {}
        self._observes = observes
        self._other_holders: Mapping[str, str] = {}
        self._overlays: Mapping[str, ServiceOverlay] = {}
        self._names_have_namespace = names_have_namespace
        self._claims = claims
        self._unclaimed: dict[str, Deployment] = {}  # by service: its oldest Deployment
        self._wanted: dict[str, str] = {}  # by service that is not only observed: its namespace
        self._deployments: dict[str, dict[NamespacedName, Deployment]] = {}  # by service
        self._pods: dict[str, dict[NamespacedName, Pod]] = {}  # by app, see `_app_of`
        self._services_of_app: dict[str, dict[NamespacedName, str]] = {}  # by app and Deployment
        self._secrets: dict[NamespacedName, Secret] = {}
        self._last_valid = LastValidSettings()
        self._invalid: dict[str, tuple[Deployment, ...]] = {}  # by service: those whose annotations are invalid
        self._resolved: dict[str, ResolvedService] = {}
        self._name_problems: dict[str, tuple[DeploymentProblem, ...]] = {}  # by service: those about its name
        self._services_of_secret: dict[NamespacedName, set[str]] = {}
        self._version_of_pod: dict[str, VersionKey] = {}  # by uid of the pod
        self._reported: dict[VersionKey, tuple[Replica, ...]] = {}
        self._stale_services: set[str] = set()
        self._services_with_stale_replicas: set[str] = set()

    # Changes of objects: `before` is None if one was added, `after` is None if it was removed.

    def on_deployment_changed(self, before: Deployment | None, after: Deployment | None) -> None:
        """Record that a Deployment was added, changed or removed."""
        self._stale_services |= {self._service_of(each) for each in (before, after) if each is not None}
        if before is not None and (after is None or after.service != before.service):
            _remove(self._deployments, self._service_of(before), name_of(before))
        if before is not None and (after is None or after.app != before.app):
            _remove(self._services_of_app, self._app_of(before), name_of(before))
        if after is not None:
            self._deployments.setdefault(self._service_of(after), {})[name_of(after)] = after
            self._services_of_app.setdefault(self._app_of(after), {})[name_of(after)] = self._service_of(after)
        if before is not None and (after is None or after.uid != before.uid):
            self._last_valid.forget(before.uid)

    def on_pod_changed(self, before: Pod | None, after: Pod | None) -> None:
        """Record that a pod was added, changed or removed."""
        for app in {self._app_of(each) for each in (before, after) if each is not None}:
            self._services_with_stale_replicas |= {app, *self._services_of_app.get(app, {}).values()}
        if before is not None and (after is None or after.app != before.app):
            _remove(self._pods, self._app_of(before), name_of(before))
        if after is not None:
            self._pods.setdefault(self._app_of(after), {})[name_of(after)] = after
        if before is not None and (after is None or after.uid != before.uid):
            self._version_of_pod.pop(before.uid, None)

    def on_secret_changed(self, before: Secret | None, after: Secret | None) -> None:
        """Record that a Secret was added, changed or removed."""
        present = after or before
        if present is None:
            return
        name = name_of(present)
        if after is None:
            del self._secrets[name]
        else:
            self._secrets[name] = after
        self._stale_services |= self._services_of_secret.get(name, set())

    def _service_of(self, deployment: Deployment) -> str:
        """Return the name of the service that a Deployment belongs to."""
        return f"{deployment.namespace}/{deployment.service}" if self._names_have_namespace else deployment.service

    def _app_of(self, labeled: Deployment | Pod) -> str:
        """Return what a Deployment and its pods have in common: the label, in the form of names of services. It is the
        name of their service unless the Deployment's annotation has another one."""
        return f"{labeled.namespace}/{labeled.app}" if self._names_have_namespace else labeled.app

    def set_overlays(self, overlays: Mapping[str, ServiceOverlay]) -> None:
        """Set the settings of services in the dynamic configuration, by service."""
        before, self._overlays = self._overlays, overlays
        changed = {name for name in before.keys() | overlays.keys() if before.get(name) != overlays.get(name)}
        self._stale_services |= changed & self._deployments.keys()

    def set_other_holders(self, holders: Mapping[str, str]) -> None:
        """Set the namespaces whose models another release of the router serves: their services are on standby."""
        changed = {
            namespace
            for namespace in holders.keys() | self._other_holders.keys()
            if holders.get(namespace) != self._other_holders.get(namespace)
        }
        self._other_holders = dict(holders)
        self._stale_services |= {
            service
            for service, deployments in self._deployments.items()
            if any(name.namespace in changed for name in deployments)
        }

    # The last valid settings, stored for all router pods.

    def set_stored_settings(self, content: Mapping[str, str]) -> None:
        """Set the stored settings of Deployments with invalid annotations, see `stored_settings`."""
        changed = self._last_valid.set_stored(content)
        self._stale_services |= {
            service
            for service, deployments in self._deployments.items()
            if any(deployment.uid in changed for deployment in deployments.values())
        }

    def stored_settings(self) -> dict[str, str]:
        """Return the last valid settings of all Deployments whose annotations are invalid now, as they are stored."""
        return self._last_valid.stored_content(each for invalid in self._invalid.values() for each in invalid)

    # Claims.

    def set_claims(self, claims: Mapping[str, Claim]) -> None:
        """Replace the claims by name. Before the first call there are none, and the oldest Deployment has the name."""
        before, self._claims = self._claims, claims
        for service in self._deployments:
            name = claimed_name(service)
            if before is None or before.get(name) != claims.get(name):
                self._stale_services.add(service)

    @property
    def unclaimed(self) -> Mapping[str, Deployment]:
        """The services whose name is unclaimed, with their oldest Deployment: its namespace should get the name."""
        return self._unclaimed

    # Services.

    def refresh(self) -> Changes:
        """Derive services and replicas from the objects, and return the changes since the last call."""
        services_changed = False
        for name in self._stale_services:
            before, after = self._resolved.get(name), self._resolve(name)
            self._store(name, before, after)
            services_changed |= (before and before.service) != (after and after.service)
        stale = self._stale_services | self._services_with_stale_replicas
        self._stale_services, self._services_with_stale_replicas = set(), set()
        replicas: dict[VersionKey, tuple[Replica, ...]] = {}
        for name in stale:
            replicas |= self._changed_replicas(name)
        return Changes(services_changed, replicas)

    @property
    def services(self) -> dict[str, Service]:
        """All services by name."""
        return {name: resolved.service for name, resolved in self._resolved.items()}

    def namespaces(self) -> set[str]:
        """Return the namespaces that have Deployments."""
        return {name.namespace for deployments in self._deployments.values() for name in deployments}

    def wanted_namespaces(self) -> set[str]:
        """Return the namespaces with services that this router does not only observe."""
        return set(self._wanted.values())

    @property
    def resolved(self) -> Mapping[str, ResolvedService]:
        """All services by name, with their Deployments."""
        return self._resolved

    def problems(self) -> list[DeploymentProblem]:
        """Return all current problems."""
        of_services = [problem for resolved in self._resolved.values() for problem in resolved.problems]
        of_names = [problem for problems in self._name_problems.values() for problem in problems]
        return [*of_services, *of_names, *self._start_failures()]

    def _start_failures(self) -> Iterable[DeploymentProblem]:
        """Yield one problem for each version with pods that cannot start. Its text does not depend on the pod, so that
        pods which fail in turn are one problem."""
        for resolved in self._resolved.values():
            for version in resolved.versions:
                failures = {pod.start_failure for pod in self.pods_of(version) if not pod.deleting}
                for failure in sorted(failures - {""}):
                    message = f"a container of its pods cannot start: {failure}; the log of the pod has the reason"
                    yield problem_of(version.deployment, version.key[0], "PodsCannotStart", message)

    def pods_of(self, version: ResolvedVersion) -> list[Pod]:
        """Return the pods of a version."""
        pods = self._pods.get(self._app_of(version.deployment), {}).values()
        return [pod for pod in pods if self._version_of_pod.get(pod.uid) == version.key]

    def has_secret(self, name: NamespacedName) -> bool:
        """True if there is a Secret with this name, even one without valid keys."""
        return name in self._secrets

    def _store(self, name: str, before: ResolvedService | None, after: ResolvedService | None) -> None:
        if before is not None:
            services = self._services_of_secret[before.secret]
            services.discard(name)
            if not services:
                del self._services_of_secret[before.secret]
        if after is None:
            self._resolved.pop(name, None)
        else:
            self._resolved[name] = after
            self._services_of_secret.setdefault(after.secret, set()).add(name)

    def _assemble(self, name: str, deployments: Sequence[Deployment]) -> ResolvedService:
        last_valid, overlay = self._last_valid.of(deployments), self._overlays.get(name)
        return ServiceAssembler(name, deployments, last_valid, self._defaults, overlay).assemble()

    def _resolve(self, name: str) -> ResolvedService | None:
        self._name_problems.pop(name, None)
        self._invalid.pop(name, None)
        self._unclaimed.pop(name, None)
        self._wanted.pop(name, None)
        deployments = sorted((each for each in self._deployments.get(name, {}).values() if not each.deleting), key=_age)
        if not deployments:
            return None
        oldest = deployments[0]
        try:
            parse_service(oldest.service, {})
        except SettingsError as error:
            source = f"label {SERVICE_LABEL}" if oldest.service == oldest.app else SERVICE_ANNOTATION
            message = f"{source} = {oldest.service!r}: {error.problem}; this Deployment gets no requests"
            cause = f"{error.problem}; this Deployment gets no requests"
            self._name_problems[name] = tuple(
                problem_of(each, name, "ServiceNameRefused", message, cause=f"the name of the service {cause}")
                for each in deployments
            )
            return None
        claim = self._claims.get(claimed_name(name)) if self._claims is not None else None
        owner = claim or Claim(oldest.namespace, oldest.created_at)
        own = [each for each in deployments if each.namespace == owner.namespace]
        resolved = self._assemble(name, own) if own else None
        is_observed = resolved is None or (resolved.mode == "observe" if resolved.mode is not None else self._observes)
        if not is_observed:
            self._wanted[name] = owner.namespace
        if claim is None and not is_observed:
            self._unclaimed[name] = oldest
            if self._claims is not None:
                return None
        message = self._name_taken(name, owner)
        self._name_problems[name] = tuple(
            problem_of(each, name, "ServiceNameTaken", message, cause=_NAME_TAKEN)
            for each in deployments
            if each.namespace != owner.namespace
        )
        if resolved is None:
            return None
        self._record_validity(name, own, resolved)
        if is_observed or own[0].namespace in self._other_holders:
            resolved = replace(resolved, service=replace(resolved.service, standby=True))
        return self._with_keys(resolved, own[0])

    def _name_taken(self, service: str, owner: Claim) -> str:
        name = claimed_name(service)
        remedies = [] if self._names_have_namespace else [f"give it another {SERVICE_LABEL}"]
        if self._claims is not None:
            remedies.append(f"release the name with `azureml-fe names release {name}`")
        return (
            f"the name {name} has belonged to namespace {owner.namespace} since {owner.since}; this Deployment gets no "
            f"requests and is not scaled: {' or '.join(remedies)}"
        )

    def _record_validity(self, service: str, deployments: Iterable[Deployment], resolved: ResolvedService) -> None:
        """Record which of these Deployments have valid annotations."""
        refused = {problem.uid for problem in resolved.problems if problem.reason == SETTINGS_REFUSED}
        invalid = []
        for deployment in deployments:
            if deployment.uid in resolved.valid_annotations:
                self._last_valid.record(deployment, resolved.valid_annotations[deployment.uid])
            elif deployment.uid in refused:
                invalid.append(deployment)
        if invalid:
            self._invalid[service] = tuple(invalid)

    def _with_keys(self, resolved: ResolvedService, oldest: Deployment) -> ResolvedService:
        """Add the keys of the Secret. If it contains no valid key, the previous keys stay valid."""
        secret = self._secrets.get(resolved.secret)
        if secret is None or not resolved.service.uses_keys:
            return resolved
        if secret.primary_key or secret.secondary_key:
            return _replace_keys(resolved, secret.primary_key, secret.secondary_key)
        message = f"Secret {secret.name}: {_KEYS_REFUSED}"
        before = self._resolved.get(resolved.service.name)
        if before is not None and before.secret == resolved.secret:
            resolved = _replace_keys(resolved, before.service.primary_key, before.service.secondary_key)
        problem = problem_of(oldest, resolved.service.name, "KeysRefused", message, cause=_KEYS_REFUSED)
        return replace(resolved, problems=(*resolved.problems, problem))

    # Replicas.

    def _changed_replicas(self, service: str) -> dict[VersionKey, tuple[Replica, ...]]:
        """Return the replicas of the versions of a service whose replicas differ from those reported last."""
        current = self._replicas_of(service)
        changed = {}
        reported = {key for key in self._reported if key[0] == service}
        for key in reported | current.keys():
            replicas = tuple(sorted(current.get(key, ()), key=lambda replica: replica.id))
            if replicas != self._reported.get(key):
                changed[key] = replicas
            if key in current:
                self._reported[key] = replicas
            else:
                self._reported.pop(key, None)
        return changed

    def _replicas_of(self, service: str) -> dict[VersionKey, list[Replica]]:
        resolved = self._resolved.get(service)
        versions = resolved.versions if resolved is not None else ()
        replicas: dict[VersionKey, list[Replica]] = {version.key: [] for version in versions}
        apps = {service, *(self._app_of(version.deployment) for version in versions)}
        for pod in (pod for app in sorted(apps) for pod in self._pods.get(app, {}).values()):
            version = _version_of(pod, versions)
            if version is not None:
                self._version_of_pod[pod.uid] = version.key
                if not pod.terminated and (pod.ip or not pod.deleting):
                    replicas[version.key].append(Replica(pod.uid, pod.ip, version.port, _state(pod)))
            elif (
                (key := self._version_of_pod.get(pod.uid, _NO_VERSION))[0] == service and pod.ip and not pod.terminated
            ):
                # The pod's Deployment was removed or no longer selects it. It gets no more requests.
                port = next((r.port for r in self._reported.get(key, ()) if r.id == pod.uid), 0)
                replicas.setdefault(key, []).append(Replica(pod.uid, pod.ip, port, ReplicaState.DRAINING))
        return replicas


def _remove(by_service: dict[str, dict[NamespacedName, T]], service: str, name: NamespacedName) -> None:
    """Remove an object, and its service if it was the last one. Services come and go as long as the router runs."""
    del by_service[service][name]
    if not by_service[service]:
        del by_service[service]


def _replace_keys(resolved: ResolvedService, primary: str | None, secondary: str | None) -> ResolvedService:
    return replace(resolved, service=replace(resolved.service, primary_key=primary, secondary_key=secondary))


def _age(deployment: Deployment) -> tuple[str, str, str]:
    """Return a sort key: the oldest Deployment first, in the same order on all routers."""
    return deployment.created_at, deployment.namespace, deployment.name


def _state(pod: Pod) -> ReplicaState:
    if pod.deleting:
        return ReplicaState.DRAINING
    return ReplicaState.READY if pod.ready and pod.ip else ReplicaState.STARTING


def _version_of(pod: Pod, versions: Iterable[ResolvedVersion]) -> ResolvedVersion | None:
    """Return the version that a pod is a replica of. If several Deployments select the pod, return the version of the
    Deployment that created its ReplicaSet."""
    matching = [v for v in versions if v.deployment.namespace == pod.namespace and v.deployment.selects(pod.labels)]
    if len(matching) > 1:
        return next((version for version in matching if version.deployment.name == pod.deployment), None)
    return matching[0] if matching else None
