"""Whom workers trust: issuers and their public keys, as the supervisor tells them. Facts only, and nothing secret."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from router.auth.issuers import Issuer

PublicKey = Mapping[str, str]
"""A JSON Web Key (RFC 7517), its public members only."""


class KeySet(NamedTuple):
    """What is known of an issuer's keys."""

    keys: tuple[PublicKey, ...] = ()
    answered_at: float = -math.inf
    """When the issuer last answered, or failed to; seconds of the monotonic clock, which all processes of a machine
    share."""
    may_be_asked_at: float = -math.inf
    """From when on an unknown key is a reason to ask it again."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The complete set of issuers, and the keys of each by its name."""

    issuers: tuple[Issuer, ...] = ()
    keys: Mapping[str, KeySet] = field(default_factory=dict)

    def takes_back(self, former: Trust) -> bool:
        """Whether something that `former` trusted is trusted no more, or on other terms."""
        if former.issuers != self.issuers:
            return True
        return any(
            key not in self.keys.get(name, KeySet()).keys for name, known in former.keys.items() for key in known.keys
        )
