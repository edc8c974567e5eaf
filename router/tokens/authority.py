"""Whose tokens are good: keeps the keys of all issuers up to date and tells workers of them.

Lives here: the tasks that ask issuers, and the router's own ring in use. What to do when is decided in `auth.jwks` and
`ring`. A failure leaves what is known in force and is told once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from router.auth.issuers import OWN, OWN_AS_ISSUER, Issuer
from router.auth.jwks import IssuerKeys
from router.auth.trust import PublicKey, Trust
from router.services import Service
from router.telemetry.catalogue import Sample
from router.telemetry.log import event
from router.tokens.fetching import FetchError, fetch_keys
from router.values import SettingsError

if TYPE_CHECKING:
    from router.tokens.ring import KeyRing
    from router.tokens.store import RingStore

_log = logging.getLogger("router.tokens")

_TICK_SECONDS = 1.0


class TokenAuthority:
    """Runs in the supervisor. `changed()` is called when `trust` says something new."""

    def __init__(
        self, store: RingStore | None, changed: Callable[[], None], *, lifetime_seconds: int, rotation_seconds: float
    ) -> None:
        """`store` holds the router's own signing keys; without one it issues no tokens."""
        self._store = store
        self._changed = changed
        self._lifetime_seconds = lifetime_seconds
        self._rotation_seconds = rotation_seconds
        self._issuers: dict[str, IssuerKeys] = {}
        if store is not None:
            self._issuers[OWN] = IssuerKeys(OWN_AS_ISSUER)
        self._services: Mapping[str, Service] = {}
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._running: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._told = Trust()

    # Life.

    def start(self) -> None:
        """Begin to keep keys up to date. `stop` must follow."""
        self._running = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """End all fetches."""
        tasks = [task for task in (self._running, *self._fetches.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def set_issuers(self, issuers: Mapping[str, Issuer]) -> None:
        """Trust these issuers, and the router itself; what is known of those that stay as they are is kept."""
        former = self._issuers
        wanted = {**issuers, OWN: OWN_AS_ISSUER} if self._store is not None else issuers
        self._issuers = {
            name: former[name] if name in former and former[name].issuer == issuer else IssuerKeys(issuer)
            for name, issuer in wanted.items()
        }
        for name in [name for name in self._fetches if self._issuers.get(name) is not former.get(name)]:
            self._fetches.pop(name).cancel()
        self._tell()
        self._woken.set()

    def set_services(self, services: Mapping[str, Service]) -> None:
        """These are served; issuers are asked only if one of them asks for tokens."""
        self._services = services
        self._woken.set()

    # Facts.

    @property
    def services(self) -> Mapping[str, Service]:
        """What is served."""
        return self._services

    @property
    def trust(self) -> Trust:
        """What workers are to go by."""
        return self._told

    def samples(self) -> Iterator[Sample]:
        """What a scrape tells of each issuer."""
        now = time.monotonic()
        for name, keys in self._issuers.items() if self._in_use else ():
            yield Sample("jwks_keys", len(keys.key_set(now).keys), (name,))
            if keys.successes:
                yield Sample("jwks_age_seconds", keys.age(now), (name,))
            yield Sample("jwks_fetches", keys.successes, (name, "ok"))
            yield Sample("jwks_fetches", keys.failures, (name, "failed"))

    @property
    def own_keys(self) -> tuple[PublicKey, ...]:
        """The router's own public keys; none until a service asks for tokens."""
        return self._issuers[OWN].key_set(time.monotonic()).keys if OWN in self._issuers else ()

    async def issue(self, service: str, ttl: str | None) -> dict[str, object]:
        """A token for a service that lives as long as somebody has asked for, as the SDK has it. Raises
        `SettingsError` for a lifetime that is not allowed, and that or OSError when there are no signing keys."""
        from router.tokens.ring import lifetime_seconds

        seconds = lifetime_seconds(ttl, self._lifetime_seconds, "token request")
        ring = await self._ring()
        # A key that was made just now is known to workers before a token of it is known to anyone.
        self._issuers[OWN].succeeded(ring.public_keys(), time.monotonic())
        self._tell()
        return ring.issue(service, seconds, time.time()).document()

    async def _ring(self) -> KeyRing:
        from router.tokens.issuing import current_ring

        if self._store is None:
            raise OSError("this router has no signing keys")
        return await current_ring(self._store, time.time(), self._rotation_seconds)

    # Word from workers.

    def unknown_key(self, issuer: str) -> None:
        """A worker has a token that names a key which it does not know; it waits for an answer."""
        if issuer in self._issuers:
            self._issuers[issuer].unknown_key(time.monotonic())
            self._woken.set()

    # Work.

    @property
    def _in_use(self) -> bool:
        return any(service.token_auth_enabled for service in self._services.values())

    async def _run(self) -> None:
        while True:
            if self._in_use:
                now = time.monotonic()
                for name, keys in self._issuers.items():
                    if keys.is_due(now):
                        keys.began(now)
                        self._fetches[name] = asyncio.ensure_future(self._fetch(name, keys))
                self._tell()  # also that keys are too old
            self._woken.clear()
            try:
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _fetch(self, name: str, keys: IssuerKeys) -> None:
        try:
            found, usable_seconds = await self._look(keys.issuer)
        except (FetchError, OSError, SettingsError) as error:
            if keys.failed(time.monotonic()):
                kept = "known ones stay in use" if keys.key_set(time.monotonic()).keys else "none are known"
                event(
                    _log, logging.WARNING, "token issuer cannot be asked",
                    issuer=name, error=str(error), meanwhile=kept,
                )  # fmt: skip
        except Exception as fault:  # noqa: BLE001  (else it would count as being asked for ever)
            keys.failed(time.monotonic())
            event(_log, logging.ERROR, "asking a token issuer failed", issuer=name, exception=fault)
        else:
            if keys.succeeded(found, time.monotonic(), usable_seconds):
                event(_log, logging.INFO, "token issuer answers", issuer=name, count=len(found))
        del self._fetches[name]
        self._tell()

    async def _look(self, issuer: Issuer) -> tuple[tuple[PublicKey, ...], float]:
        if issuer is OWN_AS_ISSUER:
            return (await self._ring()).public_keys(), math.inf
        return await fetch_keys(issuer)

    def _tell(self) -> None:
        """Tell workers, if there is something new."""
        now = time.monotonic()
        trust = Trust(
            tuple(keys.issuer for keys in self._issuers.values()),
            {name: keys.key_set(now) for name, keys in self._issuers.items()},
        )
        if trust != self._told:
            self._told = trust
            self._changed()
