"""Who owns the ledger of a service, and when may it grant? Decides, does no I/O.

The owner (service router) of a service is chosen by rendezvous hashing (Thaler and Ravishankar 1998) over the pods that
are live in one's own view, so there is no election, and a pod that comes or goes moves only its own share of services.

Views differ for a moment whenever a pod comes or goes. Three rules keep two pods from granting the same slot:

- A pod grants for a service only if it owns it by its own view, and every live pod has told it what its front-ends
  hold. A pod tells whom it believes to be the owner, and takes that back (`Forget`) when it believes otherwise. One
  that does not tell within `GATHER_SECONDS` is not waited for: serving comes before perfection.
- A pod that stood still may have been given up by others meanwhile, without its knowing. It grants nothing until it has
  had time to hear of that (`hold_back`).
- What a pod that became unreachable holds stays on record until it is certainly gone, or `GRACE_SECONDS` are over.
- While some pods are unreachable but may live (a cut network, a frozen process), the replicas are shared out among all
  pods, reachable or not, again by rendezvous. Each side of the cut grants only what belongs to pods on its side, so
  that the sides together grant no more than there is; but where all replicas of a version belong to others, one is
  granted all the same: serving comes before perfection. After `GRACE_SECONDS` the unreachable ones' share is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

GATHER_SECONDS = 1.0
"""How long a new owner waits for the others to tell what they hold: as long as their links may be silent. They take
milliseconds, unless the machine is overloaded; all the while front-ends go on with the leases they have."""

RETURN_SECONDS = 0.25
"""How long a pod whose link was lost has to be linked again, or to be found gone, before others take over from it: a
connection that is reset is back within milliseconds, and nobody then granted what the other side had granted too."""

STILL_SECONDS = 0.75
"""Who stood still so long may have been given up: less than the silence after which that happens, by a heartbeat."""

LOOK_SECONDS = 0.3
"""How long it then waits for what has come in meanwhile to be read."""

GRACE_SECONDS = 10.0
"""How long a pod that may still live keeps its share and its leases: longer than most cuts and pauses, shorter than
Kubernetes takes to give a node up."""


def rendezvous(name: str, members: Collection[str]) -> str:
    """The member with the highest hash together with `name`. Every caller with the same members gets the same one."""
    return max(members, key=lambda member: (_weight(name, member), member))


def _weight(name: str, member: str) -> bytes:
    return blake2b(f"{name}\0{member}".encode(), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Move:
    """The owner of a service has changed in this pod's view. `before` is None for a service that is new here."""

    service: str
    before: str | None
    after: str


