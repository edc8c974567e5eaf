"""Claims on names: the namespace that the services with a name belong to. No I/O, no clock.

A claim outlives the Deployment that caused it, and its namespace. Without it, a Deployment in another namespace would
get a name, with the requests, keys and tokens of its clients, as soon as the model is deleted for a moment. Only an
operator releases a claim.

The name is the first part of a service's address after `scoring_prefix`. With `service_names: name` that is the name of
the service. With `namespace/name` it is the namespace, which claims its own name. So if the form is changed, an address
of the previous form cannot reach a service of another namespace.

    data of the ConfigMap:   iris: team-a 2026-11-29T10:00:00Z
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from router.cluster.kubernetes.config_map_store import Content

MAX_CLAIMS_BYTES = 768 * 1024
"""Maximum size of all claims with their names: 5,000 with the longest names and namespaces, 17,000 with usual ones.

Kubernetes permits 1 MiB. The rest is for the field manager of each name, which the API server adds to the object.
"""

_MALFORMED = "?"  # no namespace has this name
_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


class Claim(NamedTuple):
    """The namespace that has a name, and the time from which it has had it (RFC 3339)."""

    namespace: str
    since: str

    def __str__(self) -> str:
        return f"{self.namespace} {self.since}"

    @property
    def is_malformed(self) -> bool:
        """True if the claim cannot be read. No namespace has its name."""
        return self.namespace == _MALFORMED


def claimed_name(service: str) -> str:
    """Return the name that a service needs: the first part of its address."""
    return service.partition("/")[0]


def parse_claims(content: Content) -> dict[str, Claim]:
    """Return the claims by name. A malformed one belongs to no namespace, so nobody gets the name."""
    claims = {}
    for name, text in content.items():
        words = text.split()
        is_valid = len(words) == 2 and _NAMESPACE.fullmatch(words[0])
        claims[name] = Claim(words[0], words[1]) if is_valid else Claim(_MALFORMED, "")
    return claims


def add_claims(content: Content, owners: Mapping[str, str], now: datetime) -> Content:
    """Return the content with a claim for each unclaimed name in `owners` (name -> namespace), as far as there is room.

    `now` is in UTC.
    """
    since = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    room = MAX_CLAIMS_BYTES - sum(len(name) + len(text) for name, text in content.items())
    added = {}
    for name, namespace in owners.items():
        text = str(Claim(namespace, since))
        room -= len(name) + len(text)
        if room < 0:
            break
        added[name] = text
    return {**added, **content}
