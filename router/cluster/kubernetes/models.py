"""Deployments, pods and Secrets as services, versions and replicas. No I/O, no clock.

    Deployment  label azuremlappname: the service; annotation azureml-fe/version: the version; other annotations
    pods        those that its selector selects: the replicas, ready when Kubernetes says so
    Secret      primaryKey, secondaryKey

Lives here: what is known, and what differs since the last look. How Deployments make a service is in `finder`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from router.cluster.kubernetes.annotations import Given
from router.cluster.kubernetes.finder import Finder, Found, Model, Problem
from router.cluster.kubernetes.objects import SERVICE_LABEL, Deployment, Name, Pod, Secret
from router.services import Replica, ReplicaState, Service, SettingsError, VersionKey, parse_service


class Changes(NamedTuple):
    """What differs since the last look."""

    services: bool
    replicas: dict[VersionKey, tuple[Replica, ...]]


class Models:
    """All that is known, and what follows from it."""

    def __init__(self, defaults: Mapping[str, object] | None = None) -> None:
        """`defaults` of versions, where they differ from the table's (see `parse_service`)."""
        self._defaults = defaults or {}
        self._deployments: dict[str, dict[Name, Deployment]] = {}  # by service
        self._pods: dict[str, dict[Name, Pod]] = {}  # by service
        self._secrets: dict[Name, Secret] = {}
        self._right: dict[str, Given] = {}  # by uid of a Deployment: what was right about it last
        self._found: dict[str, Found] = {}
        self._unusable: dict[str, tuple[Problem, ...]] = {}  # by service that cannot be one
        self._of_secret: dict[Name, set[str]] = {}  # services that have their keys there
        self._assigned: dict[str, VersionKey] = {}  # by uid of a pod
        self._reported: dict[VersionKey, tuple[Replica, ...]] = {}
        self._stale_services: set[str] = set()
        self._stale_replicas: set[str] = set()

    # What is heard.

    def deployment_changed(self, before: Deployment | None, after: Deployment | None) -> None:
        """A Deployment is new, other or gone."""
        for thing in (before, after):
            if thing is not None:
                self._stale_services.add(thing.service)
        if before is not None and (after is None or after.service != before.service):
            del self._deployments[before.service][before.namespace, before.name]
        if after is not None:
            self._deployments.setdefault(after.service, {})[after.namespace, after.name] = after
        if before is not None and (after is None or after.uid != before.uid):
            self._right.pop(before.uid, None)

    def pod_changed(self, before: Pod | None, after: Pod | None) -> None:
        """A pod is new, other or gone."""
        for thing in (before, after):
            if thing is not None:
                self._stale_replicas.add(thing.service)
        if before is not None and (after is None or after.service != before.service):
            del self._pods[before.service][before.namespace, before.name]
        if after is not None:
            self._pods.setdefault(after.service, {})[after.namespace, after.name] = after
        if before is not None and (after is None or after.uid != before.uid):
            self._assigned.pop(before.uid, None)

    def secret_changed(self, before: Secret | None, after: Secret | None) -> None:
        """A Secret is new, other or gone."""
        thing = after or before
        if thing is None:
            return
        name = (thing.namespace, thing.name)
        if after is None:
            del self._secrets[name]
        else:
            self._secrets[name] = after
        self._stale_services |= self._of_secret.get(name, set())

    # What follows.

    def refresh(self) -> Changes:
        """See what differs since the last time."""
        services_differ = False
        for name in self._stale_services:
            before, after = self._found.get(name), self._find(name)
            self._keep(name, before, after)
            services_differ |= (before and before.service) != (after and after.service)
        stale = self._stale_services | self._stale_replicas
        self._stale_services, self._stale_replicas = set(), set()
        changed: dict[VersionKey, tuple[Replica, ...]] = {}
        for name in stale:
            changed |= self._replicas_of(name)
        return Changes(services_differ, changed)

    @property
    def services(self) -> dict[str, Service]:
        """All services in force."""
        return {name: found.service for name, found in self._found.items()}

    @property
    def found(self) -> Mapping[str, Found]:
        """All that is in force, by service."""
        return self._found

    def problems(self) -> list[Problem]:
        """All that is wrong now."""
        found = [problem for found in self._found.values() for problem in found.problems]
        return [*found, *(problem for problems in self._unusable.values() for problem in problems)]

    def pods_of(self, model: Model) -> list[Pod]:
        """The pods of a version."""
        pods = self._pods.get(model.key[0], {}).values()
        return [pod for pod in pods if self._assigned.get(pod.uid) == model.key]

    def has_secret(self, name: Name) -> bool:
        """Whether a Secret of this name is known, whatever it holds."""
        return name in self._secrets

    def _keep(self, name: str, before: Found | None, after: Found | None) -> None:
        if before is not None:
            self._of_secret[before.keys].discard(name)
        if after is None:
            self._found.pop(name, None)
        else:
            self._found[name] = after
            self._of_secret.setdefault(after.keys, set()).add(name)

    def _find(self, name: str) -> Found | None:
        self._unusable.pop(name, None)
        claims = sorted((c for c in self._deployments.get(name, {}).values() if not c.deleting), key=_age)
        if not claims:
            return None
        try:
            parse_service(name, {})
        except SettingsError as error:
            message = f"label {SERVICE_LABEL} = {name!r}: {error.allowed}; this Deployment gets no requests"
            self._unusable[name] = tuple(
                Problem((claim.namespace, claim.name), claim.uid, "ServiceNameRefused", message) for claim in claims
            )
            return None
        return self._with_keys(Finder(name, claims, self._right, self._defaults).find(), claims[0])

    def _with_keys(self, found: Found, oldest: Deployment) -> Found:
        """With the keys of its Secret. One that holds none takes nothing away."""
        secret = self._secrets.get(found.keys)
        if secret is None or not found.service.has_keys:
            return found
        if secret.primary_key or secret.secondary_key:
            keys = replace(found.service, primary_key=secret.primary_key, secondary_key=secret.secondary_key)
            return replace(found, service=keys)
        message = (
            f"Secret {secret.name}: must hold primaryKey or secondaryKey, each 1 to 256 visible ASCII characters "
            "without spaces; keys that were valid before stay so"
        )
        problem = Problem((oldest.namespace, oldest.name), oldest.uid, "KeysRefused", message)
        before = self._found.get(found.service.name)
        if before is not None and before.keys == found.keys:
            former = before.service
            found = replace(
                found,
                service=replace(found.service, primary_key=former.primary_key, secondary_key=former.secondary_key),
            )
        return replace(found, problems=(*found.problems, problem))

    # Replicas.

    def _replicas_of(self, name: str) -> dict[VersionKey, tuple[Replica, ...]]:
        """Versions of a service whose replicas differ from what was reported."""
        found = self._found.get(name)
        models = found.models if found is not None else ()
        now: dict[VersionKey, list[Replica]] = {model.key: [] for model in models}
        for pod in self._pods.get(name, {}).values():
            model = _model_of(pod, models)
            if model is not None:
                self._assigned[pod.uid] = model.key
                if not pod.ended and (pod.ip or not pod.deleting):
                    now[model.key].append(Replica(pod.uid, pod.ip, model.port, _state(pod)))
            elif (key := self._assigned.get(pod.uid)) is not None and pod.ip and not pod.ended:
                # Its Deployment is gone, or selects other pods now: it gets no more, what it has goes on.
                port = next((r.port for r in self._reported.get(key, ()) if r.id == pod.uid), 0)
                now.setdefault(key, []).append(Replica(pod.uid, pod.ip, port, ReplicaState.DRAINING))
        changed = {}
        known = {key for key in self._reported if key[0] == name}
        for key in known | now.keys():
            replicas = tuple(sorted(now.get(key, ()), key=lambda each: each.id))
            if replicas != self._reported.get(key):
                changed[key] = replicas
            if key in now:
                self._reported[key] = replicas
            else:
                self._reported.pop(key, None)
        return changed


def _age(deployment: Deployment) -> tuple[str, str, str]:
    return deployment.created, deployment.namespace, deployment.name


def _state(pod: Pod) -> ReplicaState:
    if pod.deleting:
        return ReplicaState.DRAINING
    return ReplicaState.READY if pod.ready and pod.ip else ReplicaState.STARTING


def _model_of(pod: Pod, models: Iterable[Model]) -> Model | None:
    """The version that a pod is a replica of. Selectors should not overlap; where they do, its ReplicaSet tells."""
    own = [m for m in models if m.deployment.namespace == pod.namespace and m.deployment.selects(pod.labels)]
    if len(own) > 1:
        return next((model for model in own if model.deployment.name == pod.deployment), None)
    return own[0] if own else None
