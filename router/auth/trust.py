"""What workers trust: issuers and their public keys, as the supervisor sends them. Contains no secrets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from router.auth.issuers import Issuer

PublicKey = Mapping[str, str]
"""A JSON Web Key (RFC 7517), public members only."""


class KeySet(NamedTuple):
    """The known keys of one issuer. Times are seconds of the monotonic clock, common to all processes of a machine."""

    keys: tuple[PublicKey, ...] = ()
    last_attempt_at: float = -math.inf
    """When the last fetch of the keys succeeded or failed."""
    refetch_allowed_at: float = -math.inf
    """Until then, a token that names an unknown key does not cause another fetch."""


@dataclass(frozen=True, slots=True)
class Trust:
    """All trusted issuers, and the key set of each by the issuer's name."""

    issuers: tuple[Issuer, ...] = ()
    key_sets: Mapping[str, KeySet] = field(default_factory=dict)

    def may_invalidate_tokens_of(self, previous: Trust) -> bool:
        """Return True if a token that was valid under `previous` may be invalid now.

        That is the case if a key was removed, or if the issuers differ in any way. An added issuer alone invalidates no
        token, but issuers change too rarely to tell the cases apart.
        """
        if previous.issuers != self.issuers:
            return True
        return any(
            key not in self.key_sets.get(name, KeySet()).keys
            for name, key_set in previous.key_sets.items()
            for key in key_set.keys
        )
