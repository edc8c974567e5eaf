"""Carries word between this pod's workers, its ledgers and the other pods, and keeps to the rules of `ownership`.

What a worker's holder says about a service goes to the ledger of the service's owner, in this process or over a link;
what a ledger says goes back the same way. When the owner changes in this pod's view, every worker introduces itself to
the new one (`Reintroduce`), and what the former one still says is not passed on.

    worker --ToLedgers--> Peering --own service--> Coordinator (ledgers)
                             |  `--other's service--> link --> the owner's Peering --> its Coordinator
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from router.gateway.control import FromLedger, Reintroduce
from router.peers.links import Links, NoLinks
from router.peers.messages import Forget, FrontEndGone, Leases, Leaving, Message, Reaches, ToHolder, Told, ToLedger
from router.services import VersionKey
from router.slots.coordinator import Coordinator
from router.slots.messages import Hello, Holds
from router.slots.messages import ToHolder as HolderMessage
from router.slots.messages import ToLedger as LedgerMessage
from router.slots.ownership import (
    GATHER_SECONDS,
    LOOK_SECONDS,
    RETURN_SECONDS,
    STILL_SECONDS,
    Move,
    Ownership,
)
from router.slots.reach import Reach
from router.telemetry.log import event

_log = logging.getLogger("router.peering")

_LEASES_AT_ONCE = 250  # versions in one message: a frame must not grow with the number of services
_SWEEP_SECONDS = 60.0  # longer than pods take to learn of the same services


class Peering:
    """This pod's part in routing as one. `to_worker(name, message)` reaches a worker of this pod."""

    def __init__(
        self,
        own_id: str,
        to_worker: Callable[[str, object], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.own_id = own_id
        self.ownership = Ownership(own_id)
        self._reach = Reach(own_id)
        self.coordinator = Coordinator()
        self.links: Links = NoLinks()
        self.messages_sent = 0  # to peers, about slots; reports of leases apart
        self.messages_received = 0
        self._to_worker = to_worker
        self._clock = clock
        self._workers: set[str] = set()
        self._front_ends: dict[str, set[str]] = {}  # peer -> its front-ends that we know
        self._incarnations: dict[str, str] = {}
        # Service -> its versions that workers of this pod have yet to introduce themselves for.
        self._awaited: dict[str, set[tuple[str, VersionKey]]] = {}
        self._versions: dict[str, list[VersionKey]] = {}
        self._replicas: dict[VersionKey, tuple[Mapping[str, int], frozenset[str]]] = {}  # slots, cordoned
        self._missing: dict[str, float] = {}  # peer whose link was lost just now -> until when it may come back
        self._inherited: set[str] = set()  # services whose former owner is on the other side of a cut
        self._cut = False
        self._partly_cut = False
        self._leaving = False
        self._awake_at: float | None = None  # None until `tick` is called
        self._swept_at = self._joined_at = clock()
        self._has_met_all = True

    def join(self, links: Links) -> None:
        """Be one of several pods from now on: who there is must be expected by `links`. Nothing is granted before it is
        known who of them lives."""
        self.links = links
        now = self._joined_at = self._clock()
        self._has_met_all = False
        for service in self.ownership.hold_back(now, now):
            self.coordinator.stop_granting(service)
        self._begin_granting()

    # Services and replicas.

    def services_changed(self, versions: Collection[VersionKey]) -> None:
        """Make `versions` the complete set."""
        now = self._wake()
        self._versions = {}
        for key in versions:
            self._versions.setdefault(key[0], []).append(key)
        self._replicas = {key: known for key, known in self._replicas.items() if key in versions}
        self.coordinator.set_versions(versions)
        for move in self.ownership.set_services(self._versions, now):
            self.coordinator.stop_granting(move.service)  # what others may have told of it already is kept
            self._tell(move.service)  # nobody here holds anything of a service that is new
        for service in tuple(self._awaited):
            self._awaited[service] &= {(w, key) for w in self._workers for key in self._versions.get(service, ())}
            self._tell_if_complete(service)
        self._begin_granting()

    def set_replicas(self, key: VersionKey, slots: Mapping[str, int], cordoned: Collection[str]) -> None:
        """Make `slots` (replica id -> slots) the complete set of a version's replicas, and cordon those `cordoned`."""
        self._wake()
        self._replicas[key] = (slots, frozenset(cordoned))
        self._apply_replicas(key)

    def _apply_replicas(self, key: VersionKey) -> None:
        """Tell the ledger what it may grant: during a cut, only what belongs to this side.

        What front-ends of this side have beyond that goes back where the other side does not know of it. It knows if
        its ledger granted it: then they go on with that.
        """
        slots, cordoned = self._replicas[key]
        others: frozenset[str] = frozenset()
        if self.ownership.is_cut:
            others = self.ownership.others_share([r for r in slots if r not in cordoned], self._clock())
        if key[0] in self._inherited:
            self.coordinator.set_replicas(key, slots, cordoned, others)
        else:
            self.coordinator.set_replicas(key, slots, cordoned | others)

    # Workers.

    def worker_started(self, name: str) -> None:
        """A worker of this pod begins."""
        self._workers.add(name)

        def deliver(key: VersionKey, message: HolderMessage) -> None:
            self._to_worker(name, FromLedger(key, message))

        self.coordinator.attach(self._front_end(name), deliver)

    def worker_ended(self, name: str) -> None:
        """A worker's process is gone."""
        self._wake()
        self._workers.discard(name)
        front_end = self._front_end(name)
        self.coordinator.detach(front_end)
        self.links.broadcast(FrontEndGone(front_end))
        for service in tuple(self._awaited):
            self._awaited[service] = {awaited for awaited in self._awaited[service] if awaited[0] != name}
            self._tell_if_complete(service)
        self._begin_granting()

    def worker_said(self, name: str, key: VersionKey, messages: Sequence[LedgerMessage]) -> None:
        """A worker's holder has something to say to its ledger."""
        self._wake()
        owner = self.ownership.owner(key[0])
        if owner == self.own_id:
            self.coordinator.receive(self._front_end(name), key, messages)
        else:
            self.messages_sent += 1
            self.links.send(owner, ToLedger(self._front_end(name), key, tuple(messages)))
        awaited = self._awaited.get(key[0])
        if awaited is not None and any(isinstance(message, Hello) for message in messages):
            awaited.discard((name, key))
            self._tell_if_complete(key[0])
            self._begin_granting()

    def worker_holds(self, name: str, leases: Mapping[VersionKey, Holds]) -> None:
        """A worker's holders say what they have; all that they had to say before was heard."""
        self._wake()
        front_end = self._front_end(name)
        elsewhere: dict[str, list[tuple[VersionKey, Holds]]] = {}
        for key, holds in leases.items():
            owner = self.ownership.owner(key[0])
            if owner == self.own_id:
                self._reconcile(front_end, key, holds)
            else:
                elsewhere.setdefault(owner, []).append((key, holds))
        for owner, all_holds in elsewhere.items():
            for start in range(0, len(all_holds), _LEASES_AT_ONCE):
                self.links.send(owner, Leases(front_end, dict(all_holds[start : start + _LEASES_AT_ONCE])))

    def _reconcile(self, front_end: str, key: VersionKey, holds: Holds) -> None:
        for leak in self.coordinator.reconcile(front_end, key, holds):
            event(
                _log, logging.ERROR, "leases out of step, repaired", service=key[0], version=key[1],
                front_end=front_end, replica=leak.replica, recorded=leak.recorded, held=leak.held,
            )  # fmt: skip

    def _tell_if_complete(self, service: str) -> None:
        if not self._awaited[service]:
            del self._awaited[service]
            self._tell(service)

    def _tell(self, service: str) -> None:
        """All that this pod holds of a service has been told to its owner: say that this was all."""
        owner = self.ownership.owner(service)
        if owner == self.own_id:
            self.ownership.told(self.own_id, service)
        else:
            self.links.send(owner, Told(service))

    def _front_end(self, worker: str) -> str:
        return f"{self.own_id}/{worker}"

    # Peers.

    def leave(self) -> None:
        """This pod is about to end: others own the services from now on, while its workers finish what they have."""
        self._leaving = True
        self.links.broadcast(Leaving())
        self._move(self.ownership.leaves(self.own_id, self._clock()))

    def peer_up(self, peer: str, incarnation: str) -> None:
        """A link to a pod is up, for the first time or again."""
        now = self._wake()
        if self._incarnations.get(peer, incarnation) != incarnation:
            self._forget_front_ends(peer)  # the process that held leases is another one now
        self._incarnations[peer] = incarnation
        self._missing.pop(peer, None)
        if self._leaving:
            self.links.send(peer, Leaving())
        for service in self.ownership.session_began(peer, now):
            self.coordinator.stop_granting(service)
        moves = self._look()
        self.links.send(peer, Reaches(self.ownership.live))  # also if it is nothing new to others
        # What was on its way when the link broke is lost, so a service that stays this peer's is told anew as well.
        staying = set(self.ownership.owned_by(peer)) - {move.service for move in moves}
        self._move(moves, also=staying)

    def peer_down(self, peer: str, certain: bool) -> None:
        """A link is down; `certain`: the pod's process has ended."""
        now = self._wake()
        if certain:
            self._missing.pop(peer, None)
            self._forget_front_ends(peer)
        else:
            if peer in self.ownership.live:
                self._missing[peer] = now + RETURN_SECONDS
            for front_end in self._front_ends.get(peer, ()):
                self.coordinator.disconnect(front_end)
        self._move(self._look())

    def peer_certainly_gone(self, peer: str) -> None:
        """A pod that was unreachable has turned out to be gone."""
        self._wake()
        self._missing.pop(peer, None)
        self._forget_front_ends(peer)
        self._move(self._look())

    def peer_said(self, peer: str, message: Message) -> None:
        """A pod speaks about slots."""
        self.messages_received += 1
        now = self._wake()
        match message:
            case ToLedger(front_end, key, said):
                if self._is_of(peer, front_end):
                    self.coordinator.receive(front_end, key, said)
            case ToHolder(front_end, key, said):
                worker = front_end.removeprefix(f"{self.own_id}/")
                if worker in self._workers and self.ownership.owner(key[0]) == peer:
                    for each in said:
                        self._to_worker(worker, FromLedger(key, each))
            case Leases(front_end, leases):
                if self._is_of(peer, front_end):
                    for key, holds in leases.items():
                        self._reconcile(front_end, key, holds)
            case FrontEndGone(front_end):
                if self._is_of(peer, front_end):
                    self._front_ends[peer].discard(front_end)
                    self.coordinator.detach(front_end)
            case Reaches(peers):
                self._reach.told(peer, peers)
                self._move(self._look())
            case Leaving():
                self._move(self.ownership.leaves(peer, self._clock()))
            case Told(service):
                self.coordinator.has_told_all(self._front_ends.get(peer, ()), service)
                self.ownership.told(peer, service)
                self._begin_granting()
            case Forget(service):
                self.coordinator.lose(self._front_ends.get(peer, ()), service)
                if self.ownership.forget(peer, service, now):
                    self.coordinator.stop_granting(service)

    def _is_of(self, peer: str, front_end: str) -> bool:
        """Whether a front-end is one of this peer's own; makes it known."""
        if not front_end.startswith(f"{peer}/"):
            event(_log, logging.WARNING, "peer speaks for another one's front-end", peer=peer, front_end=front_end)
            return False
        self._front_ends.setdefault(peer, set()).add(front_end)
        if not self.coordinator.is_attached(front_end):

            def deliver(key: VersionKey, message: HolderMessage) -> None:
                self.messages_sent += 1
                self.links.send(peer, ToHolder(front_end, key, (message,)))

            self.coordinator.attach(front_end, deliver)
        return True

    def _forget_front_ends(self, peer: str) -> None:
        for front_end in self._front_ends.pop(peer, ()):
            self.coordinator.detach(front_end)

    # The view.

    def tick(self) -> None:
        """See what only time tells; call ten times a second."""
        self._awake_at = self._awake_at or self._clock()
        now = self._wake()
        for peer in [peer for peer, until in self._missing.items() if now >= until]:
            del self._missing[peer]
            event(_log, logging.WARNING, "peer unreachable, its leases and share are kept for a while", peer=peer)
            self._move(self._look())
        for peer in self.ownership.expired(now):
            event(_log, logging.WARNING, "peer still unreachable, its leases and share are taken", peer=peer)
            self._forget_front_ends(peer)
        if now - self._swept_at >= _SWEEP_SECONDS:
            self._swept_at = now
            self.coordinator.sweep()
        if self._reach.is_due(now):
            self._move(self._look())
        self._share_out()
        self._begin_granting()

    def _wake(self) -> float:
        """The time, after a look at whether this process stood still: others may take its services for theirs now."""
        now = self._clock()
        if self._awake_at is None:
            return now
        still, self._awake_at = now - self._awake_at, now
        if still >= STILL_SECONDS and self.links.live():
            event(_log, logging.WARNING, "process stood still, nothing is granted for a moment", seconds=f"{still:.3f}")
            for service in self.ownership.hold_back(now, now + LOOK_SECONDS):
                self.coordinator.stop_granting(service)
        return now

    def _look(self) -> list[Move]:
        live, unreachable = self.links.live().union(self._missing), self.links.unreachable()
        now, former = self._clock(), self.ownership.live
        for peer in former.difference(live):
            self._reach.lost(peer)
        self._reach.look(live, now)
        preferred = self._reach.preferred
        if preferred is not None:  # who is reached by way of another pod is on no other side
            unreachable = {peer: since for peer, since in unreachable.items() if peer not in self._reach.everyone}
        self._say_whether_partly_cut(preferred)
        moves = self.ownership.set_peers(live, unreachable, now, preferred)
        if self.ownership.live != former:
            self.links.broadcast(Reaches(self.ownership.live))
        self._inherited.update(move.service for move in moves if move.before in unreachable)
        self._share_out()
        return moves

    def _say_whether_partly_cut(self, preferred: frozenset[str] | None) -> None:
        partly_cut = preferred is not None
        if partly_cut != self._partly_cut:
            self._partly_cut = partly_cut
            message = (
                "not all pods reach each other, those that all reach own the services"
                if partly_cut
                else "all pods reach each other again"
            )
            pods = ",".join(sorted(preferred or ()))
            event(_log, logging.WARNING if partly_cut else logging.INFO, message, owners=pods)

    def _share_out(self) -> None:
        """Let the ledgers know when a cut begins, changes or ends."""
        cut = self.ownership.is_cut
        if cut != self._cut:
            message = "replicas are shared out between the sides of a cut" if cut else "replicas are shared out no more"
            event(_log, logging.WARNING if cut else logging.INFO, message, reachable=len(self.ownership.live))
        if not cut:
            self._inherited.clear()
        if cut or self._cut:
            self._cut = cut
            for key in self._replicas:
                self._apply_replicas(key)

    def _move(self, moves: Sequence[Move], also: Iterable[str] = ()) -> None:
        """Other pods own these services from now on: forget what is not ours to know, and tell the new owners."""
        for move in moves:
            if move.before == self.own_id:
                self.coordinator.start_over(move.service)
            elif move.before is not None:
                self.links.send(move.before, Forget(move.service))
            if move.after == self.own_id:
                self.coordinator.stop_granting(move.service)
        services = frozenset([*(move.service for move in moves), *also])
        if services:
            self._reintroduce(services)
            event(_log, logging.INFO, "owners of services", told=len(services), pods=len(self.ownership.live))
        self._begin_granting()

    def _reintroduce(self, services: frozenset[str]) -> None:
        for service in services:
            self._awaited[service] = {(w, key) for w in self._workers for key in self._versions.get(service, ())}
            self._tell_if_complete(service)
        for worker in self._workers:
            self._to_worker(worker, Reintroduce(services))

    @property
    def is_cut(self) -> bool:
        """Whether there are other pods that may live and cannot be reached: only a fair share of the replicas is
        granted."""
        return self._cut

    def _begin_granting(self) -> None:
        if not self._has_met_all:
            # Others may own what seems to be this pod's, as long as it does not know who there is.
            waited = self._clock() - self._joined_at >= GATHER_SECONDS
            self._has_met_all = waited or self.links.has_tried_all()
            if not self._has_met_all:
                return
        for service in self.ownership.newly_granting(self._clock()):
            self.coordinator.begin_granting(service)
