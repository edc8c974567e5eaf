"""The `Cluster` of a supervisor in Kubernetes: reports services and replicas, and scales Deployments.

    InformerSet --changes--> ServiceRegistry --services, replicas--> listener
                                   |
                                   +--> replica counts, HPAs, problems
                                          --> ScaleWriter, EventRecorder, SecretProvisioner   (only the leader)

Does not contain: how services are derived (`service_registry`, `service_assembler`), how a replica count is written
(`scale_writer`, `replica_count_state`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from router.cluster import ClusterListener
from router.cluster.kubernetes.access import SETTINGS_CONFIG_MAP
from router.cluster.kubernetes.client import ApiClient
from router.cluster.kubernetes.config_map_store import ConfigMapStore
from router.cluster.kubernetes.dynamic_settings import stored_dynamic_config
from router.cluster.kubernetes.event_recorder import EventRecorder
from router.cluster.kubernetes.informers import InformerSet
from router.cluster.kubernetes.key_secrets import SecretProvisioner
from router.cluster.kubernetes.leader_elector import LeaderElector
from router.cluster.kubernetes.name_claimer import NameClaimer
from router.cluster.kubernetes.objects import (
    Deployment,
    Hpa,
    Lease,
    NamespacedName,
    Pod,
    ReleaseClaim,
    Secret,
    name_of,
    named_after,
)
from router.cluster.kubernetes.peer_discovery import PeerDiscovery
from router.cluster.kubernetes.release_claim_writer import ReleaseClaimWriter
from router.cluster.kubernetes.release_claims import ReleaseClaims, ReleaseConflict
from router.cluster.kubernetes.replica_count_state import (
    CONTEST_SECONDS,
    CONTESTED_WRITES,
    ExternalWrite,
    ReplicaCountState,
)
from router.cluster.kubernetes.resources import (
    DEPLOYMENTS,
    HPAS,
    RELEASE_CLAIMS,
    SECRETS,
    model_pods,
    router_pods,
)
from router.cluster.kubernetes.scale_writer import ScaleWriter
from router.cluster.kubernetes.scaling_suspension import (
    ScalingFacts,
    ScalingSuspension,
    SuspensionCause,
    find_suspensions,
)
from router.cluster.kubernetes.service_assembler import DeploymentProblem, ResolvedVersion
from router.cluster.kubernetes.service_registry import ServiceRegistry
from router.config.dynamic import ServiceOverlay
from router.config.polling import POLL_SECONDS
from router.model.services import VersionKey
from router.telemetry.log import event as log_event

_log = logging.getLogger("router.cluster")

_BATCH_SECONDS = 0.02
"""Changes of objects are reported together after this time."""


class OwnProblem(NamedTuple):
    """A problem of this router, as the Event of its pod has it."""

    reason: str
    message: str


class KubernetesCluster:
    """A `Cluster`. All routers report services and replicas; only the leader writes to the API server."""

    def __init__(
        self,
        api: ApiClient,
        *,
        namespaces: Sequence[str],
        router: NamespacedName,
        observes: bool,
        own_pod: str,
        elector: LeaderElector,
        peers: PeerDiscovery,
        generate_keys: bool,
        pause_seconds: float,
        join: Callable[[], Awaitable[None]],
        defaults: Mapping[str, object],
        names_have_namespace: bool,
        own_problems: Callable[[], Iterable[OwnProblem]] = tuple,
    ) -> None:
        """
        namespaces: the namespaces of the models, all if empty
        router: the namespace of this router and its name (`router_name`)
        observes: the router neither scales nor serves the models, except those whose annotation says so
        pause_seconds: how long the router does not scale a Deployment that a competing controller scales
        join: connects to the other routers; awaited before anything is reported
        defaults: see `parse_service`
        names_have_namespace: the name of a service is `namespace/name`
        own_problems: problems of this router, which become Events of its pod
        """
        self._api = api
        self._elector = elector
        self._pause_seconds = pause_seconds
        self._join = join
        self._own_pod = NamespacedName(router.namespace, own_pod)
        self._own_problems = own_problems
        self._is_reporting = False
        self._registry = ServiceRegistry(defaults, observes=observes, names_have_namespace=names_have_namespace)
        self._claims = ReleaseClaims(str(router), observes=observes)
        self._claim_writer = ReleaseClaimWriter(api, self._claims, may_write=elector.leads)
        self._namespaces = tuple(namespaces)
        self.informers = InformerSet(api)
        self.event_recorder = EventRecorder(api, own_pod)
        self._writer = ScaleWriter(
            api,
            self.event_recorder,
            may_write=elector.leads,
            pods_of=self._pods_of,
            on_external_write=self._on_external_write,
        )
        self._secrets = SecretProvisioner(api, self.event_recorder, generate=generate_keys, may_write=elector.leads)
        self._dynamic_config: str | None = None  # the one in effect, encoded
        self._stored_settings = ConfigMapStore(
            api,
            NamespacedName(router.namespace, named_after(router.name, SETTINGS_CONFIG_MAP)),
            may_write=elector.leads,
            desired=self._settings_to_store,
            on_content=self._on_stored_settings,
        )
        self._names = NameClaimer(
            api, router, self._registry, may_write=self._may_claim_names, on_change=self._schedule_report
        )
        self._listener: ClusterListener | None = None
        self._report_timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._versions: dict[VersionKey, ResolvedVersion] = {}
        self._keys: dict[NamespacedName, VersionKey] = {}  # by Deployment
        self._suspended: dict[VersionKey, ScalingSuspension] = {}
        self._in_charge: set[VersionKey] = set()  # those that this router serves, unless it observes them
        self._changed_deployments: set[NamespacedName] = set()
        served = tuple(namespaces) or ("",)
        self.informers.add(DEPLOYMENTS, served, self._on_deployment_changed)
        self.informers.add(model_pods(), served, self._on_pod_changed)
        self.informers.add(SECRETS, served, self._on_secret_changed)
        self.informers.add(RELEASE_CLAIMS, served, self._on_claim_changed)
        self._hpas = self.informers.add(HPAS, served, self._on_hpa_changed)
        self._router_pods = self.informers.add(router_pods(router.name), (router.namespace,), peers.on_pod_changed)
        store = self._stored_settings
        self.informers.add(store.resource, (router.namespace,), store.on_changed)
        self.informers.add(self._names.store.resource, (router.namespace,), self._names.store.on_changed)
        self._leases = self.informers.add(elector.resource, (router.namespace,), self._on_lease_changed)

    # Start and stop.

    async def start(self, listener: ClusterListener) -> None:
        """See `Cluster`. Waits without a timeout until all resources have been listed."""
        self._listener = listener
        await self.informers.start()
        await self._join()
        self._is_reporting = True
        self._report_changes()
        self._elector.on_lease_changed(next(self._leases(), None))
        for work in (
            self._elector.run(), self._names.store.run(), self._stored_settings.run(), self.event_recorder.run(),
            self._check_periodically(),
        ):  # fmt: skip
            self._tasks.append(asyncio.ensure_future(work))

    def set_overlays(self, overlays: Mapping[str, ServiceOverlay]) -> None:
        """Apply the settings of services in the dynamic configuration, by service. They override annotations."""
        self._registry.set_overlays(overlays)
        self._schedule_report()

    def store_dynamic_config(self, encoded: str) -> None:
        """Keep the dynamic configuration that is in effect for all router pods, while this one leads."""
        self._dynamic_config = encoded
        self._stored_settings.wake()

    async def resign(self) -> None:
        """Stop writing and let another router lead. The watches continue."""
        self._elector.resign()
        await self._writer.stop()
        await self._elector.release()

    async def stop(self) -> None:
        """See `Cluster`. The replicas keep running, as they belong to the Deployments."""
        await self.resign()
        self._is_reporting = False
        self._listener = None
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.informers.stop()
        if self._report_timer is not None:
            self._report_timer.cancel()

    # Changes of objects.

    def _on_deployment_changed(self, before: Deployment | None, after: Deployment | None) -> None:
        present = after or before
        assert present is not None
        self._changed_deployments.add(name_of(present))
        self._registry.on_deployment_changed(before, after)
        self._schedule_report()

    def _on_pod_changed(self, before: Pod | None, after: Pod | None) -> None:
        self._registry.on_pod_changed(before, after)
        self._schedule_report()

    def _on_secret_changed(self, before: Secret | None, after: Secret | None) -> None:
        self._registry.on_secret_changed(before, after)
        self._schedule_report()

    def _on_hpa_changed(self, before: Hpa | None, after: Hpa | None) -> None:
        self._schedule_report()

    def _on_claim_changed(self, before: ReleaseClaim | None, after: ReleaseClaim | None) -> None:
        previous = self._claims.other_holders()
        self._claims.on_claim_changed(before, after, time.monotonic())
        holders = self._claims.other_holders()
        if holders == previous:
            return
        self._registry.set_other_holders(holders)
        for namespace, holder in holders.items():
            if previous.get(namespace) != holder:
                message = "another release serves the models of a namespace"
                log_event(_log, logging.WARNING, message, namespace=namespace, release=holder)
        self._schedule_report()

    def _on_stored_settings(self, content: Mapping[str, str]) -> None:
        self._registry.set_stored_settings(content)
        self._schedule_report()

    def _settings_to_store(self) -> Mapping[str, str] | None:
        stored = self._stored_settings.content or {}
        content = self._registry.stored_settings() | stored_dynamic_config(self._dynamic_config, stored)
        return content if content or self._stored_settings.content else None

    def _on_lease_changed(self, before: Lease | None, after: Lease | None) -> None:
        self._elector.on_lease_changed(after)

    def _schedule_report(self) -> None:
        if self._report_timer is None and self._is_reporting:
            self._report_timer = asyncio.get_running_loop().call_later(_BATCH_SECONDS, self._report_changes)

    def _report_changes(self) -> None:
        self._report_timer = None
        if self._listener is None:
            return
        try:
            self._report_to(self._listener)
        except Exception as error:  # noqa: BLE001  (the last report stays valid, and the next change may be reported)
            log_event(_log, logging.ERROR, "changes of the cluster cannot be reported", exception=error)

    def _report_to(self, listener: ClusterListener) -> None:
        changes = self._registry.refresh()
        self._stored_settings.wake()
        self._names.on_refreshed()
        self._versions = {v.key: v for resolved in self._registry.resolved.values() for v in resolved.versions}
        keys_before = self._keys
        self._keys = {name_of(version.deployment): key for key, version in self._versions.items()}
        # A Deployment becomes a version without a change of its own when its name is claimed.
        self._changed_deployments |= keys_before.keys() ^ self._keys.keys()
        self._claims.set_wanted(self._registry.wanted_namespaces())
        if changes.services:
            listener.services_changed(self._registry.services)
        self._update_charge()
        for key, replicas in changes.replicas.items():
            listener.replicas_changed(key, replicas)
        self._observe_replica_counts()
        self._update_suspensions()
        if self._elector.leads():
            self._post_problems()

    # Scaling.

    def _update_charge(self) -> None:
        """Update which versions this router scales. It begins with the present number of replicas."""
        before = self._in_charge
        self._in_charge = {key for key in self._versions if not self._registry.resolved[key[0]].service.standby}
        for key in before ^ self._in_charge:
            state = self._writer.state_of(self._name_of(key)) if key in self._versions else None
            if state is None:
                continue
            if key in self._in_charge:
                self._report_external_count(key, state.current)
            else:
                state.clear_desired()

    def _observe_replica_counts(self) -> None:
        changed, self._changed_deployments = self._changed_deployments, set()
        now = time.monotonic()
        for name in changed:
            key = self._keys.get(name)
            if key is None:
                self._writer.remove(name)
                continue
            deployment, state = self._versions[key].deployment, self._writer.state_of(name)
            if state is None or state.uid != deployment.uid:
                self._writer.add(name, ReplicaCountState(deployment))
                self._report_external_count(key, deployment.replicas)
            elif (external_write := state.observe_deployment(deployment, now)) is not None:
                self._on_external_write(name, external_write)

    def _on_external_write(self, name: NamespacedName, write: ExternalWrite) -> None:
        key = self._keys.get(name)
        state = self._writer.state_of(name)
        if key is None or state is None:
            return
        self._report_external_count(key, write.after)
        if key in self._suspended or key not in self._in_charge or not self._elector.leads():
            return
        if write.manager == self._api.field_manager and not write.undone_writes:
            return  # probably by the pod that led before
        uid = self._versions[key].deployment.uid
        change = f"{write.manager} has changed the number of replicas from {write.before} to {write.after}"
        if write.undone_writes >= CONTESTED_WRITES and self._pause_seconds:
            state.back_off(time.monotonic() + self._pause_seconds)
            self.event_recorder.record(
                name, uid, "ScalingContested",
                f"{change}. {write.undone_writes} writes of the router were undone within {CONTEST_SECONDS:g} s, so "
                f"the router does not scale the Deployment for {self._pause_seconds:g} s. Let only one of them scale "
                "it.",
            )  # fmt: skip
            self._update_suspensions()
        else:
            self.event_recorder.record(
                name, uid, "ReplicasSetByOther",
                f"{change}. The router scales this Deployment and sets the number that it calculates.",
                event_type="Normal" if write.undone_writes == 0 else "Warning",
            )  # fmt: skip

    def _report_external_count(self, key: VersionKey, replicas: int) -> None:
        if self._listener is not None:
            self._listener.replicas_changed_externally(key, replicas)

    def _update_suspensions(self) -> None:
        """Find out which versions are not scaled, and report changes."""
        backing_off = self._writer.backing_off(time.monotonic())
        facts = ScalingFacts(self._claims.other_holders(), self._hpas(), backing_off)
        suspended = find_suspensions(self._versions, facts, datetime.now(UTC))
        before, self._suspended = self._suspended, suspended
        for key in before.keys() ^ suspended.keys():
            if key in suspended and (state := self._writer.state_of(self._name_of(key))) is not None:
                state.clear_desired()
            if self._listener is not None and key in self._versions:
                self._listener.scaling_suspended(key, suspended[key].reason if key in suspended else None)

    def _name_of(self, key: VersionKey) -> NamespacedName:
        return name_of(self._versions[key].deployment)

    def scale(self, key: VersionKey, replicas: int, remove: Collection[str] = ()) -> None:
        """See `Cluster`. Does nothing while another router leads, while scaling of the version is suspended, or if this
        router only observes its service."""
        version = self._versions.get(key)
        is_suspended = key in self._suspended or key not in self._in_charge
        if version is not None and not is_suspended and self._elector.leads():
            self._writer.set_desired(self._name_of(key), version.deployment.uid, replicas, tuple(remove))

    def _may_claim_names(self) -> bool:
        """A router that observes all services makes no claims, not even the ConfigMap for them."""
        return self._elector.leads() and (not self._claims.observes or bool(self._registry.wanted_namespaces()))

    @property
    def services_in_charge(self) -> Collection[str]:
        """The services that this router serves and scales, if it leads."""
        return {service for service, _ in self._in_charge}

    def report_ejection(self, key: VersionKey, replica_id: str, reason: str) -> None:
        """See `Cluster`. Posts an Event; that of another router about the same is updated."""
        version = self._versions.get(key)
        if version is not None:
            pods = self._registry.pods_of(version)
            pod_name = next((pod.name for pod in pods if pod.uid == replica_id), replica_id)
            self.event_recorder.record(
                self._name_of(key), version.deployment.uid, "ReplicaEjected",
                f"pod {pod_name} gets no requests for a while: {reason}",
                logged=False,
            )  # fmt: skip

    def report_server_error(self, key: VersionKey, replica_id: str, status: int) -> None:
        """See `Cluster`. Does nothing: the log of the pod has the reason."""

    def discard_pending_scaling(self) -> None:
        """Forget the desired counts that have not been written yet, since another router leads."""
        self._writer.clear_all_desired()

    def replica_counts(self) -> dict[VersionKey, int]:
        """Return `spec.replicas` of the Deployment of each version."""
        counts = {}
        for key in self._versions:
            state = self._writer.state_of(self._name_of(key))
            if state is not None:
                counts[key] = state.current
        return counts

    @property
    def scaling_conflicts(self) -> Collection[VersionKey]:
        """The versions that the router does not scale, except those of another release, and those whose annotation says
        so."""
        return {key for key, suspension in self._suspended.items() if suspension.is_conflict}

    def _pods_of(self, name: NamespacedName) -> Iterable[Pod]:
        key = self._keys.get(name)
        return self._registry.pods_of(self._versions[key]) if key is not None else ()

    # Problems.

    async def _check_periodically(self) -> None:
        """Do what no watch event triggers: create missing keys, and end suspensions of scaling."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                self._update_suspensions()
                self._post_own_problems()
                if self._elector.leads():
                    self._post_problems()
                    await self._claim_writer.write_due(self._namespaces or sorted(self._registry.namespaces()))
                    await self._secrets.create_missing(self._registry)
            except Exception as error:  # noqa: BLE001  (requests are still served, and the next check may succeed)
                log_event(_log, logging.ERROR, "the periodic check of the cluster failed", exception=error)

    def staleness_seconds(self) -> dict[str, float]:
        """Return how many seconds the cache of each resource may have been out of date. The value of `leases` includes
        the time for which the Lease cannot be written."""
        seconds = self.informers.staleness_seconds()
        lease = self._elector.resource.plural
        return seconds | {lease: max(seconds.get(lease, 0.0), self._elector.failing_seconds())}

    def connection_warnings(self) -> Iterable[str]:
        """Yield a line for each resource that the API server does not report or store."""
        staleness = self.informers.max_staleness_seconds()
        for resource, reason in self.informers.failures().items():
            yield f"{resource}: no update for up to {staleness:.0f} s, using the last known state ({reason})"
        if seconds := self._elector.failing_seconds():
            yield f"the Lease cannot be written for {seconds:.0f} s, so nothing is scaled ({self._elector.failure})"
        if self._stored_settings.failure:
            yield f"the last valid settings of models cannot be stored ({self._stored_settings.failure})"
        yield from self._names.warnings()

    def problems(self) -> list[DeploymentProblem]:
        """Return the current problems of all Deployments."""
        return [*self._registry.problems(), *self._names.problems()]

    def release_conflicts(self) -> list[ReleaseConflict]:
        """Return the current conflicts with other releases of the router."""
        return list(self._claims.conflicts(time.monotonic()))

    def _post_own_problems(self) -> None:
        own = next((pod for pod in self._router_pods() if name_of(pod) == self._own_pod), None)
        if own is not None:
            for problem in self._own_problems():
                self.event_recorder.record(
                    self._own_pod, own.uid, problem.reason, problem.message, kind="Pod", logged=False
                )
            for conflict in self.release_conflicts() if self._elector.leads() else ():
                self.event_recorder.record(
                    self._own_pod, own.uid, "ReleaseConflict", str(conflict), kind="Pod", logged=False
                )

    def _post_problems(self) -> None:
        for problem in self.problems():
            self.event_recorder.record(
                problem.deployment, problem.uid, problem.reason, problem.message, service=problem.service
            )
        for key, suspension in self._suspended.items():
            deployment, paused_until = self._versions[key].deployment, self._versions[key].scaling_paused_until
            if suspension.cause is SuspensionCause.PAUSED and paused_until is not None:
                self.event_recorder.record(
                    name_of(deployment), deployment.uid, "ScalingPaused",
                    f"the router does not change the number of replicas until {paused_until.isoformat()}",
                    event_type="Normal",
                )  # fmt: skip
            elif suspension.cause is SuspensionCause.HPA:
                self.event_recorder.record(
                    name_of(deployment), deployment.uid, "ScaledByOther",
                    f"{suspension.reason} scales this Deployment, so the router does not. If the router should scale "
                    "it, by the requests that it receives, delete the autoscaler.",
                )  # fmt: skip
