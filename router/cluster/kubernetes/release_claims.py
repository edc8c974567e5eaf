"""Decides which release of the router serves the models of a namespace. No I/O, no clock.

A release is one installation of the router, named by its namespace and its name: `azureml/azureml-fe`. Two releases
that serve the same models would each grant all slots of a replica, and undo each other's replica counts. So each
namespace with models has one Lease, the claim. The release that holds it is the *older* one: it serves and scales the
models of the namespace. For any other release they are on standby.

    no claim --the first release to write it--> held --its holder observes, or an operator deletes it--> no claim

- A claim does not expire. The pods of its holder may still serve while the API server is unreachable for them, or will
  do so again after an outage, and nothing shows that they have ended for good.
- Without a claim each release serves: a claim that cannot be written must not take services away.
- A waiting release adds itself to an annotation of the claim, and renews its entry, so that the holder can report it.
  The holder removes entries that were not renewed. Clocks of releases are not compared.
- A release with `mode: observe` neither holds a claim nor waits for one, except for a namespace with a service whose
  annotation puts it in charge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from router.cluster.kubernetes.objects import WAITING_RELEASES_ANNOTATION, NamespacedName, ReleaseClaim
from router.config.kubernetes_settings import RELEASE_CLAIM_NAME

RENEWAL_SECONDS = 60.0
"""Interval at which a waiting release renews its entry."""
WAITING_SECONDS = 200.0
"""A waiting release that has not renewed its entry for this time is gone."""
RETRY_SECONDS = 10.0
"""Minimum time between two writes of one claim."""
_MAX_WAITING = 8  # entries of a claim


def parse_release(release: str) -> NamespacedName:
    """Return the namespace in which a release runs, and its name."""
    namespace, _, name = release.partition("/")
    return NamespacedName(namespace, name)


class ReleaseConflict(NamedTuple):
    """Two releases that are configured for the models of one namespace. `holder` is the older one."""

    namespace: str
    holder: str
    waiting: str

    def __str__(self) -> str:
        return (
            f"namespace {self.namespace}: the router releases {self.holder} and {self.waiting} are both configured for "
            f"its models; {self.holder} is older and serves and scales them, {self.waiting} does neither. If "
            f"{self.holder} was removed, delete the Lease {RELEASE_CLAIM_NAME}"
        )


@dataclass(frozen=True, slots=True)
class ClaimWrite:
    """A write of a claim. `replaces` is the resource version that it must have; "" creates it. `waiting` has the time
    of the last renewal of each waiting release."""

    namespace: str
    replaces: str
    holder: str
    waiting: Mapping[str, str]
    is_acquired: bool
    """True if the holder changes."""


def claim_body(write: ClaimWrite, time_text: str) -> dict[str, Any]:
    """Return the Lease, or its merge patch, that makes a write. `time_text` is the current time (RFC 3339)."""
    annotation = orjson.dumps(dict(write.waiting)).decode() if write.waiting else None
    metadata: dict[str, Any] = {"name": RELEASE_CLAIM_NAME, "namespace": write.namespace}
    if annotation is not None or write.replaces:
        metadata["annotations"] = {WAITING_RELEASES_ANNOTATION: annotation}
    if write.replaces:
        metadata["resourceVersion"] = write.replaces
    spec: dict[str, Any] = {"holderIdentity": write.holder}
    if write.is_acquired:
        spec["acquireTime"] = time_text
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


class _Entry(NamedTuple):
    """A waiting release: the time in its entry, as it wrote it, and when this router has seen it change."""

    time_text: str
    changed_at: float


class ReleaseClaims:
    """The claims of all namespaces as one release sees them. Times are seconds of one monotonic clock."""

    def __init__(self, release: str, *, observes: bool = False) -> None:
        self.release = release
        self.observes = observes
        self._wanted: frozenset[str] = frozenset()
        self._claims: dict[str, ReleaseClaim] = {}  # by namespace
        self._waiting: dict[str, dict[str, _Entry]] = {}  # by namespace and release
        self._next_write_at: dict[str, float] = {}  # by namespace

    def _observes_in(self, namespace: str) -> bool:
        return self.observes and namespace not in self._wanted

    # Observations.

    def set_wanted(self, namespaces: Iterable[str]) -> None:
        """Set the namespaces with services that this release serves and scales although it observes all others."""
        self._wanted = frozenset(namespaces)

    def on_claim_changed(self, before: ReleaseClaim | None, after: ReleaseClaim | None, now: float) -> None:
        """Record that a claim was added, changed or removed."""
        if after is None:
            if before is not None:
                self._claims.pop(before.namespace, None)
                self._waiting.pop(before.namespace, None)
            return
        self._claims[after.namespace] = after
        known = self._waiting.get(after.namespace, {})
        self._waiting[after.namespace] = {
            release: entry
            if (entry := known.get(release)) is not None and entry.time_text == text
            else _Entry(text, now)
            for release, text in after.waiting
        }

    # State.

    def holders(self) -> set[str]:
        """Return the releases that hold a claim."""
        return {claim.holder for claim in self._claims.values() if claim.holder}

    def other_holders(self) -> dict[str, str]:
        """Return the holder of each namespace that another release serves."""
        return {
            namespace: claim.holder
            for namespace, claim in self._claims.items()
            if claim.holder and claim.holder != self.release
        }

    def conflicts(self, now: float) -> Iterator[ReleaseConflict]:
        """Yield each conflict of two releases, by namespace."""
        for namespace, claim in sorted(self._claims.items()):
            waiting = set(self._present(namespace, now))
            if not self._observes_in(namespace):
                waiting.add(self.release)
            for release in sorted(waiting - {claim.holder}) if claim.holder else ():
                yield ReleaseConflict(namespace, claim.holder, release)

    def _present(self, namespace: str, now: float) -> dict[str, str]:
        """Return the other releases that wait for a namespace, with the time of their last renewal."""
        return {
            release: entry.time_text
            for release, entry in sorted(self._waiting.get(namespace, {}).items())
            if release != self.release and now - entry.changed_at < WAITING_SECONDS
        }

    # Decisions.

    def next_write(self, namespace: str, now: float, time_text: str) -> ClaimWrite | None:
        """Return the write of a namespace's claim that is due now, or None. It counts as attempted. `time_text` is the
        current time (RFC 3339)."""
        if now < self._next_write_at.get(namespace, now):
            return None
        write = self._due_write(namespace, now, time_text)
        if write is not None:
            self._next_write_at[namespace] = now + RETRY_SECONDS
        return write

    def _due_write(self, namespace: str, now: float, time_text: str) -> ClaimWrite | None:
        claim = self._claims.get(namespace)
        if claim is None:
            if self._observes_in(namespace):
                return None
            return ClaimWrite(namespace, "", self.release, {}, is_acquired=True)
        others = self._present(namespace, now)
        entries = self._waiting[namespace]
        if self._observes_in(namespace):
            holder = "" if claim.holder == self.release else claim.holder
            is_present = self.release in entries
        elif claim.holder in ("", self.release):
            holder = self.release
            is_present = len(entries) > len(others)  # this release itself, or one that has gone
        else:
            own = entries.get(self.release)
            if len(others) >= _MAX_WAITING or (own is not None and now - own.changed_at < RENEWAL_SECONDS):
                return None
            return ClaimWrite(
                namespace, claim.resource_version, claim.holder, others | {self.release: time_text}, is_acquired=False
            )
        if holder == claim.holder and not is_present:
            return None
        return ClaimWrite(
            namespace, claim.resource_version, holder, others, is_acquired=holder not in ("", claim.holder)
        )
