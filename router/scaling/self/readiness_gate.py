"""Decides when a new pod may become ready: when it has the size of the other pods. No I/O, no clock."""

from __future__ import annotations

ANNOUNCEMENT_TIMEOUT_SECONDS = 3.0
"""How long a new pod waits for the leader to announce the CPUs of new pods, which it does once a second. Without an
announcement there is no leader, or the leader runs an earlier release or cannot reach the API server."""

_EPSILON = 1e-6


class SizeReadinessGate:
    """Keeps a new pod unready until it has its CPUs, or until a timeout: a small pod is better than none."""

    def __init__(self, patience_seconds: float) -> None:
        """`patience_seconds` is the maximum time to wait for CPUs."""
        self._patience_seconds = patience_seconds
        self._target_cpus: float | None = None
        self._waiting_since: float | None = None
        self._open = False

    def on_pod_size(self, cpus: float) -> None:
        """Record the CPUs that each pod should have, as announced by the leader. 0 means those it was created with."""
        self._target_cpus = cpus

    def unmet_condition(self, now: float, cpus: float, *, has_peers: bool) -> str | None:
        """Return the condition that a pod with `cpus` CPUs waits for, or None if it may become ready.

        Once None was returned, it is always returned. Call this only when all other conditions of readiness are met.
        """
        if self._open:
            return None
        if self._waiting_since is None:
            self._waiting_since = now
        waited = now - self._waiting_since
        if self._target_cpus is None:
            condition = "the size of the other routers is not known yet"
            self._open = not has_peers or waited >= ANNOUNCEMENT_TIMEOUT_SECONDS
        else:
            condition = f"{self._target_cpus:g} CPUs not given yet, {cpus:g} so far"
            self._open = cpus + _EPSILON >= self._target_cpus or waited >= self._patience_seconds
        return None if self._open else condition
