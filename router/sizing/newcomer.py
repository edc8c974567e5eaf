"""When a new pod has the size of the rest, so that it may get ready. No I/O, no clock."""

from __future__ import annotations

HEARING_SECONDS = 3.0
"""The pod that leads tells the size once a second, or that there is none to wait for. A longer silence means that
nobody leads, or that who does cannot tell: an earlier release, or the API server is away."""
_HAIR = 1e-6


class Newcomer:
    """A pod that begins. It waits for its CPU no longer than a node is given for it: serving comes before size."""

    def __init__(self, patience_seconds: float) -> None:
        self._patience = patience_seconds
        self._told: float | None = None
        self._since: float | None = None
        self._over = False

    def told(self, cpus: float) -> None:
        """The leader says how many CPUs each pod is to have; 0: those that it came with."""
        self._told = cpus

    def lacks(self, now: float, cpus: float, *, has_peers: bool) -> str | None:
        """What it lacks, with so many CPUs; None once and for all when that is nothing. Ask when all else is there."""
        if self._over:
            return None
        if self._since is None:
            self._since = now
        waited = now - self._since
        if self._told is None:
            lack = "the size of the other routers is not known yet"
            self._over = not has_peers or waited >= HEARING_SECONDS
        else:
            lack = f"{self._told:g} CPUs not given yet, {cpus:g} so far"
            self._over = cpus + _HAIR >= self._told or waited >= self._patience
        return None if self._over else lack