class Ownership:
    """One pod's view. Times are seconds of one monotonic clock."""

    __slots__ = (
        "_gathering_since", "_given_up", "_held_back_until", "_leaving", "_live", "_owners", "_owning", "_preferred",
        "_share_cache", "_told", "_unreachable", "own_id",
    )  # fmt: skip

    def __init__(self, own_id: str) -> None:
        self.own_id = own_id
        self._live: frozenset[str] = frozenset((own_id,))
        self._leaving: set[str] = set()
        self._unreachable: dict[str, float] = {}  # pod -> since when, until its grace is over
        self._given_up: dict[str, float] = {}  # unreachable pods whose grace is over -> since when
        self._owners: dict[str, str] = {}
        self._told: dict[str, set[str]] = {}  # service -> pods that told us
        self._gathering_since: dict[str, float] = {}  # services that we own and may not grant for yet
        self._held_back_until = float("-inf")
        self._share_cache: dict[str, bool] = {}
        self._preferred: frozenset[str] | None = None
        self._owning: frozenset[str] | None = None  # the pods among which owners were last chosen anew

    @property
    def live(self) -> frozenset[str]:
        """The pods that are reachable, this one included."""
        return self._live

    def owner(self, service: str) -> str:
        """Who owns a service by this view."""
        return self._owners.get(service) or rendezvous(service, self._staying)

    def owned_by(self, pod: str) -> list[str]:
        """The services that a pod owns by this view."""
        return [service for service, owner in self._owners.items() if owner == pod]

    def set_services(self, services: Iterable[str], now: float) -> list[Move]:
        """Make `services` the complete set."""
        names = set(services)
        for gone in [name for name in self._owners if name not in names]:
            del self._owners[gone]
            self._gathering_since.pop(gone, None)
            self._told.pop(gone, None)
        return [self._assign(name, None, now) for name in sorted(names - self._owners.keys())]

    def set_peers(
        self,
        live: Collection[str],
        unreachable: Mapping[str, float],
        now: float,
        preferred: frozenset[str] | None = None,
    ) -> list[Move]:
        """Make `live` the pods that can be reached (this one is always among them), `unreachable` (pod -> since when)
        those that cannot but may live, and `preferred` those that may own services, if not all the live ones (see
        `reach`). Returns the services that have another owner now."""
        self._preferred = preferred
        self._live = frozenset((*live, self.own_id))
        absent = {pod: since for pod, since in unreachable.items() if pod not in self._live}
        self._given_up = {pod: since for pod, since in self._given_up.items() if absent.get(pod) == since}
        self._unreachable = {pod: since for pod, since in absent.items() if pod not in self._given_up}
        self._share_cache.clear()
        self._leaving &= self._live
        return self._reassign(now)

    def leaves(self, pod: str, now: float) -> list[Move]:
        """A pod is about to end: it is to own nothing any more, while its front-ends finish what they have. Returns the
        services that have another owner now."""
        self._leaving.add(pod)
        return self._reassign(now)

    @property
    def _staying(self) -> frozenset[str]:
        """The pods that may own services. Where all of them leave, somebody must all the same."""
        staying = self._live - self._leaving
        return (self._preferred and self._preferred & staying) or staying or self._live

    def _reassign(self, now: float) -> list[Move]:
        staying = self._staying
        if staying == self._owning:
            return []
        self._owning = staying
        moves = []
        for service, before in list(self._owners.items()):
            if before not in staying or rendezvous(service, staying) != before:
                move = self._assign(service, before, now)
                if move.before != move.after:
                    moves.append(move)
        return moves

    def _assign(self, service: str, before: str | None, now: float) -> Move:
        after = self._owners[service] = rendezvous(service, self._staying)
        self._gathering_since.pop(service, None)
        self._told.get(service, set()).discard(self.own_id)  # what it has told another owner is nothing to itself
        if after == self.own_id:
            self._gathering_since[service] = now
        return Move(service, before, after)

    # What pods tell us.

    def told(self, pod: str, service: str) -> None:
        """A pod has told all that its front-ends hold of a service."""
        self._told.setdefault(service, set()).add(pod)

    def forget(self, pod: str, service: str, now: float) -> bool:
        """A pod believes that someone else owns the service. Returns whether we do, who then must not grant until the
        two views agree again."""
        self._told.get(service, set()).discard(pod)
        if self._owners.get(service) != self.own_id:
            return False
        self._gathering_since.setdefault(service, now)
        return True

    def session_began(self, pod: str, now: float) -> list[str]:
        """A pod has connected (again): what it holds it will tell (anew). Returns the services that we own, for which
        nothing may be granted until it has."""
        for pods in self._told.values():
            pods.discard(pod)
        owned = self.owned_by(self.own_id)
        for service in owned:
            self._gathering_since.setdefault(service, now)
        return owned

    def hold_back(self, now: float, until: float) -> list[str]:
        """This pod may not know who lives: nothing may be granted before a time. Returns the services that we own."""
        self._held_back_until = until
        owned = self.owned_by(self.own_id)
        for service in owned:
            self._gathering_since.setdefault(service, now)
        return owned

    # What follows.

    def newly_granting(self, now: float) -> list[str]:
        """The services for which this pod may grant from now on: each is named once after it was gained."""
        if now < self._held_back_until:
            return []
        ready = [service for service, since in self._gathering_since.items() if self._is_complete(service, since, now)]
        for service in ready:
            del self._gathering_since[service]
        return ready

    def may_grant(self, service: str) -> bool:
        """Whether this pod's ledgers of a service may grant."""
        return self._owners.get(service) == self.own_id and service not in self._gathering_since

    def _is_complete(self, service: str, since: float, now: float) -> bool:
        return self._live <= self._told.get(service, frozenset()) or now - since >= GATHER_SECONDS

    def is_ours(self, replica_id: str, now: float) -> bool:
        """Whether a replica belongs to this side, if the pods are cut into sides at all."""
        absent = [pod for pod, since in self._unreachable.items() if now - since < GRACE_SECONDS]
        if not absent:
            return True
        known = self._share_cache.get(replica_id)
        if known is None:
            known = self._share_cache[replica_id] = rendezvous(replica_id, [*self._live, *absent]) in self._live
        return known

    def others_share(self, replica_ids: Collection[str], now: float) -> frozenset[str]:
        """Those of a version's replicas that belong to another side: never all of them."""
        others = frozenset(replica_id for replica_id in replica_ids if not self.is_ours(replica_id, now))
        if others and len(others) == len(replica_ids):
            others -= {rendezvous("\0".join(sorted(self._live)), others)}
        return others

    def expired(self, now: float) -> list[str]:
        """Unreachable pods whose time of grace is over: each is named once."""
        over = [pod for pod, since in self._unreachable.items() if now - since >= GRACE_SECONDS]
        for pod in over:
            self._given_up[pod] = self._unreachable.pop(pod)
        if over:
            self._share_cache.clear()
        return over

    @property
    def is_cut(self) -> bool:
        """Whether some pods are unreachable that may live."""
        return bool(self._unreachable)
