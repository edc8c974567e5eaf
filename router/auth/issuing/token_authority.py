"""Keeps the keys of all issuers up to date, reports what workers should trust, and issues the router's own tokens.

Contains: the tasks that fetch keys. `auth.jwks` and `key_ring` decide when this is due. After a failure the known keys
stay in effect. Consecutive failures are logged once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from router.auth.issuers import ROUTER_ISSUER, ROUTER_ISSUER_NAME, Issuer
from router.auth.issuing.key_fetcher import FetchError, fetch_keys
from router.auth.jwks import IssuerKeys
from router.auth.trust import PublicKey, Trust
from router.config.polling import POLL_SECONDS
from router.config.schema import SettingsError
from router.model.services import Service
from router.telemetry.catalogue import Sample
from router.telemetry.log import event

if TYPE_CHECKING:
    from router.auth.issuing.key_ring import KeyRing
    from router.auth.issuing.ring_store import RingStore

_log = logging.getLogger("router.auth")


class TokenAuthority:
    """Keeps `trust` up to date, and issues tokens. Runs in the supervisor."""

    def __init__(
        self,
        store: RingStore | None,
        on_trust_changed: Callable[[], None],
        *,
        lifetime_seconds: int,
        rotation_seconds: float,
    ) -> None:
        """`store` contains the router's own signing keys. Without a store the router issues no tokens.

        `on_trust_changed` is called when `trust` has changed.
        """
        self._store = store
        self._on_trust_changed = on_trust_changed
        self._lifetime_seconds = lifetime_seconds
        self._rotation_seconds = rotation_seconds
        self._issuers: dict[str, IssuerKeys] = {}
        if store is not None:
            self._issuers[ROUTER_ISSUER_NAME] = IssuerKeys(ROUTER_ISSUER)
        self._services: Mapping[str, Service] = {}
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._runner: asyncio.Task[None] | None = None
        self._wake_up = asyncio.Event()
        self._trust = Trust()

    # Start and stop.

    def start(self) -> None:
        """Start fetching keys. `stop` must follow."""
        self._runner = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Cancel all fetches."""
        tasks = [task for task in (self._runner, *self._fetches.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def set_issuers(self, issuers: Mapping[str, Issuer]) -> None:
        """Trust these issuers, and the router itself. The keys of unchanged issuers are kept."""
        previous = self._issuers
        wanted = {**issuers, ROUTER_ISSUER_NAME: ROUTER_ISSUER} if self._store is not None else issuers
        self._issuers = {
            name: previous[name] if name in previous and previous[name].issuer == issuer else IssuerKeys(issuer)
            for name, issuer in wanted.items()
        }
        for name in [name for name in self._fetches if self._issuers.get(name) is not previous.get(name)]:
            self._fetches.pop(name).cancel()
        self._update_trust()
        self._wake_up.set()

    def set_services(self, services: Mapping[str, Service]) -> None:
        """Set the services. Keys are fetched only if one of them requires tokens."""
        self._services = services
        self._wake_up.set()

    # State.

    @property
    def services(self) -> Mapping[str, Service]:
        """The services, by name."""
        return self._services

    @property
    def trust(self) -> Trust:
        """The issuers and keys that workers should trust."""
        return self._trust

    def samples(self) -> Iterator[Sample]:
        """Yield the samples of a scrape, for each issuer."""
        now = time.monotonic()
        for name, keys in self._issuers.items() if self._in_use else ():
            yield Sample("jwks_keys", len(keys.key_set(now).keys), (name,))
            if keys.successes:
                yield Sample("jwks_age_seconds", keys.age(now), (name,))
            yield Sample("jwks_fetches", keys.successes, (name, "ok"))
            yield Sample("jwks_fetches", keys.failures, (name, "failed"))

    @property
    def own_keys(self) -> tuple[PublicKey, ...]:
        """The router's own public keys; none until a service requires tokens."""
        keys = self._issuers.get(ROUTER_ISSUER_NAME)
        return keys.key_set(time.monotonic()).keys if keys is not None else ()

    async def issue(self, service: str, ttl: str | None) -> dict[str, object]:
        """Return a token for a service in the format of the SDKs. `ttl` is the requested lifetime in seconds.

        Raises `SettingsError` for an invalid lifetime, and `SettingsError` or OSError when there are no signing keys.
        """
        from router.auth.issuing.key_ring import parse_lifetime

        lifetime_seconds = parse_lifetime(ttl, self._lifetime_seconds, "token request")
        ring = await self._ring()
        # If the key is new, workers get it before the client gets the token.
        self._issuers[ROUTER_ISSUER_NAME].on_fetched(ring.public_keys(), time.monotonic())
        self._update_trust()
        return ring.issue(service, lifetime_seconds, time.time()).document()

    async def _ring(self) -> KeyRing:
        from router.auth.issuing.token_issuer import load_current_ring

        if self._store is None:
            raise OSError("this router has no signing keys")
        return await load_current_ring(self._store, time.time(), self._rotation_seconds)

    # Messages of workers.

    def on_unknown_key(self, issuer: str) -> None:
        """Fetch the issuer's keys, as a token names an unknown key and its request is parked for the result."""
        if issuer in self._issuers:
            self._issuers[issuer].on_unknown_key(time.monotonic())
            self._wake_up.set()

    # Fetching.

    @property
    def _in_use(self) -> bool:
        return any(service.token_auth_enabled for service in self._services.values())

    async def _run(self) -> None:
        while True:
            if self._in_use:
                now = time.monotonic()
                for name, keys in self._issuers.items():
                    if keys.is_due(now):
                        keys.on_fetch_started(now)
                        self._fetches[name] = asyncio.ensure_future(self._fetch(name, keys))
                self._update_trust()  # keys may have become too old
            self._wake_up.clear()
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake_up.wait()
            except TimeoutError:
                pass

    async def _fetch(self, name: str, keys: IssuerKeys) -> None:
        try:
            fetched, usable_seconds = await self._fetch_keys(keys.issuer)
        except (FetchError, OSError, SettingsError) as error:
            if keys.on_fetch_failed(time.monotonic()):
                meanwhile = "known keys stay in use" if keys.key_set(time.monotonic()).keys else "no keys are known"
                event(
                    _log, logging.WARNING, "fetching keys of a token issuer failed",
                    issuer=name, error=str(error), meanwhile=meanwhile,
                )  # fmt: skip
        except Exception as fault:  # noqa: BLE001  (otherwise the keys would never be due again)
            keys.on_fetch_failed(time.monotonic())
            event(
                _log, logging.ERROR, "fetching keys of a token issuer failed unexpectedly", issuer=name, exception=fault
            )
        else:
            if keys.on_fetched(fetched, time.monotonic(), usable_seconds):
                event(_log, logging.INFO, "keys of a token issuer fetched", issuer=name, count=len(fetched))
        del self._fetches[name]
        self._update_trust()

    async def _fetch_keys(self, issuer: Issuer) -> tuple[tuple[PublicKey, ...], float]:
        if issuer is ROUTER_ISSUER:
            return (await self._ring()).public_keys(), math.inf
        return await fetch_keys(issuer)

    def _update_trust(self) -> None:
        """Recompute `trust`, and report a change."""
        now = time.monotonic()
        trust = Trust(
            tuple(keys.issuer for keys in self._issuers.values()),
            {name: keys.key_set(now) for name, keys in self._issuers.items()},
        )
        if trust != self._trust:
            self._trust = trust
            self._on_trust_changed()
