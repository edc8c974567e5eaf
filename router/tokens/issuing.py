"""The router's ring in its store: kept up to date, and tokens made from it, by a router or by the command `token`."""

from __future__ import annotations

import math
import time

from router.services import is_name
from router.tokens.ring import KeyRing, lifetime_seconds
from router.tokens.store import RingStore
from router.values import SettingsError

_MOST_ATTEMPTS = 5


async def current_ring(store: RingStore, now: float, rotation_seconds: float) -> KeyRing:
    """The ring in a store, with a key that can sign: made or rotated now, if that is due. Raises `SettingsError`
    when what the store holds is no ring, and OSError when it cannot be used."""
    for _ in range(_MOST_ATTEMPTS):
        stored = await store.read()
        ring = KeyRing.read(stored.text) if stored is not None else KeyRing()
        renewed = ring.renewed(now, rotation_seconds)
        if renewed is ring or await store.write(renewed.text(), stored):
            return renewed
    raise OSError("token keys: others replace them all the time")


async def issue_token(
    store: RingStore, service: str, ttl: str | None, *, default_lifetime_seconds: int
) -> dict[str, object]:
    """What the command `token` prints: a token for a service as the SDK has it. Signing keys are made if there are
    none; to rotate them is a router's business. Raises `SettingsError` for a name or lifetime that is not allowed or
    keys that are none, OSError when the store cannot be used."""
    if not is_name(service):
        raise SettingsError("SERVICE", service, "must be the name of a service")
    seconds = lifetime_seconds(ttl, default_lifetime_seconds, "flag --ttl")
    ring = await current_ring(store, time.time(), math.inf)
    return ring.issue(service, seconds, time.time()).document()
