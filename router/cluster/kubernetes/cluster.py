"""The `Cluster` of a supervisor in Kubernetes: reports what is found, scales what may be scaled.

    follower --changes--> Models --services, replicas--> listener
                            |
                            +--> counts, HPAs, problems --> writer, recorder, keys   (only while this router leads)

Must not live here: rules about what is found (`models`, `finder`), how a number is written (`writer`, `counts`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

from router.cluster import ClusterListener
from router.cluster.kubernetes.client import Api
from router.cluster.kubernetes.counts import ROUNDS, Count, Foreign
from router.cluster.kubernetes.electorate import Electorate
from router.cluster.kubernetes.finder import Model, Problem
from router.cluster.kubernetes.follower import Follower
from router.cluster.kubernetes.keys import KeyMaker
from router.cluster.kubernetes.models import Models
from router.cluster.kubernetes.objects import (
    DEPLOYMENTS,
    HPAS,
    SECRETS,
    Deployment,
    Hpa,
    Lease,
    Name,
    Pod,
    Secret,
    model_pods,
    router_pods,
)
from router.cluster.kubernetes.peers import PeerList
from router.cluster.kubernetes.recorder import Recorder
from router.cluster.kubernetes.writer import Writer
from router.services import VersionKey
from router.telemetry.log import event

_log = logging.getLogger("router.kubernetes")

_GATHER_SECONDS = 0.02
"""Changes that come so close together are looked at once."""
_LOOK_SECONDS = 1.0
"""Problems that persist are looked at so often: keys that are missing, pauses that are over."""


class KubernetesCluster:
    """A `Cluster`. `electorate` says whether this router writes; the others only look."""

    def __init__(
        self,
        api: Api,
        *,
        namespaces: Sequence[str],
        own: Name,
        electorate: Electorate,
        peers: PeerList,
        generate_keys: bool,
        pause_seconds: float,
        join: Callable[[], Awaitable[None]],
        defaults: Mapping[str, object],
    ) -> None:
        """`join` connects with the other routers, and is awaited before anything is reported. `namespaces` are those
        that are served, all where empty; `own` is the namespace and name of this pod. For `pause_seconds` a Deployment
        is left alone whose number of replicas somebody else keeps writing. `defaults` are those of versions
        that differ from the table's."""
        self._electorate = electorate
        self._pause_seconds = pause_seconds
        self._join = join
        self._reports = False
        self._models = Models(defaults)
        self.follower = Follower(api)
        self.recorder = Recorder(api, own[1])
        self.writer = Writer(
            api, self.recorder, may_write=electorate.leads, pods=self._pods_of, foreign=self._foreign_write
        )
        self._keys = KeyMaker(api, self.recorder, generate=generate_keys, may_write=electorate.leads)
        self._listener: ClusterListener | None = None
        self._flush_timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._names: dict[VersionKey, Model] = {}
        self._keys_of: dict[Name, VersionKey] = {}
        self._left_alone: dict[VersionKey, str] = {}
        self._changed_deployments: set[Name] = set()
        served = tuple(namespaces) or ("",)
        self._deployments = self.follower.follow(DEPLOYMENTS, served, self._deployment_changed)
        self._pods = self.follower.follow(model_pods(), served, self._pod_changed)
        self.follower.follow(SECRETS, served, self._secret_changed)
        self._hpas = self.follower.follow(HPAS, served, self._hpa_changed)
        self.follower.follow(router_pods(), (own[0],), peers.changed)
        self._leases = self.follower.follow(electorate.resource, (own[0],), self._lease_changed)

    # Life.

    async def start(self, listener: ClusterListener) -> None:
        """See `Cluster`. Returns once models, pods and keys have been listed, however long that takes."""
        self._listener = listener
        await self.follower.start()
        await self._join()
        self._reports = True
        self._flush()
        self._electorate.listed(next(self._leases(), None))
        for work in (self._electorate.run(), self.recorder.run(), self._look()):
            self._tasks.append(asyncio.ensure_future(work))

    async def resign(self) -> None:
        """Write no more, and let another router begin; what this one follows it goes on following."""
        self._electorate.give_up()
        await self.writer.stop()
        await self._electorate.release()

    async def stop(self) -> None:
        """See `Cluster`. Replicas are not this router's and stay."""
        await self.resign()
        self._reports = False
        self._listener = None
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.follower.stop()
        if self._flush_timer is not None:
            self._flush_timer.cancel()

    # What is heard.

    def _deployment_changed(self, before: Deployment | None, after: Deployment | None) -> None:
        thing = after or before
        assert thing is not None
        self._changed_deployments.add((thing.namespace, thing.name))
        self._models.deployment_changed(before, after)
        self._soon()

    def _pod_changed(self, before: Pod | None, after: Pod | None) -> None:
        self._models.pod_changed(before, after)
        self._soon()

    def _secret_changed(self, before: Secret | None, after: Secret | None) -> None:
        self._models.secret_changed(before, after)
        self._soon()

    def _hpa_changed(self, before: Hpa | None, after: Hpa | None) -> None:
        self._soon()

    def _lease_changed(self, before: Lease | None, after: Lease | None) -> None:
        self._electorate.changed(before, after)

    def _soon(self) -> None:
        """Look at what has changed, together with what changes at the same time."""
        if self._flush_timer is None and self._reports:
            self._flush_timer = asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._flush)

    def _flush(self) -> None:
        self._flush_timer = None
        if self._listener is None:
            return
        try:
            self._report(self._listener)
        except Exception as fault:  # noqa: BLE001  (what was reported before stays, and the next change may do)
            event(_log, logging.ERROR, "changes of the cluster cannot be reported", exception=fault)

    def _report(self, listener: ClusterListener) -> None:
        changes = self._models.refresh()
        self._names = {model.key: model for found in self._models.found.values() for model in found.models}
        self._keys_of = {(m.deployment.namespace, m.deployment.name): key for key, m in self._names.items()}
        if changes.services:
            listener.services_changed(self._models.services)
        for key, replicas in changes.replicas.items():
            listener.replicas_changed(key, replicas)
        self._see_counts()
        self._see_who_scales()
        if self._electorate.leads():
            self.report_problems()

    # How many replicas there are.

    def _see_counts(self) -> None:
        changed, self._changed_deployments = self._changed_deployments, set()
        now = time.monotonic()
        for name in changed:
            key = self._keys_of.get(name)
            if key is None:
                self.writer.forget(name)
                continue
            deployment, count = self._names[key].deployment, self.writer.count(name)
            if count is None or count.uid != deployment.uid:
                self.writer.follow(name, Count(deployment))
                self._count_set(key, deployment.replicas)
            elif (foreign := count.seen(deployment, now)) is not None:
                self._foreign_write(name, foreign)

    def _foreign_write(self, name: Name, foreign: Foreign) -> None:
        """Somebody else has set a number."""
        key = self._keys_of.get(name)
        count = self.writer.count(name)
        if key is None or count is None:
            return
        self._count_set(key, foreign.after)
        if key in self._left_alone or not self._electorate.leads():
            return
        uid = self._names[key].deployment.uid
        said = f"{foreign.by} has set {foreign.before} to {foreign.after} replicas"
        if foreign.rounds >= ROUNDS and self._pause_seconds:
            count.stand_back(time.monotonic() + self._pause_seconds)
            self.recorder.say(
                name, uid, "ScalingContested",
                f"{said}, for the {foreign.rounds}th time against this router, which leaves the number alone for "
                f"{self._pause_seconds:g} s; let only one of them scale",
            )  # fmt: skip
            self._see_who_scales()
        else:
            self.recorder.say(
                name, uid, "ReplicasSetByOther",
                f"{said}; this router scales it and brings the number back to what it finds right",
                kind="Normal" if foreign.rounds == 0 else "Warning",
            )  # fmt: skip

    def _count_set(self, key: VersionKey, replicas: int) -> None:
        if self._listener is not None:
            self._listener.count_set(key, replicas)

    def _see_who_scales(self) -> None:
        """Leave alone what others scale, or what nobody has said rightly how to scale."""
        hpas = {(hpa.namespace, hpa.deployment): hpa for hpa in self._hpas()}
        now = time.monotonic()
        left: dict[VersionKey, str] = {}
        for key, model in self._names.items():
            name = (model.deployment.namespace, model.deployment.name)
            hpa, count = hpas.get(name), self.writer.count(name)
            if hpa is not None:
                left[key] = f"HorizontalPodAutoscaler {hpa.name}" + (
                    f" (of {hpa.managed_by})" if hpa.managed_by else ""
                )
            elif not model.is_scalable:
                left[key] = "its annotations about scaling never were right"
            elif count is not None and now < count.stands_back_until:
                left[key] = "somebody else keeps writing the number of replicas"
        before, self._left_alone = self._left_alone, left
        for key in before.keys() ^ left.keys():
            if key in left and (found := self.writer.count(self._name_of(key))) is not None:
                found.forget()
            if self._listener is not None and key in self._names:
                self._listener.left_alone(key, left.get(key))

    def _name_of(self, key: VersionKey) -> Name:
        deployment = self._names[key].deployment
        return deployment.namespace, deployment.name

    def scale(self, key: VersionKey, replicas: int, remove: Collection[str] = ()) -> None:
        """See `Cluster`. Nothing is written while another router leads, or of a version that is left alone."""
        model = self._names.get(key)
        if model is not None and key not in self._left_alone and self._electorate.leads():
            self.writer.want(self._name_of(key), model.deployment.uid, replicas, tuple(remove))

    def counts(self) -> dict[VersionKey, int]:
        """The number of replicas that each Deployment says."""
        counts = {}
        for key in self._names:
            count = self.writer.count(self._name_of(key))
            if count is not None:
                counts[key] = count.replicas
        return counts

    def _pods_of(self, name: Name) -> Iterable[Pod]:
        key = self._keys_of.get(name)
        return self._models.pods_of(self._names[key]) if key is not None else ()

    # What is wrong.

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                self._see_who_scales()
                if self._electorate.leads():
                    self.report_problems()
                    await self._keys.make_missing(self._models)
            except Exception as fault:  # noqa: BLE001  (requests are served all the same, and the next look may do)
                event(_log, logging.ERROR, "a look at the cluster failed", exception=fault)

    def problems(self) -> list[Problem]:
        """All that is wrong about Deployments."""
        return self._models.problems()

    def report_problems(self) -> None:
        """Post Events of what is wrong, and of what is left alone."""
        for problem in self._models.problems():
            self.recorder.say(problem.deployment, problem.uid, problem.reason, problem.message)
        for key, why in self._left_alone.items():
            model = self._names[key]
            if why.startswith("HorizontalPodAutoscaler"):
                self.recorder.say(
                    self._name_of(key), model.deployment.uid, "ScaledByOther",
                    f"{why} scales this Deployment, so this router leaves its number of replicas alone; delete it to "
                    "have the router scale by the requests that it sees",
                )  # fmt: skip

    @property
    def left_alone(self) -> dict[VersionKey, str]:
        """Versions that this router does not scale, and why."""
        return self._left_alone
