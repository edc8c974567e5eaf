"""Renews the key ring in its store, and issues tokens for the command `token`."""

from __future__ import annotations

import math
import time

from router.auth.issuing.key_ring import KeyRing, parse_lifetime
from router.auth.issuing.ring_store import RingStore
from router.config.schema import ArgumentError
from router.config.service import is_service_name

_MAX_ATTEMPTS = 5


async def load_current_ring(store: RingStore, now: float, rotation_seconds: float) -> KeyRing:
    """Return the ring in a store with a key that can sign. Make or rotate keys if that is due.

    Raises `SettingsError` if the store contains an invalid ring, and OSError if the store cannot be used.
    """
    for _ in range(_MAX_ATTEMPTS):
        stored = await store.read()
        ring = KeyRing.parse(stored.text) if stored is not None else KeyRing()
        renewed = ring.renew(now, rotation_seconds)
        if renewed is ring or await store.write(renewed.text(), stored):
            return renewed
    raise OSError("token keys: other processes replace them at the same time")


async def issue_token(
    store: RingStore, service: str, ttl: str | None, *, default_lifetime_seconds: int
) -> dict[str, object]:
    """Return a token for a service as the command `token` prints it, in the format of the SDKs.

    Signing keys are made if there are none; only a router rotates them. Raises `SettingsError` for an invalid name,
    lifetime or stored ring, and OSError when the store cannot be used.
    """
    if not is_service_name(service):
        raise ArgumentError("SERVICE", service, "must be the name of a service")
    lifetime_seconds = parse_lifetime(ttl, default_lifetime_seconds, "flag --ttl")
    ring = await load_current_ring(store, time.time(), math.inf)
    return ring.issue(service, lifetime_seconds, time.time()).document()
