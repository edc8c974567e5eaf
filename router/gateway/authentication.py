"""Authentication in a worker: the check of each service, and requests whose token names an unknown key.

The supervisor sends the keys of token issuers; only the supervisor contacts issuers. A token that names an unknown key
may be signed with a new key. The supervisor is notified once for all such tokens, and their requests are parked until
it has replied or `MAX_PARKED_SECONDS` have passed. If the issuer was contacted several times just before, the request
is not parked: anybody can invent key names, which must neither fill the router's memory nor cause requests to the
issuer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from router.auth.keys import KeyCheck
from router.auth.trust import KeySet, Trust
from router.model.services import Service
from router.telemetry.counters import GatewayCounters

if TYPE_CHECKING:
    from router.auth.tokens import TokenCache, TokenCheck, TokenVerifier

MAX_PARKED_SECONDS = 3.0
MAX_PARKED = 1000  # requests


class Authentication:
    """The credential checks of all services of one worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        request_keys: Callable[[str], None] | None,
    ) -> None:
        """`clock` returns seconds since the epoch.

        `request_keys` asks the supervisor to fetch the keys of an issuer. It is None if there is no supervisor.
        """
        self._loop = loop
        self._clock = clock
        self._request_keys = request_keys
        self._trust = Trust()
        self._verifier: TokenVerifier | None = None
        self._cache: TokenCache | None = None
        self._checks: dict[str, TokenCheck] = {}
        self._parked: dict[str, list[Callable[[], None]]] = {}

    # Checks.

    def check(self, service: Service) -> KeyCheck | TokenCheck | None:
        """Return the check of a service's requests, or None if the service requires neither key nor token."""
        if service.token_auth_enabled:
            if service.name not in self._checks:
                self._checks[service.name] = self._token_check(service.name)
            return self._checks[service.name]
        return KeyCheck((service.primary_key, service.secondary_key)) if service.auth_enabled else None

    def _token_check(self, service: str) -> TokenCheck:
        # Imported only when a service uses tokens, as the module takes a third of a worker's memory.
        from router.auth.tokens import TokenCache, TokenCheck, TokenVerifier

        if self._verifier is None or self._cache is None:
            self._verifier, self._cache = TokenVerifier(), TokenCache()
            self._verifier.set_trust(self._trust)
        return TokenCheck(service, self._verifier, self._cache, self._clock)

    def retain(self, services: frozenset[str]) -> None:
        """Forget the tokens of all services but these."""
        self._checks = {name: check for name, check in self._checks.items() if name in services}

    def set_trust(self, trust: Trust) -> None:
        """Trust these issuers and keys from now on. Release the requests of issuers whose keys were fetched."""
        previous, self._trust = self._trust, trust
        if self._verifier is not None and self._cache is not None:
            self._verifier.set_trust(trust)
            if trust.may_invalidate_tokens_of(previous):
                self._cache.clear()
        for name in tuple(self._parked):
            before = previous.key_sets.get(name, KeySet())
            if trust.key_sets.get(name, KeySet()).last_attempt_at != before.last_attempt_at:
                self._release(name)

    # Parked requests.

    def park_until_keys_fetched(self, issuer: str, on_released: Callable[[], None]) -> bool:
        """Call `on_released` once the issuer's keys were fetched again, or after `MAX_PARKED_SECONDS`.

        Return False, and do nothing, if the issuer must not be contacted now or too many requests are parked.
        """
        if self._request_keys is None or monotonic() < self._trust.key_sets.get(issuer, KeySet()).refetch_allowed_at:
            return False
        if sum(map(len, self._parked.values())) >= MAX_PARKED:
            return False
        if issuer not in self._parked:
            self._parked[issuer] = []
            self._loop.call_later(MAX_PARKED_SECONDS, self._release_batch, issuer, self._parked[issuer])
            self._request_keys(issuer)
        self._parked[issuer].append(on_released)
        return True

    def _release_batch(self, issuer: str, batch: list[Callable[[], None]]) -> None:
        if self._parked.get(issuer) is batch:
            self._release(issuer)

    def _release(self, issuer: str) -> None:
        for on_released in self._parked.pop(issuer):
            on_released()

    # Metrics.

    def count(self, counters: GatewayCounters) -> None:
        """Set the counters of the token cache."""
        if self._cache is not None:
            counters.token_cache_entries = len(self._cache)
            counters.token_cache_hits = self._cache.hits
            counters.token_cache_misses = self._cache.misses
